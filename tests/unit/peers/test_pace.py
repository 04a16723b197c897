"""Chunk sizes follow what the link takes."""

from __future__ import annotations

import asyncio

import pytest

from peers.averaging.pace import MIN_CHUNK_BYTES, Pace
from peers.simulation import run_simulated
from protocols.frames import CHUNK_BYTES, BlockBytes, FrameKind, FrameReader
from protocols.ids import BlockIndex, BytesLike, PeerId

PEER = PeerId(b"p" * 32)
HEARTBEAT_S = 0.75


class Link:
    """A stream that takes each message as long as its size asks for."""

    def __init__(self, bytes_per_s: float) -> None:
        self.peer = PEER
        self.frames: list[bytes] = []
        self._bytes_per_s = bytes_per_s

    async def send(self, *parts: BytesLike) -> None:
        message = b"".join(parts)
        loop = asyncio.get_running_loop()
        taken: asyncio.Future[None] = loop.create_future()
        loop.call_later(len(message) / self._bytes_per_s, taken.set_result, None)
        await taken
        self.frames.append(message)


def sent(size_bytes: int, bytes_per_s: float) -> tuple[Pace, list[bytes], bytes]:
    data = bytes(range(256)) * (size_bytes // 256) + b"x" * (size_bytes % 256)
    pace, link = Pace(HEARTBEAT_S), Link(bytes_per_s)

    async def main() -> None:
        await pace.send(link, BlockBytes(FrameKind.PART, BlockIndex(2), data))  # type: ignore[arg-type]

    run_simulated(main(), seed=1)
    return pace, link.frames, data


@pytest.mark.parametrize("bytes_per_s", [1e4, 1e6, 1e9])
@pytest.mark.parametrize("size_bytes", [0, 1, MIN_CHUNK_BYTES, MIN_CHUNK_BYTES + 1, 4 * 2**20 + 3])
def test_the_reader_puts_the_block_together_again(size_bytes: int, bytes_per_s: float) -> None:
    _, frames, data = sent(size_bytes, bytes_per_s)
    reader = FrameReader(PEER, FrameKind.PART, {BlockIndex(2): range(size_bytes, size_bytes + 1)})
    whole = [item for item in map(reader.feed, frames) if item]
    assert [bytes(item.data) for item in whole] == [data]


def test_a_fast_link_gets_large_chunks() -> None:
    pace, frames, _ = sent(16 * 2**20, 1e9)
    assert pace.chunk_bytes == CHUNK_BYTES
    assert max(map(len, frames)) > CHUNK_BYTES


def test_on_a_home_uplink_no_chunk_takes_longer_than_a_heartbeat() -> None:
    bytes_per_s = 1e6 / 8  # a megabit per second
    pace, frames, _ = sent(2 * 2**20, bytes_per_s)
    assert pace.chunk_bytes == MIN_CHUNK_BYTES
    assert max(len(frame) / bytes_per_s for frame in frames) < HEARTBEAT_S


def test_a_link_that_becomes_slow_gets_smaller_chunks_again() -> None:
    pace = Pace(HEARTBEAT_S)

    async def main() -> None:
        block = BlockBytes(FrameKind.PART, BlockIndex(0), bytes(8 * 2**20))
        await pace.send(Link(1e9), block)  # type: ignore[arg-type]
        assert pace.chunk_bytes == CHUNK_BYTES
        await pace.send(Link(5e5), block)  # type: ignore[arg-type]

    run_simulated(main(), seed=1)
    assert pace.chunk_bytes < CHUNK_BYTES // 2
