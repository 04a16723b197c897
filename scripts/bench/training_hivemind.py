"""`hivemind.Optimizer` as a worker of the training benchmark, as its users have it: own DHT, matchmaking, all-reduce, state averaging.

Three ways to use it, `scripts.bench.training_plans` has their settings:

- delayed: `delay_grad_averaging` and `delay_optimizer_step`, so that computing goes on while gradients are averaged ("Delayed Parameter
  Updates", as its guide advises for slow links);
- synchronous: neither, its default;
- local: `use_local_updates`, steps of one's own and averages of the parameters.

All: 8-bit gradients and fp16 parameters as its own examples have them, `matchmaking_time` far below the default of 15 s, which would
leave no time to train between rounds that take some seconds, and a progress tracker that looks as often as it can.
"""

from __future__ import annotations

import sys
import threading
from functools import partial
from importlib.metadata import version
from typing import Any

import hivemind
import torch
from hivemind.optim.grad_averager import GradientAverager

from scripts.bench.hivemind_codecs import described, nearest, repair
from scripts.bench.training_member import OwnSamples, Recorder, Task, serve
from scripts.bench.worker import Publish
from swarm.models.build import build_model

_OURS_TO_READ = ("learning_rate", "betas", "weight_decay", "grad_codec", "state_codec")
"""Settings that are not arguments of `hivemind.Optimizer`."""


class Hivemind:
    """One peer with its DHT node, libp2p daemon and averagers, each in a process of its own, as the library does it."""

    _dht: hivemind.DHT | None = None
    _optimizer: hivemind.Optimizer | None = None

    def open(self, task: Task, publish: Publish) -> dict[str, Any]:
        """Start the DHT, then the optimizer; rank 0's addresses are what the others join by."""
        repair()
        self._task = task
        self._model = build_model(task.model, task.seed)
        self._own = OwnSamples(task, self._model)
        initial_peers = task.bootstrap["initial_peers"] if task.bootstrap else []
        self._dht = hivemind.DHT(initial_peers=initial_peers, host_maddrs=[f"/ip4/{task.address}/tcp/0"], start=True)
        if task.rank == 0:
            publish({"initial_peers": [str(address) for address in self._dht.get_visible_maddrs()]})
        settings = task.settings
        local = bool(settings.get("use_local_updates"))
        gradients, state = nearest(settings["grad_codec"]), nearest(settings["state_codec"])
        self._optimizer = hivemind.Optimizer(
            dht=self._dht,
            run_id="training_benchmark",
            batch_size_per_step=task.micro_batch_samples,
            params=self._model.parameters(),
            optimizer=lambda parameters: torch.optim.AdamW(
                parameters, lr=settings["learning_rate"], betas=tuple(settings["betas"]), weight_decay=settings["weight_decay"]
            ),
            grad_compression=gradients,
            state_averaging_compression=state,
            # A group that is full starts at once instead of waiting for the matchmaking time to pass.
            averager_opts={"target_group_size": task.peers},
            grad_averager_factory=None if local else partial(GradientAverager, target_group_size=task.peers),
            **{name: value for name, value in settings.items() if name not in _OURS_TO_READ},
        )
        return {
            "hivemind": version("hivemind"),
            **settings,
            "grad_compression": described(gradients),
            "state_compression": described(state),
        }

    def train(self, recorder: Recorder, stopping: threading.Event) -> None:
        """The loop of its guide."""
        optimizer = self._optimizer
        if optimizer is None:
            raise RuntimeError("open() comes first")
        recorder.samples = lambda: self._own.samples
        recorder.changed(self._model.parameters())
        while not stopping.is_set():
            loss = self._own.accumulate()
            for parameter in self._model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= loss.samples
            optimizer.step()
            optimizer.zero_grad()
            recorder.changed(self._model.parameters())
        recorder.changed(self._model.parameters(), last=True)
        recorder.notes["epochs"] = optimizer.local_epoch

    def close(self) -> None:
        """Shut its processes and the daemon down."""
        if self._optimizer is not None:
            self._optimizer.shutdown()
        if self._dht is not None:
            self._dht.shutdown()


if __name__ == "__main__":
    sys.exit(serve(Hivemind()))
