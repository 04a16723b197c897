"""Payloads of the records that begin and end a stream on a link."""

from __future__ import annotations

import struct

from peers.transport.handling import MAX_SENTENCE_CHARS, Answered, Broken, Refusal
from protocols.errors import RemoteError, RemoteProtocolError, RemoteTimeout
from protocols.ids import PeerId

MAX_METHOD_BYTES = 80
MAX_TIMEOUT_S = 86400.0

_TIMEOUT = struct.Struct("<d")
_RETURNED, _REFUSED, _BROKEN = b"\x00", b"\x01", b"\x02"
_MAX_END_BYTES = 1 + 40 + 1 + 4 * MAX_SENTENCE_CHARS


def encode_open(method: str, timeout_s: float) -> bytes:
    """How long the stream may live, seconds, and the method it is for."""
    return _TIMEOUT.pack(min(timeout_s, MAX_TIMEOUT_S)) + method.encode()


def decode_open(payload: bytes, peer: PeerId) -> tuple[str, float]:
    """Method, and seconds.

    Raises:
        RemoteProtocolError: no number of seconds, or no method.
    """
    method = payload[_TIMEOUT.size :]
    if len(payload) < _TIMEOUT.size or not 0 < len(method) <= MAX_METHOD_BYTES:
        raise RemoteProtocolError(peer, f"it opened a stream with {len(payload)} bytes")
    timeout_s: float = _TIMEOUT.unpack_from(payload)[0]
    if not 0.0 <= timeout_s <= MAX_TIMEOUT_S:
        raise RemoteProtocolError(peer, f"it opened a stream for {timeout_s} s")
    try:
        return method.decode(), timeout_s
    except UnicodeDecodeError:
        raise RemoteProtocolError(peer, "it opened a stream for a method that is no text") from None


def encode_end(outcome: Answered[None] | Refusal | Broken) -> bytes:
    """How a handler ended."""
    if isinstance(outcome, Refusal):
        return _REFUSED + outcome.code.encode() + b"\x00" + outcome.sentence.encode(errors="replace")
    return _RETURNED if isinstance(outcome, Answered) else _BROKEN


def decode_end(payload: bytes, peer: PeerId) -> tuple[RemoteError, bool]:
    """What sending raises from now on, and whether the handler returned.

    Raises:
        RemoteProtocolError: none of the ways to end.
    """
    how, rest = payload[:1], payload[1:]
    if len(payload) > _MAX_END_BYTES or how not in (_RETURNED, _REFUSED, _BROKEN) or (rest and how != _REFUSED):
        raise RemoteProtocolError(peer, f"it ended a stream with {len(payload)} bytes")
    if how == _RETURNED:
        return RemoteTimeout(peer, "it has ended the stream"), True
    if how == _BROKEN:
        return RemoteTimeout(peer, "it broke off the stream"), False
    code, _, sentence = rest.partition(b"\x00")
    return Refusal(code.decode(errors="replace"), sentence.decode(errors="replace")).as_error(peer), False
