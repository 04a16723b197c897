"""hivemind's `DecentralizedAverager` on a 2-d grid, as a worker of `scripts.bench.grouping`: Moshpit averaging as the library offers it.

Members start in the rows of the grid (`initial_group_bits`); after each round hivemind moves every member to a group of its own choice by
its place in the last one. Orders and events as lines of JSON:

    {"op": "open", "rank", "peers", "max_group", "elems", "seed", "expected", "timeout_s", "bootstrap"}
        -> {"event": "bootstrap", "value": {...}} (rank 0)  -> {"event": "ready", "about": {...}}
    {"op": "average", "round": k, "start_at_s": t}
        -> {"event": "averaged", "seconds": s, "group": n, "rel_error": e, "failure": ""}    a group of 0: no round
    {"op": "close"} or end of file  -> {"event": "closed"}
"""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hivemind
import torch
from hivemind.averaging import DecentralizedAverager

from scripts.bench import data
from scripts.bench.averaging_hivemind import MIN_MATCHMAKING_TIME_S, REQUEST_TIMEOUT_S
from scripts.bench.worker import Lines


class GridAverager:
    """One peer: a DHT node, its libp2p daemon and an averager."""

    def __init__(self, task: dict[str, Any], lines: Lines) -> None:
        rank, self._expected = int(task["rank"]), Path(task["expected"])
        initial_peers = task["bootstrap"]["initial_peers"] if task["bootstrap"] else []
        self._timeout_s = float(task["timeout_s"])
        self._dht = hivemind.DHT(initial_peers=initial_peers, host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True)
        if rank == 0:
            lines.send("bootstrap", value={"initial_peers": [str(address) for address in self._dht.get_visible_maddrs()]})
        max_group = int(task["max_group"])
        group_bits = (max_group - 1).bit_length()
        self._averager = DecentralizedAverager(
            [torch.from_numpy(data.vector(int(task["seed"]), rank, int(task["elems"])))],
            self._dht,
            start=True,
            prefix="grouping_benchmark",
            target_group_size=max_group,
            initial_group_bits=f"{rank // max_group:0{group_bits}b}",
            min_matchmaking_time=MIN_MATCHMAKING_TIME_S,
            request_timeout=REQUEST_TIMEOUT_S,
            allow_state_sharing=False,
        )

    def average(self) -> dict[str, Any]:
        """One round in whatever group is found; what is averaged stays for the next round."""
        began_s = time.monotonic()
        failure, group = "", 0
        step = self._averager.step(timeout=self._timeout_s, wait=False)
        try:
            # Its own timeout bounds the search for a group only: a member that lost its group would wait on.
            group = len(step.result(timeout=self._timeout_s) or {})
        except Exception as raised:  # noqa: BLE001  whatever the library raises is a failed round, to be counted
            failure = repr(raised)
            step.cancel()
        seconds = time.monotonic() - began_s
        with self._averager.get_tensors() as tensors:
            error = data.relative_error(self._expected, tensors[0].numpy(), 0)
        return {"seconds": seconds, "group": group, "rel_error": error, "failure": failure}

    def close(self) -> None:
        """Shut both processes and the daemon down."""
        self._averager.shutdown()
        self._dht.shutdown()


def main() -> int:
    """Follow orders until told to close; 0."""
    lines = Lines()
    order = lines.receive()
    if order["op"] == "close":
        return 0
    averager = GridAverager(order, lines)
    try:
        about = {"hivemind": version("hivemind"), "min_matchmaking_time_s": MIN_MATCHMAKING_TIME_S, "request_timeout_s": REQUEST_TIMEOUT_S}
        lines.send("ready", about=about)
        while (order := lines.receive())["op"] != "close":
            time.sleep(max(0.0, float(order["start_at_s"]) - time.monotonic()))
            lines.send("averaged", **averager.average())
    finally:
        averager.close()
    lines.send("closed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
