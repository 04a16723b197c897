"""What a libp2p stream of this transport says, frame by frame (`peers.transport.pipe` has the framing).

    dialler   OPEN, then of a call one DATA; of a stream DATA*, CREDIT*, FINISHED
    server    HELLO, then of a call one DATA; of a stream DATA*, CREDIT*, FINISHED, at last END. Or REFUSED, at any time

libp2p has proved who is who before the first frame. OPEN and HELLO show that they are members: each carries the sender's certificate
chain, which names it and was issued under the run's authority. Credit: a sender has at most `WINDOW_BYTES` on its way or unread, and gets
room back as the reader takes messages. Whoever closes, resets: an orderly end is said with FINISHED or END.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from peers.transport.handling import Refusal
from protocols.errors import RemoteProtocolError
from protocols.ids import BytesLike, PeerId

PROTOCOL = "peer"
"""Name under which the node serves these streams; libp2p knows them as "/swarm/1/peer"."""

WINDOW_BYTES = 4 * 2**20
"""Most that one side may send before the other has taken some of it; at least twice the largest message, or both could wait."""

CREDIT_EVERY_BYTES = 2**20
"""A reader tells how much it has taken at latest after so much."""

MAX_CHAIN_BYTES = 12 * 1024
"""Of a certificate chain, in any form."""

MAX_REFUSAL_BYTES = 4 * 1024
_MAX_METHOD_BYTES = 80
MAX_OPEN_BYTES = MAX_CHAIN_BYTES + _MAX_METHOD_BYTES + 8

_CREDIT = struct.Struct(">I")
_OPEN = struct.Struct(">BIB")
_MAX_TIMEOUT_MS = 2**32 - 1

Shape = Literal["call", "stream"]
_SHAPES: tuple[Shape, ...] = ("call", "stream")


class Kind(IntEnum):
    """What a frame is."""

    OPEN = 1
    HELLO = 2
    DATA = 3
    CREDIT = 4
    FINISHED = 5
    END = 6
    REFUSED = 7


_SIZES: dict[int, tuple[int, int]] = {
    Kind.OPEN: (_OPEN.size, MAX_OPEN_BYTES),
    Kind.HELLO: (1, MAX_CHAIN_BYTES),
    Kind.CREDIT: (_CREDIT.size, _CREDIT.size),
    Kind.FINISHED: (0, 0),
    Kind.END: (0, 0),
    Kind.REFUSED: (1, MAX_REFUSAL_BYTES),
}
_NEVER = (1, 0)


@dataclass(frozen=True, slots=True)
class Opening:
    """The dialler's first frame.

    Args:
        shape: a call or a stream.
        method: which handler it is for.
        timeout_s: how long it may live, to the millisecond.
        chain: certificates that show that the dialler is a member.
    """

    shape: Shape
    method: str
    timeout_s: float
    chain: bytes

    def encode(self) -> bytes:
        """Payload of the frame.

        Raises:
            ValueError: the method's name is too long.
        """
        method = self.method.encode()
        if len(method) > _MAX_METHOD_BYTES:
            raise ValueError(f"the method name {self.method!r} is too long")
        timeout_ms = max(1, min(_MAX_TIMEOUT_MS, round(self.timeout_s * 1000)))
        return _OPEN.pack(_SHAPES.index(self.shape), timeout_ms, len(method)) + method + self.chain

    @classmethod
    def decode(cls, payload: BytesLike, peer: PeerId) -> Opening:
        """Undo `encode`.

        Raises:
            RemoteProtocolError: it is none.
        """
        try:
            shape, timeout_ms, length = _OPEN.unpack_from(payload)
            if shape >= len(_SHAPES):
                raise ValueError(f"it is neither a call nor a stream but {shape}")
            if not timeout_ms:
                raise ValueError("it may not live at all")
            rest = bytes(payload)[_OPEN.size :]
            if length > min(_MAX_METHOD_BYTES, len(rest)):
                raise ValueError("a method name that is too long")
            return cls(_SHAPES[shape], rest[:length].decode(), timeout_ms / 1000, rest[length:])
        except (struct.error, ValueError) as error:
            raise RemoteProtocolError(peer, f"a stream that opens with nonsense: {error}") from error


def encode_credit(size_bytes: int) -> bytes:
    """Payload of a CREDIT frame: so much was taken since the last one."""
    return _CREDIT.pack(size_bytes)


def decode_credit(payload: BytesLike) -> int:
    """Undo `encode_credit`; the size has been checked."""
    (size_bytes,) = _CREDIT.unpack(payload)
    return int(size_bytes)


def encode_refusal(refusal: Refusal) -> bytes:
    """Payload of a REFUSED frame: u8 length | code | sentence."""
    code = refusal.code.encode()
    return bytes([len(code)]) + code + refusal.sentence.encode(errors="replace")


def decode_refusal(payload: BytesLike) -> Refusal:
    """Undo `encode_refusal`; whatever it was, it is a refusal."""
    data = bytes(payload)
    end = 1 + (data[0] if data else 0)
    return Refusal(data[1:end].decode(errors="replace"), data[end:].decode(errors="replace"))


def require_size(kind: int, size_bytes: int, peer: PeerId) -> None:
    """Check the size of every frame but DATA, whose room depends on what was sent before.

    Raises:
        RemoteProtocolError: unknown kind, or a size that this kind never has.
    """
    least, most = _SIZES.get(kind, _NEVER)
    if not least <= size_bytes <= most:
        raise RemoteProtocolError(peer, f"a frame of kind {kind} with {size_bytes} bytes")
