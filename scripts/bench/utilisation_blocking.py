"""DiLoCo as it is usually built, as a worker of the utilisation benchmark: H steps, then all wait for an fp32 all-reduce (gloo)."""

from __future__ import annotations

import sys
import threading
import time

import torch
import torch.distributed as dist

from scripts.bench.training_gloo import Gloo
from scripts.bench.training_member import Recorder, serve


class Blocking(Gloo):
    """One rank. With `inner_steps` beyond all steps it only computes: that is how the length of a step is found."""

    def train(self, recorder: Recorder, stopping: threading.Event) -> None:
        """Steps and rounds until told to stop; a round that has begun when the time is up is not counted."""
        recorder.samples = lambda: self._own.samples
        self._computing_s = 0.0
        inner_steps = int(self._task.settings["inner_steps"])
        anchor_D = self._flat()
        began_s, counted_s, counted_computing_s, rounds = time.monotonic(), 0.0, 0.0, 0
        while not self._all_stop(stopping, inner_steps):
            for _ in range(inner_steps):
                if inner_steps >= self._task.settings["never"] and stopping.is_set():
                    break
                self._compute_step()
            if inner_steps < self._task.settings["never"]:
                anchor_D = self._average(anchor_D)
                rounds += 1
                counted_s, counted_computing_s = time.monotonic() - began_s, self._computing_s
        if not rounds:
            counted_s, counted_computing_s = time.monotonic() - began_s, self._computing_s
        steps = self._own.samples // self._task.micro_batch_samples
        recorder.notes.update(
            computing_s=counted_computing_s, total_s=counted_s, rounds=rounds, steps=steps, all_computing_s=self._computing_s
        )

    def _all_stop(self, stopping: threading.Event, inner_steps: int) -> bool:
        if inner_steps >= self._task.settings["never"]:
            return stopping.is_set()
        asked = torch.tensor([float(stopping.is_set())])
        dist.all_reduce(asked, op=dist.ReduceOp.SUM)
        return bool(asked > 0)

    def _compute_step(self) -> None:
        began_s = time.monotonic()
        loss = self._own.accumulate()
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(loss.samples)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._computing_s += time.monotonic() - began_s

    @torch.no_grad()
    def _average(self, anchor_D: torch.Tensor) -> torch.Tensor:
        moved_D = anchor_D - self._flat()
        dist.all_reduce(moved_D, op=dist.ReduceOp.SUM)
        anchor_D = anchor_D - moved_D / self._task.peers
        begin = 0
        for parameter in self._model.parameters():
            parameter.copy_(anchor_D[begin : begin + parameter.numel()].view_as(parameter))
            begin += parameter.numel()
        return anchor_D

    def _flat(self) -> torch.Tensor:
        return torch.cat([parameter.detach().reshape(-1) for parameter in self._model.parameters()])


if __name__ == "__main__":
    sys.exit(serve(Blocking()))
