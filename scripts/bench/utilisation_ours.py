"""One of our members as a worker of the utilisation benchmark: as in the training benchmark, and it says how long its trainer computed."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from protocols.ids import Epoch, PeerId
from scripts.bench.training_member import Recorder, Task, serve
from scripts.bench.training_ours import Ours
from scripts.bench.worker import Publish
from swarm.training.gradients import LossSum
from swarm.training.trainer import Trainer


class TimedTrainer(Trainer):
    """Adds up the time in which it computes: forward, backward and inner step."""

    computing_s = 0.0

    def _compute(self, epoch: Epoch, member: PeerId, indices: range, *, bf16: bool | None = None) -> LossSum:
        began_s = time.monotonic()
        try:
            return super()._compute(epoch, member, indices, bf16=bf16)
        finally:
            self.computing_s += time.monotonic() - began_s


class Timed(Ours):
    """One member; rank 0 founds the run and trains like the others."""

    trainer_type = TimedTrainer

    def open(self, task: Task, publish: Publish) -> dict[str, Any]:
        """As in the training benchmark."""
        self._stepping_s = self._step_began_s = 0.0
        about = super().open(task, publish)
        self._inner.register_step_pre_hook(self._step_begins)
        self._inner.register_step_post_hook(self._step_ends)
        return about

    def _step_begins(self, *_: object) -> None:
        self._step_began_s = time.monotonic()

    def _step_ends(self, *_: object) -> None:
        self._stepping_s += time.monotonic() - self._step_began_s

    def train(self, recorder: Recorder, stopping: threading.Event) -> None:
        """The library's loop, until told to stop."""
        trainer = self._trainer
        if not isinstance(trainer, TimedTrainer):
            raise TypeError("the trainer that was built does not tell how long it computes")
        began_s = time.monotonic()

        def note() -> None:
            stopping.wait()
            recorder.notes["computing_s"] = trainer.computing_s + self._stepping_s
            recorder.notes["total_s"] = time.monotonic() - began_s

        watcher = threading.Thread(target=note, daemon=True)
        watcher.start()
        super().train(recorder, stopping)
        watcher.join()
        recorder.notes["samples"] = trainer.samples_total


if __name__ == "__main__":
    sys.exit(serve(Timed()))
