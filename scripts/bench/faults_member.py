"""One member of the fault benchmark: the averaging layer with its real connections, and a directory that it is handed instead of the DHT.

Orders and events as lines of JSON:

    {"op": "open", "rank", "peers", "elems", "seed", "codec", "weights", ...}     fields of `scripts.bench.worker.Task`
        -> {"event": "ready"}                                   "rank" numbers the processes, spares included
    {"op": "meet", "slot", "epoch", "bandwidth", "processes": [rank, ...]}  -> {"event": "met"}       who takes part from now on
    {"op": "load", "epoch"}                                                 -> {"event": "loaded"}
    {"op": "average", "epoch", "start_at_s"}
        -> {"event": "averaged", "finished_at_s", "digest", "members", "included", "failure"}
    {"op": "check", "epoch", "without"}                                     -> {"event": "checked", "wrong_blocks": n}
    {"op": "close"} or end of file                                          -> {"event": "closed"}

"slot" is one of the six places of the benchmark: it determines vector and weight, whichever process fills it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peers.interfaces import Endpoint
from peers.memory import keep_freed_memory
from protocols.errors import RoundError
from protocols.ids import Epoch, PeerId
from protocols.messages import Join
from scripts.bench import data
from scripts.bench.averaging_ours import Ours, read_endpoint
from scripts.bench.worker import EXPECTED_FILE, Lines, Publish, Task

log = logging.getLogger("faults_member")

STATE_HASH = b"s" * 32
TOLERANCE = 1e-5
"""Absolute, on values of about 1: rounding leaves 1e-6, a block with the wrong contributors differs by 0.1."""


class FaultMember(Ours):
    """One process, which fills a slot or waits as a spare."""

    measures_links = False  # a fresh process is to reduce as much as the one it takes the place of

    def open(self, task: Task, publish: Publish) -> dict[str, Any]:
        """Listen; who else is there is said by `meet`."""
        torch.set_num_threads(1)
        keep_freed_memory()
        self._thread.start()
        self._task = task
        self._run(self._open(task))
        return {}

    async def _meet(self, task: Task) -> dict[PeerId, Endpoint]:
        return {}

    def meet(self, order: dict[str, Any]) -> None:
        """Fill a slot among these processes."""
        self._slot, self._bandwidth = int(order["slot"]), int(order["bandwidth"])
        self._weight = self._task.weights[self._slot]
        self._vector_D = data.vector(self._task.seed, self._slot, self._task.elems)
        self._run(self._know(Epoch(int(order["epoch"])), [int(rank) for rank in order["processes"]]))

    async def _know(self, epoch: Epoch, ranks: list[int]) -> None:
        self._averager.held_epoch(epoch)
        known = [read_endpoint(self._task.directory / f"peer-{rank}.json") for rank in ranks if rank != self._task.rank]
        self._directory.others.clear()
        self._directory.others.update({endpoint.peer: endpoint for endpoint in known})

    def load_epoch(self, epoch: int) -> None:
        """Make the contribution of an epoch."""
        self.load(data.rotated(self._vector_D, epoch))

    def average_epoch(self, epoch: int, start_at_s: float) -> dict[str, Any]:
        """One round, begun at a common moment of the monotonic clock."""
        time.sleep(max(0.0, start_at_s - time.monotonic()))
        log.info("epoch %d begins", epoch)
        join = Join(Epoch(epoch), STATE_HASH, self._weight, self._bandwidth)
        try:
            self._averaged = self._run(self._averager.average_epoch(join, self._own_D))
        except RoundError as error:
            return {"finished_at_s": time.monotonic(), "digest": "", "members": 0, "included": False, "failure": str(error)}
        finished_at_s = time.monotonic()
        log.info("epoch %d is done", epoch)
        digest = hashlib.blake2b(self.result().view(np.uint8).data, digest_size=16).hexdigest()
        included = self._averaged.included_us
        return {
            "finished_at_s": finished_at_s,
            "digest": digest,
            "members": len(self._averaged.members),
            "included": included,
            "failure": "",
        }

    def wrong_blocks(self, epoch: int, without: int) -> int:
        """Blocks of the last result that are neither the mean of all slots nor that of all but `without` (-1: of all)."""
        whole_D = np.roll(np.fromfile(self._task.directory / EXPECTED_FILE, dtype=np.float64), data.SHIFT_ELEMS * epoch)
        allowed = [whole_D]
        if without >= 0:
            weight, total = self._task.weights[without], sum(self._task.weights)
            part_D = data.rotated(data.vector(self._task.seed, without, self._task.elems), epoch).astype(np.float64)
            allowed.append((whole_D * total - part_D * weight) / (total - weight))
        return count_wrong(self.result(), allowed, self._task.block_elems)


def count_wrong(result_D: np.ndarray[Any, Any], allowed: list[np.ndarray[Any, Any]], block_elems: int) -> int:
    """Blocks of `result_D`, shape (D,), that are close to the same block of none of the allowed vectors."""
    wrong = 0
    for start in range(0, result_D.size, block_elems):
        where = slice(start, start + block_elems)
        wrong += not any(np.abs(result_D[where] - mean_D[where]).max() < TOLERANCE for mean_D in allowed)
    return wrong


def _obey(member: FaultMember, order: dict[str, Any], lines: Lines) -> None:
    match order["op"]:
        case "meet":
            member.meet(order)
            lines.send("met")
        case "load":
            member.load_epoch(int(order["epoch"]))
            lines.send("loaded")
        case "average":
            lines.send("averaged", **member.average_epoch(int(order["epoch"]), float(order["start_at_s"])))
        case "check":
            lines.send("checked", wrong_blocks=member.wrong_blocks(int(order["epoch"]), int(order["without"])))


def main() -> int:
    """Follow orders until told to close; 0."""
    lines = Lines()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(name)s %(message)s", datefmt="%H:%M:%S")
    order = lines.receive()
    if order["op"] == "close":
        return 0
    fields = {name: value for name, value in order.items() if name != "op"}
    member = FaultMember()
    try:
        member.open(Task(**{**fields, "weights": tuple(fields["weights"]), "directory": Path(fields["directory"])}), lambda value: None)
        lines.send("ready")
        while (order := lines.receive())["op"] != "close":
            _obey(member, order, lines)
    finally:
        os._exit(0)  # there is nothing to hand in, and orderly leaving is not what is measured
    return 0


if __name__ == "__main__":
    sys.exit(main())
