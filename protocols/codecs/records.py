"""A chunk of a sparse block as a record of fixed length: which elements are kept, and what each has become.

Positions are written as Elias and Fano have it (P. Elias, J. ACM 21, 1974): the lower l bits of each as they are, the upper ones as a row
of bits in which the i-th position, h its upper bits, sets bit h + i. With k of C elements that takes l k bits and k + (C-1)/2^l more: 8
bits a position for 64 of 4096, where plain ones take 12 and no code takes less than log2(binomial(4096, 64))/64 = 7.36 on average.

Layout: levels (u16 each), upper bits, lower bits, codes; each field begins with a byte, lowest bit first, and unused bits are 0.

Legend: N chunks of C elements, K slots of a record, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Levels = NDArray[np.uint16]
Numbers = NDArray[np.int64]
Filled = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Chunks:
    """What records hold.

    Args:
        places_NK: positions in their chunks, ascending.
        codes_NK: of the elements there.
        filled_NK: which slots are used: the first ones of each record. Places and codes of others are 0.
        levels_NL: as bits.
    """

    places_NK: Numbers
    codes_NK: Numbers
    filled_NK: Filled
    levels_NL: Levels


@dataclass(frozen=True, slots=True)
class RecordFormat:
    """Lengths of the fields of a record.

    Args:
        elems: C, elements of a chunk.
        slots: K, how many are kept at most.
        code_bits: of each kept element.
        levels: L, entries of a record's table.
    """

    elems: int
    slots: int
    code_bits: int
    levels: int

    @property
    def low_bits(self) -> int:
        """Bits of a position that are written as they are."""
        return (self.elems // self.slots).bit_length() - 1

    @property
    def high_bits(self) -> int:
        """Length of the row of bits of the others."""
        return self.slots + ((self.elems - 1) >> self.low_bits)

    @property
    def ends(self) -> tuple[int, int, int, int]:
        """Where the fields end, in bytes: levels, upper bits, lower bits, codes."""
        found, end = [], 0
        for bits in (16 * self.levels, self.high_bits, self.low_bits * self.slots, self.code_bits * self.slots):
            end += -(-bits // 8)
            found.append(end)
        return found[0], found[1], found[2], found[3]

    @property
    def record_bytes(self) -> int:
        """Length of a record."""
        return self.ends[-1]

    def write(self, chunks: Chunks, out_NB: Bytes) -> None:
        """Write records, N x `record_bytes`."""
        levels, highs, lows, _ = self.ends
        out_NB[:, :levels] = np.ascontiguousarray(chunks.levels_NL, dtype="<u2").view(np.uint8)
        row_NB = np.zeros((len(out_NB), 8 * (highs - levels)), dtype=np.uint8)
        rows, slots = np.nonzero(chunks.filled_NK)
        row_NB[rows, (chunks.places_NK[rows, slots] >> self.low_bits) + slots] = 1
        out_NB[:, levels:highs] = np.packbits(row_NB, axis=1, bitorder="little")
        out_NB[:, highs:lows] = _packed(chunks.places_NK & (2**self.low_bits - 1), self.low_bits)
        out_NB[:, lows:] = _packed(chunks.codes_NK, self.code_bits)

    def read_levels(self, data_NB: Bytes) -> Levels:
        """The tables of records, N x L."""
        return np.ascontiguousarray(data_NB[:, : self.ends[0]]).view("<u2").astype(np.uint16)

    def read(self, data_NB: Bytes) -> Chunks:
        """Read records. What levels and codes mean is not looked at.

        Raises:
            ValueError: positions that are not ascending or beyond the chunk, more of them than slots, an unused bit or slot that is not 0.
        """
        levels, highs, lows, _ = self.ends
        places_NK, filled_NK = self._uppers(data_NB[:, levels:highs])
        places_NK <<= self.low_bits
        low_NK = _unpacked(data_NB[:, highs:lows], self.slots, self.low_bits)
        codes_NK = _unpacked(data_NB[:, lows:], self.slots, self.code_bits)
        if bool((low_NK[~filled_NK] != 0).any()) or bool((codes_NK[~filled_NK] != 0).any()):
            raise ValueError("an empty slot is not zero")
        places_NK += low_NK
        if int(places_NK.max(initial=0)) >= self.elems:
            raise ValueError("a position is beyond its chunk")
        if bool(((np.diff(places_NK, axis=1) <= 0) & filled_NK[:, 1:]).any()):
            raise ValueError("positions are not ascending")
        return Chunks(places_NK, codes_NK, filled_NK, self.read_levels(data_NB))

    def _uppers(self, data_NB: Bytes) -> tuple[Numbers, Filled]:
        row_NB = np.unpackbits(data_NB, axis=1, bitorder="little")
        if bool(row_NB[:, self.high_bits :].any()):
            raise ValueError("an unused bit is not zero")
        chunks, bits = np.nonzero(row_NB)
        counts_N = np.bincount(chunks, minlength=len(data_NB))
        if int(counts_N.max(initial=0)) > self.slots:
            raise ValueError("more positions than slots")
        slots = np.arange(chunks.size) - np.repeat(np.cumsum(counts_N) - counts_N, counts_N)
        found_NK = np.zeros((len(data_NB), self.slots), dtype=np.int64)
        found_NK[chunks, slots] = bits - slots
        return found_NK, np.arange(self.slots) < counts_N[:, None]


def _packed(numbers_NK: Numbers, bits: int) -> Bytes:
    """Numbers of so many bits each, lowest bit first; each row ends with its last byte."""
    planes = numbers_NK.astype(np.uint16)[:, :, None] >> np.arange(bits, dtype=np.uint16) & np.uint16(1)
    return np.packbits(planes.astype(np.uint8).reshape(len(numbers_NK), -1), axis=1, bitorder="little")


def _unpacked(data_NB: Bytes, slots: int, bits: int) -> Numbers:
    """The reverse.

    Raises:
        ValueError: an unused bit is set.
    """
    row_NB = np.unpackbits(data_NB, axis=1, bitorder="little")
    if bool(row_NB[:, slots * bits :].any()):
        raise ValueError("an unused bit is not zero")
    planes_NKB = row_NB[:, : slots * bits].reshape(len(data_NB), slots, bits)
    found_NK = np.zeros((len(data_NB), slots), dtype=np.int64)
    for bit in range(bits):
        found_NK += planes_NKB[:, :, bit].astype(np.int64) << bit
    return found_NK
