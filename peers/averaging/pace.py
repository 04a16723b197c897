"""How blocks are cut and timed on a stream: chunks as large as the link carries quickly, and no faster than the links at both ends.

Large chunks cost less work, but one that takes seconds looks like silence to the receiver. And a round in which everybody sends to everybody
as fast as TCP lets it is slower than one in which nobody does: flows that meet in a full link lose packets, some of them starve, and the
reducer that waits for a starved one keeps everybody's uplink idle later.
"""

from __future__ import annotations

import asyncio

from peers.interfaces import Stream
from protocols.frames import CHUNK_BYTES, BlockBytes, frame_parts

MIN_CHUNK_BYTES = 2**16
_QUICK = 1 / 16
_SLOW = 1 / 2

_SMOOTH_S = 1 / 32
"""How long a chunk of a timed stream lasts, as long as it is not smaller than `MIN_CHUNK_BYTES`: what queues in front of a link hold easily."""

_CATCH_UP_S = 1 / 4
"""How much lost time a timed stream makes up for: a busy machine wakes us late."""


class Pace:
    """Sends blocks on one stream and finds its chunk size by trying.

    A chunk that flow control takes within a sixteenth of a heartbeat lets the next be twice as large, one that takes more than half a
    heartbeat halves it.

    Args:
        heartbeat_s: how often the receiver wants to hear something.
        bytes_per_s: what the stream may carry on average; None for as much as it can.
    """

    def __init__(self, heartbeat_s: float, bytes_per_s: float | None = None) -> None:
        self._heartbeat_s = heartbeat_s
        self._bytes_per_s = bytes_per_s
        self._due_s = 0.0
        smooth_bytes = CHUNK_BYTES if bytes_per_s is None else int(bytes_per_s * _SMOOTH_S)
        self._largest_bytes = min(max(smooth_bytes, MIN_CHUNK_BYTES), CHUNK_BYTES)
        self.chunk_bytes = MIN_CHUNK_BYTES

    async def send(self, stream: Stream, item: BlockBytes) -> None:
        """Send one block.

        Raises:
            RemoteTimeout: the stream is broken.
        """
        loop = asyncio.get_running_loop()
        total, offset = memoryview(item.data).nbytes, 0
        while True:
            chunk_bytes = self.chunk_bytes
            await self._wait_for_turn(min(chunk_bytes, total - offset))
            began_s = loop.time()
            await stream.send(*frame_parts(item, offset, chunk_bytes))
            took_s = loop.time() - began_s
            offset += chunk_bytes
            if took_s < self._heartbeat_s * _QUICK:
                self.chunk_bytes = min(2 * chunk_bytes, self._largest_bytes)
            elif took_s > self._heartbeat_s * _SLOW:
                self.chunk_bytes = max(chunk_bytes // 2, MIN_CHUNK_BYTES)
            if offset >= total:
                return

    async def _wait_for_turn(self, size_bytes: int) -> None:
        """Streams side by side take turns; a timed one waits until its next chunk is due."""
        if self._bytes_per_s is None:
            await asyncio.sleep(0)
            return
        now = asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, self._due_s - now))
        self._due_s = max(self._due_s, now - _CATCH_UP_S) + size_bytes / self._bytes_per_s
