"""One of our members as a worker of the training benchmark: real connection, optimizer and training loop, as `swarm.runtime` joins them.

Three things differ from `swarm-peer`: nobody computes before all are there, the shared parameters are written down as epochs close, and the
training thread has the same priority as those of the other systems, which a machine with other work would favour otherwise.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from peers.clock import SystemClock
from protocols.runspec import RunSpec
from scripts.bench.training_member import Recorder, Task, serve
from scripts.bench.worker import Publish
from swarm.checkpoint.store import CheckpointStore
from swarm.config import PeerConfig
from swarm.connection import connect, found
from swarm.environment import prepare_libraries
from swarm.models.build import build_model
from swarm.models.imports import import_libraries
from swarm.optim.collaborative import CollaborativeOptimizer
from swarm.optim.outcome import StepOutcome
from swarm.runfile import open_dataset, open_run
from swarm.runtime import make_optimizer, rule_settings
from swarm.training.trainer import EpochAction, Trainer, TrainerSettings

MEET_TIMEOUT_S = 90.0
INVITE_TIMEOUT_S = 60.0
NEVER = 10**9
_POLL_S = 0.1


class Ours:
    """One member; rank 0 founds the run and trains like the others."""

    trainer_type: type[Trainer] = Trainer
    optimizer_type: type[CollaborativeOptimizer] = CollaborativeOptimizer

    def __init__(self) -> None:
        self._stack = ExitStack()

    def open(self, task: Task, publish: Publish) -> dict[str, Any]:
        """Connect, build the trainer, and wait until everybody is known."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(name)s %(message)s", datefmt="%H:%M:%S")
        prepare_libraries()
        self._config = PeerConfig(
            state_dir=task.directory / f"member-{task.rank}",
            listen=f"{task.address}:0",
            announce=task.address,
            libp2p_listen=f"/ip4/{task.address}/tcp/0",
            device="cpu",
            threads=1,
            niceness=0,
            checkpoint_every_epochs=NEVER,  # no other system writes any
            probe=self.probes(task),
        )
        if task.bootstrap is None:
            self._found(task, publish)
        else:
            self._connection = self._stack.enter_context(connect(task.bootstrap["invite"], self._config))
        import_libraries(self._connection.check)
        self._build(task)
        self._meet(task.peers)
        return task.settings

    def probes(self, task: Task) -> bool:
        """Whether this member measures its machine and link; no other system does."""
        del task
        return False

    def _found(self, task: Task, publish: Publish) -> None:
        signed, authority = open_run(self._config.state_dir, RunSpec.from_settings(task.settings), now=SystemClock().now())
        invites: queue.Queue[str] = queue.Queue()
        self._connection = self._stack.enter_context(found(self._config, signed, authority, invites.put))
        publish({"invite": invites.get(timeout=INVITE_TIMEOUT_S)})

    def _build(self, task: Task) -> None:
        spec = self._connection.spec
        self._model = build_model(spec.model.model_dump(exclude_none=True), spec.run.seed)
        self._optimizer = self.optimizer_type(
            self._model,
            make_optimizer(spec, self._model),
            peer=self._connection.handle,
            target_batch_samples=spec.optimizer.target_batch_samples,
            rule=rule_settings(spec),
        )
        settings = TrainerSettings(
            self._connection.peer,
            spec.run.seed,
            task.micro_batch_samples,
            replays=spec.trust.verify and spec.trust.auditors > 0,
            checkpoint_every_epochs=NEVER,
        )
        self._trainer = self.trainer_type(
            self._model,
            self._optimizer,
            self._connection.handle,
            open_dataset(spec, Path.cwd()),
            CheckpointStore(self._config.checkpoints_dir, 1),
            settings,
            (EpochAction(1, self._epoch_changed),),
        )

    def _meet(self, peers: int) -> None:
        deadline_s = time.monotonic() + MEET_TIMEOUT_S
        while len(self._connection.handle.view().members) < peers:
            self._connection.check()
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"only {len(self._connection.handle.view().members)} of {peers} members are known")
            time.sleep(_POLL_S)

    def train(self, recorder: Recorder, stopping: threading.Event) -> None:
        """The library's loop, until told to stop."""
        self._recorder = recorder
        self._statuses: Counter[str] = Counter()
        self._epoch_times_s: list[float] = []
        self._began_s = time.monotonic()
        recorder.samples = lambda: self._trainer.samples_total
        self._write_down()

        def stop() -> None:
            stopping.wait()
            self._connection.network.request_stop()

        threading.Thread(target=stop, daemon=True).start()
        epochs = self._trainer.run()
        self._write_down(last=True)
        recorder.notes.update(epochs=epochs, statuses=dict(self._statuses), epoch_times_s=self._epoch_times_s)

    def _epoch_changed(self, outcome: StepOutcome) -> None:
        self._epoch_times_s.append(round(time.monotonic() - self._began_s, 2))
        self._statuses[f"{outcome.status} with {len(outcome.contributors)}"] += 1
        self._write_down()

    def _write_down(self, *, last: bool = False) -> None:
        with self._optimizer.shared_parameters():
            self._recorder.changed(self._model.parameters(), last=last)

    def close(self) -> None:
        """Leave the swarm."""
        self._stack.close()


if __name__ == "__main__":
    sys.exit(serve(Ours()))
