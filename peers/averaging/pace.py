"""Chunks as large as the link carries quickly: large ones cost less work, but one that takes seconds looks like silence to the receiver."""

from __future__ import annotations

import asyncio

from peers.interfaces import Stream
from protocols.frames import CHUNK_BYTES, BlockBytes, frame_parts

MIN_CHUNK_BYTES = 2**16
_QUICK = 1 / 16
_SLOW = 1 / 2


class Pace:
    """Sends blocks on one stream and finds its chunk size by trying.

    A chunk that flow control takes within a sixteenth of a heartbeat lets the next be twice as large, one that takes more than half a
    heartbeat halves it. Nobody has to know or believe a bandwidth.

    Args:
        heartbeat_s: how often the receiver wants to hear something.
    """

    def __init__(self, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self.chunk_bytes = MIN_CHUNK_BYTES

    async def send(self, stream: Stream, item: BlockBytes) -> None:
        """Send one block.

        Raises:
            RemoteTimeout: the stream is broken.
        """
        loop = asyncio.get_running_loop()
        total, offset = memoryview(item.data).nbytes, 0
        while True:
            began_s, chunk_bytes = loop.time(), self.chunk_bytes
            await stream.send(*frame_parts(item, offset, chunk_bytes))
            took_s = loop.time() - began_s
            offset += chunk_bytes
            if took_s < self._heartbeat_s * _QUICK:
                self.chunk_bytes = min(2 * chunk_bytes, CHUNK_BYTES)
            elif took_s > self._heartbeat_s * _SLOW:
                self.chunk_bytes = max(chunk_bytes // 2, MIN_CHUNK_BYTES)
            if offset >= total:
                return
