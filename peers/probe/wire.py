"""The protobuf messages of hivemind's unary calls, read and written by hand.

The probe cannot import hivemind's generated code, and needs three messages only (hivemind 1.1.12, `p2pd.proto` and `dht.proto`):

    PersistentConnectionRequest {1: callId, 3: callUnary {1: peer, 2: proto, 3: data}, 4: unaryResponse {1: response | 2: error}}
    PingRequest {3: validate}        PingResponse {2: peer {1: node_id}, 4: dht_time (double), 5: available}

A request and its reply are the same message type, each with its length as a varint in front (links: the go daemon's unary protocol).
"""

from __future__ import annotations

import struct

MAX_REPLY_BYTES = 2**20
"""A reply longer than this is not read."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def varint(number: int) -> bytes:
    """Base-128 form of a non-negative number."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: bytes, offset: int) -> tuple[int, int]:
    """Number at `offset` and the offset after it.

    Raises:
        ValueError: it is cut off or longer than 64 bits.
    """
    number = 0
    for shift in range(0, 70, 7):
        if offset >= len(data):
            raise ValueError("a number is cut off")
        byte = data[offset]
        offset += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, offset
    raise ValueError("a number is longer than 64 bits")


def bytes_field(number: int, value: bytes) -> bytes:
    """One length-delimited field."""
    return varint(number << 3 | _BYTES) + varint(len(value)) + value


def read_fields(data: bytes) -> dict[int, bytes]:
    """Field number -> last value, for the wire types these messages use; numbers come back as 8 little-endian bytes.

    Raises:
        ValueError: not a protobuf message.
    """
    fields: dict[int, bytes] = {}
    offset = 0
    while offset < len(data):
        tag, offset = read_varint(data, offset)
        kind = tag & 7
        if kind == _VARINT:
            value, offset = read_varint(data, offset)
            fields[tag >> 3] = struct.pack("<Q", value & (2**64 - 1))
            continue
        if kind == _BYTES:
            length, offset = read_varint(data, offset)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} is not used here")
        if offset + length > len(data):
            raise ValueError("a field is cut off")
        fields[tag >> 3] = data[offset : offset + length]
        offset += length
    return fields


def unary_call(call_id: bytes, peer: bytes, method: str, request: bytes) -> bytes:
    """One framed call.

    Args:
        call_id: 16 bytes that the reply repeats.
        peer: libp2p id (multihash bytes) of the caller.
        method: e.g. "DHTProtocol.rpc_ping".
        request: serialized request message.
    """
    call = bytes_field(1, peer) + bytes_field(2, method.encode()) + bytes_field(3, request)
    message = bytes_field(1, call_id) + bytes_field(3, call)
    return varint(len(message)) + message


def unary_reply(message: bytes, call_id: bytes) -> bytes:
    """Serialized response inside an unframed reply.

    Raises:
        ValueError: garbage, the reply to another call, or an error from the handler.
    """
    fields = read_fields(message)
    if fields.get(1) != call_id:
        raise ValueError("the reply belongs to another call")
    result = read_fields(fields.get(4, b""))
    if 1 not in result:
        raise ValueError(f"the handler failed: {result.get(2, b'no reason given')[:200]!r}")
    return result[1]


def ping_request() -> bytes:
    """A `PingRequest` from a stranger that does not want to be remembered: no node info, validate off."""
    return b""


def ping_time(response: bytes) -> float:
    """Clock of the node that answered, seconds since the Unix epoch.

    Raises:
        ValueError: not a `PingResponse` with a time.
    """
    raw = read_fields(response).get(4, b"")
    if len(raw) != 8:
        raise ValueError("the ping's answer carries no time")
    (time,) = struct.unpack("<d", raw)
    return float(time)
