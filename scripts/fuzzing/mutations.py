"""Mutations: from inputs that are known, others that are nearly right. All randomness comes from the generator that is passed in."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any, Literal

from scripts.fuzzing.formats import DER, JSON, Format, Part, varint

_NUMBERS = (0, 1, 2, 3, 16, 63, 64, 65, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
_LARGE = (2**32, 2**40, 2**40 + 1, 2**52, 2**52 + 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (
    b"\x00",
    b"\xff\xfe",
    "\u202e".encode(),
    "\ud800".encode("utf-8", "surrogatepass"),
    b"/p2p/",
    b"/",
    b"%s%n",
    b"1e999",
    b"NaN",
    b"  ",
)
_DOUBLES = (0.0, -0.0, -1.0, 1e-320, 1e9, 1e16, 1e308, float("inf"), float("-inf"), float("nan"))
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**53,
    2**64,
    -(2**63),
    10**400,
    0.5,
    -0.0,
    1e308,
    "",
    "x",
    "\u0000",
    "\ud800",
    [],
    {},
    [[]],
)
_RAW_JSON = (b"1e999", b"-1e999", b"NaN", b"Infinity", b"1.0", b"1E0", b'"\\ud800"', b"9" * 5000, b"[" * 3000, b'{"a":1,"a":2}', b"[[],[]]")


class Mutator:
    """Makes new inputs of one target.

    Args:
        chance: all randomness.
        form: how the target's bytes are built.
        most_bytes: longest result.
        dictionary: inputs of other targets, to cross with.
    """

    def __init__(self, chance: random.Random, form: Format, most_bytes: int, dictionary: Sequence[bytes] = ()) -> None:
        self._chance = chance
        self._form = form
        self._most_bytes = most_bytes
        self._dictionary = [entry for entry in dictionary if entry]
        self._plain: tuple[Callable[[bytes], bytes], ...] = (
            self._flip, self._replace, self._insert, self._delete, self._duplicate, self._truncate,
            self._number, self._length, self._varint, self._repeat, self._text,
        )  # fmt: skip

    def mutated(self, pool: Sequence[bytes]) -> bytes:
        """A new input, made of one or two of the pool."""
        chance = self._chance
        data = chance.choice(pool)
        for _ in range(1 + min(int(chance.expovariate(0.9)), 5)):
            draw = chance.random()
            if draw < 0.08:
                data = self._splice(data, chance.choice(pool))
            elif draw < 0.10 and self._dictionary:
                data = self._splice(data, chance.choice(self._dictionary))
            elif draw < 0.65:
                data = self._shaped(data, 0)
            else:
                data = self._any(data)
        return data[: self._most_bytes]

    def _any(self, data: bytes) -> bytes:
        return self._chance.choice(self._plain)(data)

    # With the form

    def _shaped(self, data: bytes, depth: int) -> bytes:
        if self._form is JSON:
            return self._json(data)
        parts = self._form.split(data)
        if not parts:
            return self._any(data)
        return self._form.join(self._parts(parts, depth))

    def _parts(self, parts: list[Part], depth: int) -> list[Part]:
        chance, at = self._chance, self._chance.randrange(len(parts))
        head, body = parts[at]
        draw = chance.random()
        if draw < 0.06:
            return parts[:at] + parts[at + 1 :]
        if draw < 0.12:
            return [*parts, parts[at]]
        if draw < 0.16:
            part = (head, body) if chance.random() < 0.5 else (head, b"")  # many of the smallest is what costs a reader most
            size = max(len(head) + len(part[1]) + 1, 1)
            return parts + [part] * min(chance.choice((2, 17, 65, 300, 5000, 10**7)), self._most_bytes // size)
        if draw < 0.20:
            other = chance.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
            return parts
        if draw < 0.24 and head:
            return [*parts[:at], (self._any(head), body), *parts[at + 1 :]]
        return [*parts[:at], (head, self._body(head, body, depth)), *parts[at + 1 :]]

    def _body(self, head: bytes, body: bytes, depth: int) -> bytes:
        chance = self._chance
        if self._form.name == "protobuf" and head and head[0] & 7 == 0:
            return varint(chance.choice(_NUMBERS + _LARGE)) if chance.random() < 0.8 else self._any(body)
        if self._form.name == "protobuf" and head and head[0] & 7 == 1:
            return struct.pack("<d", chance.choice(_DOUBLES))
        nested = depth < 8 and chance.random() < (0.85 if self._form is DER else 0.5)
        if nested and self._form.split(body):
            return self._shaped(body, depth + 1)
        if chance.random() < 0.1:
            return chance.choice((b"", bytes(len(body)), body[:-1], body + b"\x00", chance.randbytes(len(body)), body * 2))
        return self._any(body)

    def _json(self, data: bytes) -> bytes:
        try:
            tree = json.loads(data)
        except (ValueError, RecursionError):
            return self._any(data)
        places = list(_places(tree))
        if not places:
            return self._chance.choice(_RAW_JSON)
        owner, key = self._chance.choice(places)
        draw, mark = self._chance.random(), "@@raw@@"
        if draw < 0.15:
            del owner[key]
        elif draw < 0.3:
            self._add(owner)
        else:
            owner[key] = mark if draw < 0.5 else self._chance.choice(_VALUES)
        text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=self._chance.random() < 0.9)
        return text.encode("utf-8", "surrogatepass").replace(b'"@@raw@@"', self._chance.choice(_RAW_JSON))

    def _add(self, owner: Any) -> None:
        value = self._chance.choice(_VALUES)
        if isinstance(owner, list):
            owner.append(value)
        else:
            owner[self._chance.choice(("x", "", "\ud800", "name", "seed", "model_type", "a" * 300))] = value

    # Without

    def _cut(self, data: bytes) -> tuple[int, int]:
        start = self._chance.randint(0, len(data))
        return start, min(len(data), start + 1 + int(self._chance.expovariate(0.1)))

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return self._chance.randbytes(1)
        at = self._chance.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self._chance.randrange(8)]) + data[at + 1 :]

    def _replace(self, data: bytes) -> bytes:
        start, stop = self._cut(data)
        return data[:start] + self._chance.randbytes(stop - start) + data[stop:]

    def _insert(self, data: bytes) -> bytes:
        start, stop = self._cut(data)
        return data[:start] + self._chance.randbytes(max(stop - start, 1)) + data[start:]

    def _delete(self, data: bytes) -> bytes:
        start, stop = self._cut(data)
        return data[:start] + data[stop:]

    def _duplicate(self, data: bytes) -> bytes:
        start, stop = self._cut(data)
        at = self._chance.randint(0, len(data))
        return data[:at] + data[start:stop] + data[at:]

    def _truncate(self, data: bytes) -> bytes:
        return data[: self._chance.randint(0, len(data))]

    def _repeat(self, data: bytes) -> bytes:
        start, stop = self._cut(data)
        piece = data[start:stop] or b"\x00"
        times = min(self._chance.choice((2, 8, 64, 1000, 10**7)), max(1, self._most_bytes // len(piece)))
        return data[:start] + piece * times + data[stop:]

    def _number(self, data: bytes) -> bytes:
        size, order = self._chance.choice((1, 2, 4, 8)), self._order()
        number = self._chance.choice(_NUMBERS + _LARGE) & ((1 << 8 * size) - 1)
        at = self._chance.randint(0, max(0, len(data) - size))
        return data[:at] + number.to_bytes(size, order) + data[at + size :]

    def _order(self) -> Literal["little", "big"]:
        return "little" if self._chance.random() < 0.5 else "big"

    def _length(self, data: bytes) -> bytes:
        """Find what looks like a length, and make it wrong."""
        size, order = self._chance.choice((1, 2, 4)), self._order()
        places = [at for at in range(min(len(data), 256)) if 0 < int.from_bytes(data[at : at + size], order) <= len(data) - at]
        if not places:
            return self._number(data)
        at = self._chance.choice(places)
        length = int.from_bytes(data[at : at + size], order) + self._chance.choice((-1, 1, 1, 2, len(data), 2**31))
        return data[:at] + (length & ((1 << 8 * size) - 1)).to_bytes(size, order) + data[at + size :]

    def _varint(self, data: bytes) -> bytes:
        """A varint that is too long, or a large one where a small one was."""
        at = self._chance.randint(0, len(data))
        blown = self._chance.choice((b"\x80" * 9 + b"\x01", b"\xff" * 10, b"\xff" * 9 + b"\x7f", b"\x80\x00", b"\xff\xff\xff\xff\x0f"))
        return data[:at] + blown + data[at + self._chance.randint(0, 1) :]

    def _text(self, data: bytes) -> bytes:
        at = self._chance.randint(0, len(data))
        return data[:at] + self._chance.choice(_TEXTS) + data[at + self._chance.randint(0, 4) :]

    def _splice(self, data: bytes, other: bytes) -> bytes:
        return data[: self._chance.randint(0, len(data))] + other[self._chance.randint(0, len(other)) :]


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (owner, key or index) in a JSON tree."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        owner = waiting.pop()
        keys: Any = owner if isinstance(owner, dict) else range(len(owner)) if isinstance(owner, list) else ()
        for key in keys:
            found.append((owner, key))
            waiting.append(owner[key])
    return found
