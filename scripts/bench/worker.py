"""A worker's side of the averaging benchmark: the loop that speaks the JSON line protocol, and what a system must offer to be measured.

The protocol is written at the top of `scripts.bench.averaging`. A system's module ends with

    if __name__ == "__main__":
        sys.exit(serve(System()))

and everything it does happens on the main thread of its own process (hivemind's averager works nowhere else).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scripts.bench import data

EXPECTED_FILE = "expected.f64"

Publish = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Task:
    """What one worker is told at the start.

    Args:
        rank: which of the peers it is, from 0.
        peers: how many average together.
        elems: D, length of the vectors.
        seed: determines everybody's vector.
        codec: how vectors travel, a name of `protocols.codecs`.
        weights: everybody's weight, by rank.
        directory: a directory all workers of this system share, for files of theirs.
        timeout_s: how long a round may take, seconds.
        bootstrap: what rank 0 published for the others; None for rank 0 itself.
        address: IPv4 address of the host it runs on.
        link_bytes_per_s: what that host's link carries each way, for systems whose users have to say so; None if it is not limited.
        block_elems: elements of a block, for systems that have blocks.
    """

    rank: int
    peers: int
    elems: int
    seed: int
    codec: str
    weights: tuple[float, ...]
    directory: Path
    timeout_s: float
    bootstrap: dict[str, Any] | None
    address: str
    link_bytes_per_s: float | None
    block_elems: int

    @property
    def weight(self) -> float:
        """This worker's own weight."""
        return self.weights[self.rank]


class System(Protocol):
    """One averaging system as one peer sees it. Calls come in the order below, `load` to `result` once a round."""

    def open(self, task: Task, publish: Publish) -> dict[str, Any]:
        """Get ready for the first round.

        Rank 0 calls `publish` once, as soon as the others can join with what it publishes; the others find that in `task.bootstrap`.

        Returns:
            Versions and settings worth reporting.
        """

    def load(self, vector_D: NDArray[np.float32]) -> None:
        """Take the vector of the coming round, shape (D,). Not timed: training leaves it where the averager finds it."""

    def average(self) -> int:
        """Run one round to its end: return once this peer holds the result. Timed.

        Returns:
            How many peers' vectors are in the result.
        """

    def result(self) -> NDArray[np.float32]:
        """The result of the round, shape (D,). Not timed."""

    def notes(self) -> dict[str, Any]:
        """What else this peer has to say about the round, for the report."""

    def close(self) -> None:
        """End everything this peer has started."""


class Lines:
    """The pipe to the orchestrator. Standard output is taken away from everybody else, so that no library can break the protocol."""

    def __init__(self) -> None:
        self._out: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, event: str, **fields: object) -> None:
        """Tell the orchestrator something."""
        self._out.write(json.dumps({"event": event, **fields}) + "\n")
        self._out.flush()

    @staticmethod
    def receive() -> dict[str, Any]:
        """The next order; a closed pipe (the orchestrator has ended) reads as the order to close."""
        line = sys.stdin.readline()
        order: dict[str, Any] = json.loads(line) if line else {"op": "close"}
        return order


def _task(order: dict[str, Any]) -> Task:
    fields = {name: value for name, value in order.items() if name != "op"}
    return Task(**{**fields, "weights": tuple(fields["weights"]), "directory": Path(fields["directory"])})


def serve(system: System) -> int:
    """Follow orders until told to close.

    Returns:
        Process exit code: 0. A failure ends the process with its traceback, which the orchestrator shows.
    """
    lines = Lines()
    order = lines.receive()
    if order["op"] == "close":
        return 0
    task = _task(order)
    own_D = data.vector(task.seed, task.rank, task.elems)
    try:
        lines.send("ready", about=system.open(task, lambda value: lines.send("bootstrap", value=value)))
        while (order := lines.receive())["op"] != "close":
            _obey(system, task, own_D, order, lines)
    finally:
        system.close()
    lines.send("closed")
    return 0


def _obey(system: System, task: Task, own_D: NDArray[np.float32], order: dict[str, Any], lines: Lines) -> None:
    number = int(order["round"])
    if order["op"] == "load":
        system.load(data.rotated(own_D, number))
        lines.send("loaded")
    elif order["op"] == "average":
        time.sleep(max(0.0, float(order["start_at_s"]) - time.monotonic()))
        contributors = system.average()
        lines.send("averaged", finished_at_s=time.monotonic(), contributors=contributors)
    else:
        result_D = np.ascontiguousarray(system.result())
        error = data.max_abs_error(task.directory.parent / EXPECTED_FILE, result_D, number)
        digest = hashlib.blake2b(result_D.view(np.uint8).data, digest_size=16).hexdigest()
        lines.send("checked", max_abs_error=error, digest=digest, notes=system.notes())
