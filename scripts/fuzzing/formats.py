"""How bytes are built of parts, so that mutations can change a part and keep the lengths around it right."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Part = tuple[bytes, bytes]
"""What stands in front of a part (its tag), and its content."""


@dataclass(frozen=True)
class Format:
    """A way to build bytes.

    Args:
        name: for people.
        split: parts of some bytes, or None if they are not of this form.
        join: undoes `split`.
    """

    name: str
    split: Callable[[bytes], list[Part] | None]
    join: Callable[[Sequence[Part]], bytes]


def varint(number: int) -> bytes:
    """Base-128 form of a number that is not negative."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int] | None:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            return None
        number |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return number, at
    return None


def _split_protobuf(data: bytes) -> list[Part] | None:
    parts, at = [], 0
    while at < len(data):
        tag = _read_varint(data, at)
        if tag is None:
            return None
        start, kind = tag[1], tag[0] & 7
        head = data[at:start]
        if kind == 0:
            end = _read_varint(data, start)
            at = end[1] if end else len(data) + 1
        elif kind == 2:
            length = _read_varint(data, start)
            start, at = (length[1], length[1] + length[0]) if length else (start, len(data) + 1)
        else:
            at = start + {1: 8, 5: 4}.get(kind, len(data) + 1)
        if at > len(data):
            return None
        parts.append((head, data[start:at]))
    return parts


def _join_protobuf(parts: Sequence[Part]) -> bytes:
    return b"".join(head + (varint(len(body)) if head and head[0] & 7 == 2 else b"") + body for head, body in parts)


def _split_fields(data: bytes) -> list[Part] | None:
    parts, at = [], 0
    while at < len(data):
        if at + 4 > len(data):
            return None
        (length,) = struct.unpack_from("<I", data, at)
        end = at + 4 + length
        if end > len(data):
            return None
        parts.append((b"", data[at + 4 : end]))
        at = end
    return parts


def _join_fields(parts: Sequence[Part]) -> bytes:
    return b"".join(struct.pack("<I", len(body)) + body for _, body in parts)


def _der_items(data: bytes) -> Iterator[tuple[bytes, bytes] | None]:
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            yield None
            return
        first, start = data[at + 1], at + 2
        length = first
        if first >= 0x80:
            count = first & 0x7F
            length, start = int.from_bytes(data[start : start + count], "big"), start + count
        if start + length > len(data):
            yield None
            return
        yield data[at : at + 1], data[start : start + length]
        at = start + length


def _split_der(data: bytes) -> list[Part] | None:
    items = list(_der_items(data))
    return None if None in items else [item for item in items if item is not None]


def _join_der(parts: Sequence[Part]) -> bytes:
    out = b""
    for head, body in parts:
        size = len(body)
        long = size.to_bytes((size.bit_length() + 7) // 8, "big")
        out += head + (bytes([size]) if size < 0x80 else bytes([0x80 | len(long)]) + long) + body
    return out


BYTES = Format("bytes", lambda data: None, lambda parts: b"".join(head + body for head, body in parts))
PROTOBUF = Format("protobuf", _split_protobuf, _join_protobuf)
FIELDS = Format("length-prefixed fields", _split_fields, _join_fields)
DER = Format("DER", _split_der, _join_der)
JSON = Format("JSON", lambda data: None, BYTES.join)
"""Has mutations of its own."""
