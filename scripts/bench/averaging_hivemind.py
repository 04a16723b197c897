"""hivemind's `DecentralizedAverager` as a worker of the averaging benchmark, as its users have it: own DHT, matchmaking every round."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

import hivemind
import numpy as np
import torch
from hivemind.averaging import DecentralizedAverager
from numpy.typing import NDArray

from scripts.bench.hivemind_codecs import described, nearest, repair
from scripts.bench.worker import Publish, Task, serve

MIN_MATCHMAKING_TIME_S = 5.0
"""hivemind's default. A group that is full starts at once, so this is an upper bound here, not a wait."""

REQUEST_TIMEOUT_S = 3.0
"""hivemind's default."""


class Hivemind:
    """One peer: a DHT node, its libp2p daemon and an averager, each in a process of its own, as the library does it."""

    _dht: hivemind.DHT | None = None
    _averager: DecentralizedAverager | None = None

    def open(self, task: Task, publish: Publish) -> dict[str, Any]:
        """Start the DHT, then the averager; rank 0's addresses are what the others join by."""
        repair()
        self._task = task
        compression = nearest(task.codec)
        initial_peers = task.bootstrap["initial_peers"] if task.bootstrap else []
        self._dht = hivemind.DHT(initial_peers=initial_peers, host_maddrs=[f"/ip4/{task.address}/tcp/0"], start=True)
        if task.rank == 0:
            publish({"initial_peers": [str(address) for address in self._dht.get_visible_maddrs()]})
        self._averager = DecentralizedAverager(
            [torch.zeros(task.elems, dtype=torch.float32)],
            self._dht,
            start=True,
            prefix="averaging_benchmark",
            target_group_size=task.peers,
            # A smaller group would be quicker and wrong: the result is to be everybody's mean.
            min_group_size=task.peers,
            min_matchmaking_time=MIN_MATCHMAKING_TIME_S,
            request_timeout=REQUEST_TIMEOUT_S,
            compression=compression,
            bandwidth=task.link_bytes_per_s,
            allow_state_sharing=False,
        )
        return {
            "hivemind": version("hivemind"),
            "min_matchmaking_time_s": MIN_MATCHMAKING_TIME_S,
            "request_timeout_s": REQUEST_TIMEOUT_S,
            "compression": described(compression),
        }

    def load(self, vector_D: NDArray[np.float32]) -> None:
        """Copy the vector, shape (D,), into the tensor the averager shares with its process."""
        with self._running().get_tensors() as tensors:
            tensors[0].copy_(torch.from_numpy(vector_D))

    def average(self) -> int:
        """Find the group and average in place."""
        gathered = self._running().step(gather={"rank": self._task.rank}, weight=self._task.weight, timeout=self._task.timeout_s)
        return len(gathered or {})

    def result(self) -> NDArray[np.float32]:
        """The averaged tensor, shape (D,)."""
        with self._running().get_tensors() as tensors:
            result_D: NDArray[np.float32] = tensors[0].numpy().copy()
        return result_D

    def notes(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Shut both processes and the daemon down."""
        if self._averager is not None:
            self._averager.shutdown()
        if self._dht is not None:
            self._dht.shutdown()

    def _running(self) -> DecentralizedAverager:
        if self._averager is None:
            raise RuntimeError("open() comes first")
        return self._averager


if __name__ == "__main__":
    sys.exit(serve(Hivemind()))
