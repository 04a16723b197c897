"""Bytes of an entropy-coded sparse block. Read `rate.py` first.

Which elements are kept is a row of bits, which level each of them becomes a row of numbers; both are coded by `protocols.rans`, in the same
lanes. Lanes begin with signs, 32 each, as long as there are some. The row of bits needs no table: its shares follow from E and K.

Format, little-endian. u8 levels L; nothing else if 0, where all elements are 0. L levels, u16 each, ascending. u32 K. If L > 1: L shares of
2^16, u16 each, less 1. Then bits, the highest first, filled up to a byte: of each lane 5 for the length of its last state less 33, those
states without their first bit, signs that no lane began with. Then words, u32 each, to the end.

There is one encoding of a block: shares are those of the numbers, all levels are used, and what is decoded is checked for it.

Legend: E elements of a block, K that are kept, L levels, F lanes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols import rans
from protocols.codecs import levels
from protocols.codecs.records import Levels

_COUNT = struct.Struct("<I")
_KEPT_OF_A_LANE = 96
"""A lane costs about 5 bits, and such elements some hundreds."""

_ELEMS_OF_A_LANE = 4096
"""Steps take time, however few elements are kept."""

_MOST_LANES = 2048
SEED_BITS = 32
"""That a lane begins with."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Coded:
    """What a block holds.

    Args:
        elems: E.
        places_K: of the kept elements, ascending.
        ranks_K: which level each becomes.
        negative_K: their signs, 1 or 0.
        levels_L: u16, ascending; each is used.
    """

    elems: int
    places_K: Ids
    ranks_K: NDArray[np.uint8]
    negative_K: rans.Bits
    levels_L: Levels

    @property
    def elems_of_levels(self) -> Ids:
        """How many elements become each level."""
        return np.bincount(self.ranks_K, minlength=self.levels_L.size)


def pack(coded: Coded) -> bytes:
    """Its bytes."""
    count, size = coded.places_K.size, coded.levels_L.size
    if not count:
        return b"\0"
    lanes = lanes_for(coded.elems, count)
    seeds = np.zeros(SEED_BITS * lanes, dtype=np.uint8)
    seeds[: min(count, seeds.size)] = coded.negative_K[: seeds.size]
    states_F = rans.begun(np.packbits(seeds).view(">u4").astype(np.uint64))
    head, words = [bytes([size]), coded.levels_L.astype("<u2").tobytes(), _COUNT.pack(count)], np.empty(0, dtype=np.uint64)
    if size > 1:  # first, as it is decoded last
        shares_L = rans.frequencies(coded.elems_of_levels)
        head.append((shares_L - 1).astype("<u2").tobytes())
        states_F, words = rans.encode(rans.Alphabet(shares_L), coded.ranks_K, states_F)
    bits_E = np.zeros(coded.elems, dtype=np.uint8)
    bits_E[coded.places_K] = 1
    states_F, first_words = rans.encode(_kept_or_not(coded.elems, count), bits_E, states_F)
    lengths_F = rans.bit_lengths(states_F)
    tail = [
        rans.bits_of((lengths_F - 33).astype(np.uint64), np.full(lanes, 5)),
        rans.bits_of(states_F, lengths_F - 1),
        coded.negative_K[seeds.size :],
    ]
    return b"".join([*head, np.packbits(np.concatenate(tail)).tobytes(), np.concatenate([first_words, words]).astype("<u4").tobytes()])


def unpack(data: bytes, elems: int) -> Coded:
    """What they say; E is at least 1.

    Raises:
        ValueError: not exactly what `pack` makes of such a block.
    """
    size = data[0]
    if not size:
        _require(len(data) == 1, "more bytes than zeros need")
        return Coded(elems, np.empty(0, dtype=np.int64), *(np.empty(0, dtype=np.uint8),) * 2, np.empty(0, dtype=np.uint16))
    at = 1 + 2 * size
    _require(len(data) >= at + _COUNT.size, _SHORT)
    levels_L = np.frombuffer(data, "<u2", size, 1).astype(np.uint16)
    levels.check_table(levels_L[None])
    _require(bool(levels_L.all()), "levels are not ascending")
    (count,) = _COUNT.unpack_from(data, at)
    _require(size <= count <= elems, "more levels than elements that are kept, or more of these than there are")
    at += _COUNT.size
    shares_L = np.empty(0, dtype=np.int64)
    if size > 1:
        _require(len(data) >= at + 2 * size, _SHORT)
        shares_L = np.frombuffer(data, "<u2", size, at).astype(np.int64) + 1
        at += 2 * size
    states_F, negative, words = _tail(data[at:], lanes_for(elems, count), count)
    return _symbols(
        Coded(elems, np.empty(0, dtype=np.int64), np.zeros(count, dtype=np.uint8), negative, levels_L), shares_L, states_F, words
    )


_SHORT = "an encoding is too short"


def _tail(data: bytes, lanes: int, count: int) -> tuple[rans.Words, rans.Bits, rans.Words]:
    """Last states, signs that no lane began with, words."""
    bits = rans.BitReader(np.unpackbits(np.frombuffer(data, np.uint8, min(len(data), 10 * lanes + count // 8 + 1))))
    lengths_F = bits.numbers(np.full(lanes, 5)).astype(np.int64) + 33
    states_F = bits.numbers(lengths_F - 1) | np.uint64(1) << (lengths_F - 1).astype(np.uint64)
    left = max(0, count - SEED_BITS * lanes)
    signs = bits.take(left)
    used = 5 * lanes + int(lengths_F.sum()) - lanes + left
    end = -(-used // 8)
    _require(not bits.take(8 * end - used).any(), "a bit that is not used is not zero")
    _require((len(data) - end) % 4 == 0, "words are cut off")
    return states_F, signs, np.frombuffer(data, "<u4", offset=end).astype(np.uint64)


def _symbols(coded: Coded, shares_L: Ids, states_F: rans.Words, words: rans.Words) -> Coded:
    """Decode both rows."""
    count, size = coded.ranks_K.size, coded.levels_L.size
    bits_E, states_F, words = rans.decode(_kept_or_not(coded.elems, count), coded.elems, states_F, words)
    places_K, ranks_K = np.flatnonzero(bits_E), coded.ranks_K
    _require(places_K.size == count, "not as many elements as it says")
    if size > 1:
        found_K, states_F, words = rans.decode(rans.Alphabet(shares_L), count, states_F, words)
        ranks_K = found_K.astype(np.uint8, copy=False)
    _require(not words.size, "words are left over")
    begun = np.unpackbits(rans.seeds_of(states_F).astype(">u4").view(np.uint8))
    _require(not begun[count:].any(), "a bit that is not used is not zero")
    found = Coded(coded.elems, places_K, ranks_K, np.concatenate([begun[:count], coded.negative_K]), coded.levels_L)
    elems_L = found.elems_of_levels
    _require(bool(elems_L.all()), "a level is not used")
    _require(size == 1 or bool((rans.frequencies(elems_L) == shares_L).all()), "shares of other numbers")
    return found


def _kept_or_not(elems: int, count: int) -> rans.Alphabet:
    return rans.Alphabet(rans.frequencies(np.array([elems - count, count])))


def lanes_for(elems: int, count: int) -> int:
    """How many lanes code a block of E elements of which so many are kept."""
    return max(1, min(max(count // _KEPT_OF_A_LANE, elems // _ELEMS_OF_A_LANE), _MOST_LANES))


def _require(right: bool, otherwise: str) -> None:
    if not right:
        raise ValueError(otherwise)
