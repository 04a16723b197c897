"""Data parallel training with torch's gloo as a worker of the training benchmark: an fp32 all-reduce of the gradients in every step.

What everybody would write with `torch.distributed`: no encryption, fixed membership, all wait for the slowest. The gradients travel as one
flat vector, which suits slow links best, and computing and communicating take turns, as the step needs all gradients.
"""

from __future__ import annotations

import sys
import threading
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from scripts.bench.training_member import OwnSamples, Recorder, Task, serve
from scripts.bench.worker import Publish
from swarm.models.build import build_model

PORT = 29500
"""Free on every host: each is a network namespace of its own."""

TIMEOUT_S = 300.0


class Gloo:
    """One rank."""

    def open(self, task: Task, publish: Publish) -> dict[str, Any]:
        """Join the group; rank 0's host is where they meet."""
        self._task = task
        self._model = build_model(task.model, task.seed)
        settings = task.settings
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=settings["learning_rate"], betas=tuple(settings["betas"]), weight_decay=settings["weight_decay"]
        )
        self._own = OwnSamples(task, self._model)
        if task.rank == 0:
            publish({"address": task.address})
        address = task.bootstrap["address"] if task.bootstrap else task.address
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://{address}:{PORT}",
            rank=task.rank,
            world_size=task.peers,
            timeout=timedelta(seconds=TIMEOUT_S),
        )
        return {"torch": torch.__version__, **settings}

    def train(self, recorder: Recorder, stopping: threading.Event) -> None:
        """Steps until somebody has been told to stop; all learn of it in the same step."""
        recorder.samples = lambda: self._own.samples
        recorder.changed(self._model.parameters())
        parameters = list(self._model.parameters())
        own_samples = self._task.settings["target_batch_samples"] // self._task.peers
        steps = 0
        while True:
            for _ in range(own_samples // self._task.micro_batch_samples):
                self._own.accumulate()
            asked_to_stop = torch.tensor([float(stopping.is_set())])
            flat_D = torch.cat([*(parameter.grad.reshape(-1) for parameter in parameters if parameter.grad is not None), asked_to_stop])
            dist.all_reduce(flat_D, op=dist.ReduceOp.SUM)
            if flat_D[-1] > 0:
                break
            self._step(parameters, flat_D / (own_samples * self._task.peers))
            steps += 1
            recorder.changed(parameters)
        recorder.notes["steps"] = steps

    def _step(self, parameters: list[torch.nn.Parameter], mean_D: torch.Tensor) -> None:
        begin = 0
        for parameter in parameters:
            parameter.grad = mean_D[begin : begin + parameter.numel()].view_as(parameter)
            begin += parameter.numel()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(serve(Gloo()))
