"""Frames of an exchange stream: blocks cut into chunks that fit a transport message, and heartbeats.

A frame is a 24-byte little-endian header followed by raw bytes:

    kind u8 | 3 zero bytes | block u32 | offset u32 | total u32 | contributors u64 | chunk

`offset` and `total` count bytes of the encoded block; chunks of a block come in order and blocks do not interleave within a stream.
`contributors` is a bit mask over the plan's members, used in results only. A heartbeat is a header of zeros and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from blake3 import blake3

from protocols.errors import RemoteProtocolError
from protocols.ids import BlockIndex, PeerId

CHUNK_BYTES = 2**20
MAX_MEMBERS = 64
_HEADER = struct.Struct("<B3sIIIQ")
_RESERVED = bytes(3)

BytesLike = bytes | bytearray | memoryview


class FrameKind(IntEnum):
    """What a frame carries."""

    HEARTBEAT = 0
    PART = 1
    RESULT = 2


@dataclass(frozen=True, slots=True)
class BlockBytes:
    """One whole encoded block as it left or reached a stream.

    Args:
        kind: PART (a member's contribution) or RESULT (reduced).
        block: which block.
        data: its encoding.
        contributors: bit i is set if member i of the plan went into a result; 0 for a part.
        content: `content_hash` of the data; empty if nobody has computed it yet.
    """

    kind: FrameKind
    block: BlockIndex
    data: BytesLike
    contributors: int = 0
    content: bytes = b""


HEARTBEAT = _HEADER.pack(FrameKind.HEARTBEAT, _RESERVED, 0, 0, 0, 0)


def frame_parts(item: BlockBytes, offset: int, chunk_bytes: int) -> tuple[bytes, memoryview]:
    """Header and chunk, which are one frame together, of the chunk of a block that begins at `offset`. The chunk is not copied."""
    view = memoryview(item.data).cast("B")
    header = _HEADER.pack(item.kind, _RESERVED, item.block, offset, len(view), item.contributors)
    return header, view[offset : offset + chunk_bytes]


def frames_of(item: BlockBytes, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Cut one block into frames; an empty block is one frame with no chunk."""
    for offset in range(0, max(memoryview(item.data).nbytes, 1), chunk_bytes):
        yield b"".join(frame_parts(item, offset, chunk_bytes))


def fresh_buffer(_block: BlockIndex, total_bytes: int) -> BytesLike:
    """Memory for one encoded block."""
    return np.empty(total_bytes, dtype=np.uint8).data


class FrameReader:
    """Puts the frames of one stream together again, believing nothing.

    What is hashed is hashed chunk by chunk, while a chunk is still in the processor's cache.

    Args:
        sender: whom to blame.
        kind: the only kind of block this stream may carry.
        lengths: block -> lengths that its encoding may have; another one, a block that is absent or one that comes twice is refused.
        buffer_for: gives the memory (writable, of just that length) that an encoded block is put together in.
        hashed: whether to hash parts too; results always are.
    """

    def __init__(
        self,
        sender: PeerId,
        kind: FrameKind,
        lengths: Mapping[BlockIndex, range],
        buffer_for: Callable[[BlockIndex, int], BytesLike] = fresh_buffer,
        *,
        hashed: bool = False,
    ) -> None:
        self._sender = sender
        self._kind = kind
        self._waiting = dict(lengths)
        self._buffer_for = buffer_for
        self._hashed = hashed or kind is FrameKind.RESULT
        self._current: BlockBytes | None = None
        self._hasher = blake3()
        self._filled = 0

    @property
    def complete(self) -> bool:
        """Every expected block has come."""
        return not self._waiting

    def feed(self, frame: BytesLike) -> BlockBytes | None:
        """Take one message; returns a block when its last chunk came, None otherwise (also for heartbeats).

        Raises:
            RemoteProtocolError: anything but the next chunk of an expected block.
        """
        if len(frame) < _HEADER.size:
            raise RemoteProtocolError(self._sender, f"a frame of {len(frame)} bytes is shorter than its header")
        kind, reserved, block_number, offset, total, contributors = _HEADER.unpack_from(frame)
        if kind == FrameKind.HEARTBEAT and frame == HEARTBEAT:
            return None
        if kind != self._kind or reserved != _RESERVED:
            raise RemoteProtocolError(self._sender, f"a frame of kind {kind} on a stream of {self._kind.name} frames")
        if contributors and self._kind is FrameKind.PART:
            raise RemoteProtocolError(self._sender, f"a part of block {block_number} that names contributors")
        block = BlockIndex(block_number)
        if self._current is None:
            if block not in self._waiting or offset != 0 or total not in self._waiting[block]:
                raise RemoteProtocolError(self._sender, f"block {block} of {total} bytes at offset {offset} was not expected")
            self._current = BlockBytes(self._kind, block, self._buffer_for(block, total), contributors)
            self._hasher = blake3()
            self._filled = 0
        return self._append(block, offset, total, contributors, memoryview(frame)[_HEADER.size :])

    def _append(self, block: BlockIndex, offset: int, total: int, contributors: int, chunk: memoryview) -> BlockBytes | None:
        current = self._current
        same = current is not None and (current.block, len(current.data), current.contributors) == (block, total, contributors)
        if current is None or not same or offset != self._filled:
            raise RemoteProtocolError(self._sender, f"a chunk at offset {offset} of block {block} is not the next one")
        if offset + len(chunk) > total or (not chunk and total):
            raise RemoteProtocolError(self._sender, f"a chunk of {len(chunk)} bytes does not fit block {block}")
        memoryview(current.data)[offset : offset + len(chunk)] = chunk
        self._filled = offset + len(chunk)
        if self._hashed:
            self._hasher.update(chunk)
        if self._filled < total:
            return None
        del self._waiting[block]
        self._current = None
        return replace(current, content=self._hasher.digest()) if self._hashed else current
