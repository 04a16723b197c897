"""One of our members as a worker of the planning benchmark: the last one probes as `swarm-peer join` does, and all say what epochs cost.

Beside the folder of the snapshots each leaves `epochs-<rank>.json`: for every epoch as it begins the time, payload sent and received by
then, how long the trainer had computed, its pace, and how long rounds had run beside computing; and when the probe was through.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass

from scripts.bench.training_member import Recorder, Task, serve
from scripts.bench.utilisation_ours import Timed, TimedOptimizer, TimedTrainer
from scripts.bench.worker import Publish
from swarm.surveying import surveying

POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class EpochBegin:
    """What had been done when a member came to hold an epoch's state; times are monotonic."""

    at_s: float
    epoch: int
    sent_bytes: int
    received_bytes: int
    computing_s: float
    pace_s: float
    pace_samples: int
    averaging_s: float


class Planned(Timed):
    """One member; rank 0 founds the run and trains like the others."""

    def open(self, task: Task, publish: Publish) -> dict[str, object]:
        """As it is."""
        self._task = task
        return super().open(task, publish)

    def probes(self, task: Task) -> bool:
        """The last one joins."""
        return task.rank == task.peers - 1

    def train(self, recorder: Recorder, stopping: threading.Event) -> None:
        """The library's loop, watched."""
        probed_s: list[float] = []
        begins: list[EpochBegin] = []
        watcher = threading.Thread(target=self._watch, args=(begins, stopping), daemon=True)
        watcher.start()
        probe = surveying(self._connection, self._trainer, lambda text: probed_s.append(time.monotonic()))
        with probe if self.probes(self._task) else nullcontext():
            super().train(recorder, stopping)
        watcher.join()
        found = {"probed_s": probed_s[0] if probed_s else None, "begins": [asdict(begin) for begin in begins]}
        (self._task.directory / f"epochs-{self._task.rank}.json").write_text(json.dumps(found), encoding="utf-8")

    def _watch(self, begins: list[EpochBegin], stopping: threading.Event) -> None:
        """The network side shows its totals at the moment at which a new epoch is announced: nothing of the next one has moved then."""
        trainer, optimizer, me = self._trainer, self._optimizer, self._connection.peer
        if not isinstance(trainer, TimedTrainer) or not isinstance(optimizer, TimedOptimizer):
            raise TypeError("what was built does not tell how long it computes")
        averaging_s, looked_s = 0.0, time.monotonic()
        while not stopping.wait(POLL_S):
            now_s = time.monotonic()
            averaging_s, looked_s = averaging_s + (now_s - looked_s) * optimizer.averaging, now_s
            own = next((member for member in self._connection.handle.view().members if member.peer == me), None)
            if own is None or (begins and own.epoch == begins[-1].epoch):
                continue
            computing_s = trainer.computing_s + optimizer.computing_s
            moved, pace = (own.sent_bytes, own.received_bytes), trainer.pace.computed
            begins.append(EpochBegin(now_s, own.epoch, *moved, computing_s, pace.seconds, pace.samples, averaging_s))


if __name__ == "__main__":
    sys.exit(serve(Planned()))
