"""Memory that large messages pass through, kept for the next ones instead of going back to the kernel."""

from __future__ import annotations

import ctypes
import logging
import mmap
import sys
import threading
import weakref
from collections import deque
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_BYTES = 2**30
_SMALL_BYTES = 2**16
_GRAIN_BYTES = 2**16


def keep_freed_memory() -> None:
    """Tell glibc to reuse large buffers that were freed, up to 1 GiB.

    By default every buffer above some hundred KiB is mapped anew and unmapped when freed, and the kernel clears each of its pages again:
    a fifth of the CPU time of an averaging round. Elsewhere than on Linux with glibc nothing happens. Idempotent.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        log.debug("this C library has no mallopt")
        return
    mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


class KeptMemory:
    """Lends large buffers and vectors, and takes them back by itself when nobody looks at them any more.

    Fresh memory costs a page fault every 4 KiB, and the kernel clears each page: more time than everything else that an averaging round
    does with it. glibc cannot help with buffers above 64 MiB outside the main thread. Loans may end in any thread.

    Args:
        most_bytes: what is kept for later at most; the oldest go first.
    """

    def __init__(self, most_bytes: int = _KEEP_BYTES) -> None:
        self._most_bytes = most_bytes
        self._free: list[mmap.mmap] = []
        self._returned: deque[mmap.mmap] = deque()
        self._lock = threading.Lock()

    def array(self, size_bytes: int) -> NDArray[np.uint8]:
        """Writable memory; what is in it is undefined. It goes back when the array and all views of it are gone."""
        if size_bytes < _SMALL_BYTES:
            return np.empty(size_bytes, dtype=np.uint8)
        room_bytes = -(-size_bytes // _GRAIN_BYTES) * _GRAIN_BYTES
        kept = self._take(room_bytes) or _huge_pages(room_bytes)
        array = np.frombuffer(kept, dtype=np.uint8, count=size_bytes)
        weakref.finalize(array, self._give_back, kept).atexit = False
        return array

    def vector(self, size_elems: int) -> torch.Tensor:
        """An fp32 vector of that many elements, with the same conditions."""
        return torch.from_numpy(self.array(size_elems * 4).view(np.float32))

    @property
    def free_bytes(self) -> int:
        """What is kept and not lent."""
        return sum(len(kept) for kept in (*self._free, *self._returned))

    def _take(self, room_bytes: int) -> mmap.mmap | None:
        with self._lock:
            while self._returned:
                self._free.append(self._returned.popleft())
            while sum(map(len, self._free)) > self._most_bytes:
                del self._free[0]
            for position in range(len(self._free) - 1, -1, -1):
                if len(self._free[position]) == room_bytes:
                    return self._free.pop(position)
        return None

    def _give_back(self, kept: mmap.mmap) -> None:
        """May run within the garbage collector, in any thread, even one that holds the lock."""
        self._returned.append(kept)


def _huge_pages(size_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
