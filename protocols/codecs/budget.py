"""How many elements of a block fit into so many bits: the choice of the codecs with a rate. Read `rate.py` first.

Everything follows from one histogram, of magnitudes as `levels.py` rounds them. There, twice as large is 2^8 further. With the K largest
kept, the threshold t is the smallest of them, and a bin goes from t 2^i to just below t 2^(i+1). What that takes is the entropy of which
elements are kept, of their bins, and a sign each. K is found by halving an interval: nothing is encoded meanwhile.

All machines find the same K: counts are integers, logarithms are made of what IEEE rounds exactly, and sums of them are exact (`fsum`).

Legend: E elements of a block, K that are kept, B bins, H possible rounded magnitudes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.codecs.entropy import SEED_BITS, lanes_for
from protocols.codecs.levels import LARGEST_LEVEL, SMALLEST_LEVEL

Counts = NDArray[np.int64]

OCTAVE = 256
"""Rounded magnitudes between a number and its double."""

_BITS_OF_A_LEVEL = 32
"""The level and its share."""

_BITS_OF_A_LANE = 5.5
_BITS_BESIDE = 64
"""Of the fields of fixed length, and of what fills up bytes."""

_OVER_ENTROPY = 1.003
"""Shares are rounded."""

_ROOT_HALF, _LOG_2 = 0.7071067811865476, 0.6931471805599453
_TERMS = 8


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a block.

    Args:
        count: K.
        threshold: the smallest rounded magnitude among them.
        first: how many of those that are equal to it: the first ones.
    """

    count: int
    threshold: int
    first: int


def log2(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of positive numbers, the same on any machine, to within 1e-12: 2 artanh((m - r)/(m + r)) for m = x/2^e, r = sqrt(1/2)."""
    mantissas, exponents = np.frexp(numbers)
    ratios = (mantissas - _ROOT_HALF) / (mantissas + _ROOT_HALF)
    squares, found = ratios * ratios, np.zeros_like(ratios)
    for term in range(_TERMS - 1, -1, -1):
        found = found * squares + 1.0 / (2 * term + 1)
    logs: NDArray[np.float64] = 2.0 * ratios * found / _LOG_2 + (exponents - 0.5)
    return logs


def entropy_bits(counts: Counts) -> float:
    """Of so many symbols of each kind, all together."""
    counts = counts[counts > 0]
    return math.fsum(counts * (log2(np.array([counts.sum()], dtype=np.float64)) - log2(counts.astype(np.float64))))


class Histogram:
    """Of a block's rounded magnitudes.

    Args:
        rounded_E: as `levels.rounded` makes them, subnormal ones too.
    """

    def __init__(self, rounded_E: NDArray[np.uint16]) -> None:
        counts_H = np.bincount(rounded_E, minlength=LARGEST_LEVEL + 1)
        counts_H[:SMALLEST_LEVEL] = 0
        self.elems = rounded_E.size
        self.counts_H: Counts = counts_H
        self._above_H: Counts = np.zeros(LARGEST_LEVEL + 2, dtype=np.int64)  # how many are not below; the last one is 0
        np.cumsum(counts_H[::-1], out=self._above_H[-2::-1])
        self._ascending_H = -self._above_H
        self.most = int(self._above_H[0])
        """How many could be kept."""

    def kept(self, count: int) -> Kept:
        """The `count` largest ones, at least one and at most `most`."""
        threshold = int(np.searchsorted(self._ascending_H, -count, side="right")) - 1
        return Kept(count, threshold, count - int(self._above_H[threshold + 1]))

    def bins(self, kept: Kept) -> Counts:
        """How many lie in each bin."""
        above_B = np.append(self._above_H[kept.threshold :: OCTAVE], 0)
        above_B[0] = kept.count
        bins_B: Counts = above_B[:-1] - above_B[1:]
        return bins_B

    def bits(self, kept: Kept) -> float:
        """What they take: an estimate, within half a percent where they are many."""
        bins_B = self.bins(kept)
        where = entropy_bits(np.array([self.elems - kept.count, kept.count]))
        lanes = lanes_for(self.elems, kept.count)
        coded = (where + entropy_bits(bins_B)) * _OVER_ENTROPY + max(kept.count, SEED_BITS * lanes)
        return coded + _BITS_OF_A_LANE * lanes + _BITS_OF_A_LEVEL * int(np.count_nonzero(bins_B)) + _BITS_BESIDE

    def fitting(self, bits: float) -> Kept:
        """As many as seem to fit; at least one."""
        least, most = 1, self.most
        while least < most:
            middle = (least + most + 1) // 2
            if self.bits(self.kept(middle)) <= bits:
                least = middle
            else:
                most = middle - 1
        return self.kept(least)
