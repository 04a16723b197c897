"""One byte form for every value that is hashed or signed.

Two encodings: length-prefixed fields for what machines exchange, and sorted JSON for what people configure. Both are injective: different
values never share bytes, so a signature or a hash means exactly one thing.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

from blake3 import blake3

from protocols.ids import SwarmTime

_LENGTH = struct.Struct("<I")
_MILLISECONDS = struct.Struct("<Q")
_MAX_MILLISECONDS = 2**52


def pack_fields(*fields: bytes) -> bytes:
    """Concatenate byte strings so that no two lists of them look alike: each is preceded by its length (u32, little endian)."""
    return b"".join(part for field in fields for part in (_LENGTH.pack(len(field)), field))


def unpack_fields(data: bytes, max_fields: int) -> tuple[bytes, ...]:
    """Undo `pack_fields`.

    Args:
        data: the whole concatenation; its length must have been bounded by the caller.
        max_fields: more are refused.

    Raises:
        ValueError: these are not whole fields, or too many.
    """
    fields: list[bytes] = []
    offset = 0
    while offset < len(data):
        if len(fields) == max_fields:
            raise ValueError(f"more than {max_fields} fields")
        start = offset + _LENGTH.size
        if start > len(data):
            raise ValueError("a field's length is cut short")
        (length,) = _LENGTH.unpack_from(data, offset)
        offset = start + length
        if offset > len(data):
            raise ValueError("a field is cut short")
        fields.append(data[start:offset])
    return tuple(fields)


def digest(domain: bytes, *fields: bytes) -> bytes:
    """BLAKE3 (32 bytes) of fields under a domain: the same fields in another role have another hash."""
    return blake3(pack_fields(domain, *fields)).digest()


def pack_time(time: SwarmTime) -> bytes:
    """Eight bytes: whole milliseconds since the Unix epoch, rounded down.

    Raises:
        ValueError: negative, not finite, or beyond 2^52 ms.
    """
    milliseconds = to_milliseconds(time)
    return _MILLISECONDS.pack(milliseconds)


def unpack_time(data: bytes) -> SwarmTime:
    """Undo `pack_time`.

    Raises:
        ValueError: not eight bytes, or beyond 2^52 ms.
    """
    if len(data) != _MILLISECONDS.size:
        raise ValueError(f"a time has {_MILLISECONDS.size} bytes, not {len(data)}")
    return from_milliseconds(_MILLISECONDS.unpack(data)[0])


def to_milliseconds(time: SwarmTime) -> int:
    """Whole milliseconds, rounded down; the inverse of `from_milliseconds` on its results.

    Raises:
        ValueError: negative, not finite, or beyond 2^52 ms.
    """
    if not 0 <= time <= _MAX_MILLISECONDS / 1000:
        raise ValueError(f"{time} is not a time since 1970")
    floor = int(time * 1000 // 1)  # may be one off, because 1/1000 is no binary fraction
    return next((near for near in (floor, floor + 1, floor - 1) if near / 1000 == time), floor)


def from_milliseconds(milliseconds: int) -> SwarmTime:
    """Seconds since the Unix epoch.

    Raises:
        ValueError: negative or beyond 2^52 ms.
    """
    if not 0 <= milliseconds <= _MAX_MILLISECONDS:
        raise ValueError(f"{milliseconds} ms is not a time since 1970")
    return SwarmTime(milliseconds / 1000)


def canonical_json(value: Any) -> bytes:
    """Sorted, compact, ASCII-only JSON. Floats are written as the shortest text that reads back as the same number.

    Raises:
        ValueError: NaN, an infinity, or something JSON cannot hold.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def read_json(data: bytes) -> Any:
    """Read JSON strictly: no duplicate keys, no NaN, no infinities.

    Raises:
        ValueError: anything else.
    """
    try:
        return json.loads(data, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # 1e999 is no constant, and infinite all the same
        raise ValueError("a number is too large")
    return number
