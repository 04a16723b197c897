"""Large buffers that are used again: fresh memory costs a page fault every 4 KiB."""

from __future__ import annotations

_GRAIN_BYTES = 2**16
_MAX_KEPT_BYTES = 32 * 2**20


class Buffers:
    """Lends buffers. One belongs to each transport, so the one that was given back last, still in the cache, is lent next."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []
        self._free_bytes = 0

    def take(self, size_bytes: int) -> bytearray:
        """A buffer of at least that size; what is in it is undefined."""
        for position in range(len(self._free) - 1, -1, -1):
            if len(self._free[position]) >= size_bytes:
                buffer = self._free.pop(position)
                self._free_bytes -= len(buffer)
                return buffer
        return bytearray(-(-size_bytes // _GRAIN_BYTES) * _GRAIN_BYTES)

    def give(self, buffer: bytearray) -> None:
        """Take it back. Whoever held it must not touch it again."""
        while self._free and self._free_bytes + len(buffer) > _MAX_KEPT_BYTES:
            self._free_bytes -= len(self._free.pop(0))
        self._free.append(buffer)
        self._free_bytes += len(buffer)
