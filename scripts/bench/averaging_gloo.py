"""torch's gloo all-reduce as a worker of the averaging benchmark: no encryption, fixed membership, the floor to compare with."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from scripts.bench.worker import Publish, Task, serve


class Gloo:
    """One rank of a gloo process group on loopback. Vectors always travel as fp32."""

    def open(self, task: Task, publish: Publish) -> dict[str, Any]:
        """Join the group through a shared file."""
        # Several threads in each of several processes would fight for the same few cores.
        torch.set_num_threads(1)
        self._buffer_D = torch.empty(task.elems, dtype=torch.float32)
        self._share = task.weight / sum(task.weights)
        self._peers = task.peers
        if task.rank == 0:
            publish({})
        dist.init_process_group(
            "gloo",
            init_method=f"file://{task.directory}/rendezvous",
            rank=task.rank,
            world_size=task.peers,
            timeout=timedelta(seconds=task.timeout_s),
        )
        return {"torch": torch.__version__, "threads": torch.get_num_threads()}

    def load(self, vector_D: NDArray[np.float32]) -> None:
        """Copy the vector, shape (D,), into the buffer that is reduced."""
        self._buffer_D.copy_(torch.from_numpy(vector_D))

    def average(self) -> int:
        """Scale by the own share of the weight, then sum over all ranks."""
        self._buffer_D.mul_(self._share)
        dist.all_reduce(self._buffer_D, op=dist.ReduceOp.SUM)
        return self._peers

    def result(self) -> NDArray[np.float32]:
        """The reduced buffer, shape (D,)."""
        return self._buffer_D.numpy()

    def notes(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(serve(Gloo()))
