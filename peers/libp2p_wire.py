"""Framing of a small call on a libp2p stream. Nothing relies on half-close, which hivemind's daemon turns into a teardown:

    request   u32 big-endian length | bytes
    reply     u8 status | u32 length | bytes        status 0: the handler's reply; 1: u8 code length | code | sentence, in UTF-8

The caller closes the stream when it has read the reply.
"""

from __future__ import annotations

import asyncio
import logging
import struct

from peers.transport.handling import INTERNAL, Answered, Broken, Refusal
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import PeerId

log = logging.getLogger(__name__)

MAX_CALL_BYTES = 2**20
"""Largest request or reply."""

_LENGTH = struct.Struct(">I")
_REPLY_HEAD = struct.Struct(">BI")
_ANSWERED, _REFUSED = 0, 1


def encode_request(request: bytes) -> bytes:
    """A request as it is sent.

    Raises:
        LocalProtocolError: above `MAX_CALL_BYTES`.
    """
    if len(request) > MAX_CALL_BYTES:
        raise LocalProtocolError(f"a request of {len(request)} bytes is above the limit of {MAX_CALL_BYTES}")
    return _LENGTH.pack(len(request)) + request


async def read_request(reader: asyncio.StreamReader, caller: PeerId) -> bytes:
    """The next request.

    Raises:
        RemoteProtocolError: above `MAX_CALL_BYTES`; nothing of it has been read.
        EOFError: the stream ended.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_CALL_BYTES:
        raise RemoteProtocolError(caller, f"a request of {length} bytes is above the limit of {MAX_CALL_BYTES}")
    return await reader.readexactly(length)


def encode_reply(outcome: Answered[bytes] | Refusal | Broken, name: str) -> bytes:
    """How a handler ended, as it is sent."""
    if isinstance(outcome, Answered):
        if len(outcome.reply) <= MAX_CALL_BYTES:
            return _REPLY_HEAD.pack(_ANSWERED, len(outcome.reply)) + outcome.reply
        log.error("our reply is too large name=%s bytes=%d", name, len(outcome.reply))
        outcome = Refusal(INTERNAL, "the reply is too large to be sent")
    refusal = outcome if isinstance(outcome, Refusal) else Refusal(INTERNAL, "the handler gave up")
    code = refusal.code.encode()[:255]
    body = bytes([len(code)]) + code + refusal.sentence.encode(errors="replace")
    return _REPLY_HEAD.pack(_REFUSED, len(body)) + body


async def read_reply(reader: asyncio.StreamReader, peer: PeerId) -> bytes:
    """The handler's reply.

    Raises:
        RemoteRefusal: it refused.
        RemoteProtocolError: above `MAX_CALL_BYTES`, or of no known status.
        EOFError: the stream ended.
    """
    status, length = _REPLY_HEAD.unpack(await reader.readexactly(_REPLY_HEAD.size))
    if length > MAX_CALL_BYTES or status not in (_ANSWERED, _REFUSED):
        raise RemoteProtocolError(peer, f"a reply with status {status} and {length} bytes")
    body = await reader.readexactly(length)
    if status == _ANSWERED:
        return body
    end = 1 + (body[0] if body else 0)
    raise Refusal(body[1:end].decode(errors="replace"), body[end:].decode(errors="replace")).as_error(peer)
