"""A worker's side of the training benchmark: what a system must offer, what is recorded while it trains, and the loop of orders.

Orders and events as lines of JSON:

    {"op": "open", fields of `Task`}
        -> {"event": "bootstrap", "value": {...}}     rank 0 only, as soon as the others can join; its value is their "bootstrap"
        -> {"event": "ready", "about": {...}}         built, and in touch with the others
    {"op": "go"}   -> {"event": "begun", "at_s": t}   computing begins
    {"op": "stop"} -> {"event": "finished", "samples", "sent_bytes", "received_bytes", "notes"}     counted when the order came
    end of file    -> the worker ends

Losses are not measured here: rank 0 writes the shared parameters down when they change, with the time, which costs some milliseconds and is
the same for all systems. The orchestrator measures them when nobody trains any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from protocols.runspec import DataSection
from scripts.bench.worker import Lines, Publish
from swarm.data.assignment import window_offsets
from swarm.data.dataset import Dataset, load_dataset
from swarm.training.gradients import LossSum, accumulate_gradients

FIRST_GAP_S = 1.0
GAP_GROWTH = 0.08
"""Snapshots are so far apart, and this part of the time that has passed: curves are steep at first."""

_DEVICE = "eth0"
_RECEIVED_FIELD, _SENT_FIELD = 0, 8  # of /proc/net/dev, counted from the one after the device's name


@dataclass(frozen=True, slots=True)
class Task:
    """What one worker is told at the start.

    Args:
        rank: which of the members it is, from 0.
        peers: how many train together.
        address: IPv4 address of the host it runs on.
        seed: of the model and of the samples.
        model: a run's model section.
        sequence_length: tokens predicted in a window.
        micro_batch_samples: windows in one forward and backward pass.
        settings: what the system's own module understands.
        directory: scratch, shared by all workers of this system.
        bootstrap: what rank 0 published for the others; None for rank 0 itself.
    """

    rank: int
    peers: int
    address: str
    seed: int
    model: dict[str, Any]
    sequence_length: int
    micro_batch_samples: int
    settings: dict[str, Any]
    directory: Path
    bootstrap: dict[str, Any] | None = None

    @property
    def data(self) -> DataSection:
        """A run's data section."""
        return DataSection(sequence_length=self.sequence_length)

    @property
    def snapshots(self) -> Path:
        """Where rank 0 writes parameters down."""
        return self.directory / "snapshots"


class Recorder:
    """Counts samples and, on rank 0, writes parameters down.

    Args:
        folder: for files named by the monotonic time in seconds; None: nothing is written.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._began_s = self._due_s = 0.0
        self.samples: Callable[[], int] = lambda: 0
        """Computed by this member so far."""
        self.notes: dict[str, Any] = {}
        """What else the system has to say about itself."""

    def begin(self) -> float:
        """Computing begins; returns the monotonic time."""
        self._began_s = self._due_s = time.monotonic()
        return self._began_s

    def changed(self, parameters: Iterable[torch.Tensor], *, last: bool = False) -> None:
        """The shared parameters have changed: write them down if it is time, or if these are the last."""
        now_s = time.monotonic()
        if self._folder is None or (now_s < self._due_s and not last):
            return
        self._due_s = now_s + FIRST_GAP_S + GAP_GROWTH * (now_s - self._began_s)
        flat_D = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        np.save(self._folder / f"{now_s:.3f}.npy", flat_D.numpy())


class OwnSamples:
    """One member's share of the computing, for systems that leave the loop to their users: windows of its own, by micro-batches."""

    def __init__(self, task: Task, model: torch.nn.Module) -> None:
        self._task = task
        self._model = model
        self._dataset: Dataset = load_dataset(task.data, Path.cwd())
        self._key = blake2b(f"member {task.rank}".encode(), digest_size=32).digest()
        self.samples = 0

    def accumulate(self) -> LossSum:
        """Add the gradients of the next micro-batch, summed over its samples."""
        indices = range(self.samples, self.samples + self._task.micro_batch_samples)
        offsets = window_offsets(self._task.seed, 0, self._key, indices, self._dataset.positions)
        loss = accumulate_gradients(self._model, self._dataset.sample(offsets))
        self.samples += loss.samples
        return loss


class TrainingSystem(Protocol):
    """One system as one member sees it. Calls come in this order, on the main thread."""

    def open(self, task: Task, publish: Publish) -> dict[str, Any]:
        """Build everything and get in touch; rank 0 calls `publish` once, as soon as the others can join with that.

        Returns:
            Versions and settings worth reporting.
        """

    def train(self, recorder: Recorder, stopping: threading.Event) -> None:
        """Train until told to stop."""

    def close(self) -> None:
        """End everything this member has started."""


@dataclass
class _Counts:
    """What is counted between the order to go and the order to stop."""

    sent: int = 0
    received: int = 0
    samples: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)


def interface_bytes(table: str, device: str = _DEVICE) -> tuple[int, int]:
    """Bytes sent and received by a network device, frame headers included.

    Args:
        table: text of /proc/net/dev.
        device: its name; (0, 0) if it is not in the table.
    """
    for line in table.splitlines():
        name, colon, rest = line.partition(":")
        if colon and name.strip() == device:
            numbers = [int(word) for word in rest.split()]
            return numbers[_SENT_FIELD], numbers[_RECEIVED_FIELD]
    return 0, 0


def serve(system: TrainingSystem) -> int:
    """Follow orders until told to close.

    Returns:
        Process exit code: 0. A failure ends the process with its traceback, which the orchestrator shows.
    """
    lines = Lines()
    order = lines.receive()
    if order["op"] == "close":
        return 0
    torch.set_num_threads(1)  # there are more members than cores
    fields = {name: value for name, value in order.items() if name != "op"}
    task = Task(**{**fields, "directory": Path(fields["directory"])})
    recorder = Recorder(task.snapshots if task.rank == 0 else None)
    try:
        lines.send("ready", about=system.open(task, lambda value: lines.send("bootstrap", value=value)))
        if lines.receive()["op"] == "go":
            counts = _train(system, recorder, lines)
            bytes_moved = {"sent_bytes": counts.sent, "received_bytes": counts.received}
            lines.send("finished", samples=counts.samples, notes=recorder.notes, **bytes_moved)
            lines.receive()
    finally:
        system.close()
    return 0


def _train(system: TrainingSystem, recorder: Recorder, lines: Lines) -> _Counts:
    counts = _Counts()
    sent, received = interface_bytes(Path("/proc/self/net/dev").read_text())

    def await_stop() -> None:
        lines.receive()
        # Now: the main thread may be in the middle of something that takes long.
        sent_now, received_now = interface_bytes(Path("/proc/self/net/dev").read_text())
        counts.sent, counts.received, counts.samples = sent_now - sent, received_now - received, recorder.samples()
        counts.stopping.set()

    thread = threading.Thread(target=await_stop, daemon=True)
    lines.send("begun", at_s=recorder.begin())
    thread.start()
    system.train(recorder, counts.stopping)
    thread.join()
    return counts
