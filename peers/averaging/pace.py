"""How blocks are cut and timed on a stream: chunks as large as the link carries quickly, and no faster than the links at both ends.

Large chunks cost less work, but one that takes seconds looks like silence to the receiver. And a round in which everybody sends as fast as
TCP lets it is slower than one in which nobody does: flows that meet in a full link share it as chance has it, and the reducer that waits
for the unluckiest one keeps everybody's uplink idle later.
"""

from __future__ import annotations

import asyncio

from peers.interfaces import Stream
from protocols.frames import CHUNK_BYTES, HEARTBEAT, BlockBytes, frame_parts

MIN_CHUNK_BYTES = 2**16
_QUICK = 1 / 16
_SLOW = 1 / 2

_SMOOTH_S = 1 / 64
"""How long a timed chunk lasts, as long as it is not smaller than `MIN_CHUNK_BYTES`: what queues in front of a link hold easily."""

_CATCH_UP_S = 1 / 32
"""How much lost time is made up for: a busy machine wakes us late. More would send at once what the link has no room for."""


class Turns:
    """What all streams to one member may carry together.

    Args:
        bytes_per_s: on average; above 0.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._due_s = asyncio.get_running_loop().time()
        self.smooth_bytes = int(bytes_per_s * _SMOOTH_S)

    def take(self, size_bytes: int, now_s: float) -> float:
        """When so many bytes may go; the next ones may go when these are through."""
        at_s = max(self._due_s, now_s - _CATCH_UP_S)
        self._due_s = at_s + size_bytes / self._bytes_per_s
        return at_s

    def undo(self, size_bytes: int) -> None:
        """These bytes do not go after all."""
        self._due_s -= size_bytes / self._bytes_per_s


class Pace:
    """Sends blocks on one stream and finds its chunk size by trying.

    A chunk that flow control takes within a sixteenth of a heartbeat lets the next be twice as large, one that takes more than half a
    heartbeat halves it.

    Args:
        heartbeat_s: how often the receiver wants to hear something.
        turns: of the receiver; None to send as much as the stream takes.
    """

    def __init__(self, heartbeat_s: float, turns: Turns | None = None) -> None:
        self._heartbeat_s = heartbeat_s
        self._turns = turns
        self._largest_bytes = CHUNK_BYTES if turns is None else min(max(turns.smooth_bytes, MIN_CHUNK_BYTES), CHUNK_BYTES)
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
            await self._wait_for_turn(stream, min(chunk_bytes, total - offset))
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

    async def _wait_for_turn(self, stream: Stream, size_bytes: int) -> None:
        """Streams side by side take turns; a timed one waits until its next chunk is due, and shows meanwhile that it is alive."""
        if self._turns is None:
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        at_s = self._turns.take(size_bytes, loop.time())
        try:
            while at_s - loop.time() > self._heartbeat_s:
                await asyncio.sleep(self._heartbeat_s)
                await stream.send(HEARTBEAT)
            await asyncio.sleep(max(0.0, at_s - loop.time()))
        except BaseException:
            self._turns.undo(size_bytes)
            raise
