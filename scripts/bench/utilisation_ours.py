"""One of our members as a worker of the utilisation benchmark: as in the training benchmark, and it says how long its trainer computed."""

from __future__ import annotations

import sys
import threading
import time

from protocols.ids import Epoch, PeerId
from scripts.bench.training_member import Recorder, serve
from scripts.bench.training_ours import Ours
from swarm.optim.collaborative import CollaborativeOptimizer
from swarm.optim.outcome import StepOutcome, StepStatus
from swarm.training.gradients import LossSum
from swarm.training.trainer import Trainer


class TimedTrainer(Trainer):
    """Adds up the time of forward and backward passes."""

    computing_s = 0.0

    def _compute(self, epoch: Epoch, member: PeerId, indices: range, *, bf16: bool | None = None) -> LossSum:
        began_s = time.monotonic()
        try:
            return super()._compute(epoch, member, indices, bf16=bf16)
        finally:
            self.computing_s += time.monotonic() - began_s


class TimedOptimizer(CollaborativeOptimizer):
    """Adds up the time of inner steps: of calls in which no round begins or ends."""

    computing_s = 0.0

    def step(self, samples: int, loss: float | None = None, *, summed: bool = False) -> StepOutcome:
        """As it is."""
        began_s, averaging = time.monotonic(), self.averaging
        outcome = super().step(samples, loss, summed=summed)
        if outcome.status is StepStatus.ACCUMULATED and self.averaging is averaging:
            self.computing_s += time.monotonic() - began_s
        return outcome


class Timed(Ours):
    """One member; rank 0 founds the run and trains like the others."""

    trainer_type = TimedTrainer
    optimizer_type = TimedOptimizer

    def train(self, recorder: Recorder, stopping: threading.Event) -> None:
        """The library's loop, until told to stop."""
        trainer, optimizer = self._trainer, self._optimizer
        if not isinstance(trainer, TimedTrainer) or not isinstance(optimizer, TimedOptimizer):
            raise TypeError("what was built does not tell how long it computes")
        began_s = time.monotonic()

        def note() -> None:
            stopping.wait()
            recorder.notes["computing_s"] = trainer.computing_s + optimizer.computing_s
            recorder.notes["total_s"] = time.monotonic() - began_s

        watcher = threading.Thread(target=note, daemon=True)
        watcher.start()
        super().train(recorder, stopping)
        watcher.join()
        recorder.notes["samples"] = trainer.samples_total


if __name__ == "__main__":
    sys.exit(serve(Timed()))
