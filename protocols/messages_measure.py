"""Messages by which a member that has joined measures its link, on a stream of its own to another member.

    stream "link.measure"   client   version u8 | up u32 | down u32     then `up` bytes of padding, in chunks
                            server   `down` bytes of padding, in chunks, once all `up` bytes have come

The client asks as often as it likes within the server's limits, and need not wait for an answer before it asks again. All chunks of a step
are `CHUNK_BYTES` long but the last. What padding holds is never looked at. With up = 0 and down = 1 a step is a ping.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import BytesLike, PeerId

MEASURE_STREAM = "link.measure"
CHUNK_BYTES = 2**16
MAX_STEP_BYTES = 2**18
"""Most that one step moves in either direction."""

_VERSION = 1
_REQUEST = struct.Struct("<BII")
_PADDING = memoryview(bytes(CHUNK_BYTES))


@dataclass(frozen=True, slots=True)
class MeasureRequest:
    """One step.

    Args:
        up_bytes: of padding that follow the request; at most `MAX_STEP_BYTES`.
        down_bytes: that are to come back, 1 to `MAX_STEP_BYTES`.
    """

    up_bytes: int
    down_bytes: int

    def encode(self) -> bytes:
        """Wire form.

        Raises:
            LocalProtocolError: a number out of range.
        """
        if not self._in_range():
            raise LocalProtocolError("malformed request to measure a link")
        return _REQUEST.pack(_VERSION, self.up_bytes, self.down_bytes)

    @classmethod
    def decode(cls, data: BytesLike, peer: PeerId | None) -> MeasureRequest:
        """Read the wire form.

        Raises:
            RemoteProtocolError: another version or length, or a number out of range.
        """
        if len(data) != _REQUEST.size:
            raise RemoteProtocolError(peer, "malformed request to measure a link")
        version, up_bytes, down_bytes = _REQUEST.unpack(data)
        request = cls(up_bytes, down_bytes)
        if version != _VERSION or not request._in_range():
            raise RemoteProtocolError(peer, "malformed request to measure a link")
        return request

    def _in_range(self) -> bool:
        return 0 <= self.up_bytes <= MAX_STEP_BYTES and 1 <= self.down_bytes <= MAX_STEP_BYTES


def padding(size_bytes: int) -> Iterator[memoryview]:
    """The chunks of so many bytes of padding."""
    for begin in range(0, size_bytes, CHUNK_BYTES):
        yield _PADDING[: min(CHUNK_BYTES, size_bytes - begin)]


def padding_bytes(data: BytesLike, left_bytes: int, peer: PeerId | None) -> int:
    """Length of a chunk that has come.

    Args:
        data: the chunk.
        left_bytes: of padding that are still to come, this chunk included.
        peer: who sent it.

    Raises:
        RemoteProtocolError: it is not as long as the next chunk has to be.
    """
    if len(data) != min(CHUNK_BYTES, left_bytes):
        raise RemoteProtocolError(peer, f"sent {len(data)} bytes of padding where {min(CHUNK_BYTES, left_bytes)} were to come")
    return len(data)
