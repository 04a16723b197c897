"""Codecs with a rate: a block takes at most so many bits an element, and what fits into them is what is kept of it.

Rate-distortion quantisation (Mitchell, Balle, Charles, Konecny, arXiv 2201.02664) takes one step for all elements and codes what comes out
by its entropy. At less than a bit an element that step is far beyond where most of what exceeds half of it lies. Here the dead zone about
0 is set by the rate (`budget.py`), bins beyond it double in width, and each is decoded to the mean of what fell into it, as
entropy-constrained quantisers have it (Chou, Lookabaugh, Gray, IEEE Trans. ASSP 37, 1989; Sullivan, IEEE Trans. Inf. Theory 42, 1996).
`entropy.py` has the bytes.

A block whose elements have few magnitudes, all of the form of a level, is kept as it is if that fits: such is every decoded block, so
decoding is a projection. What is left out decodes to 0: whoever sends such a block has to add it to the next one (error feedback).

Legend: E elements of a block, K that are kept, B bins.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from protocols.codecs import levels
from protocols.codecs.base import BytesLike, Codec, largest_magnitude
from protocols.codecs.budget import OCTAVE, Histogram
from protocols.codecs.entropy import Coded, pack, unpack
from protocols.codecs.largest import SMALLEST_KEPT
from protocols.codecs.levels import SMALLEST_LEVEL
from protocols.codecs.sparse import SparseBlock

_SPARE_BYTES = 32
"""What one element of a small block may take."""

_LOWEST_PERCENT = 5
"""A hundredth of a bit goes to lanes alone."""

_MOST_LEVELS = 255
_TRIES = 6
_ENOUGH = 0.97
"""Of the bytes that there may be."""

_INFINITY = np.uint32(0x7F800000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_DROPPED = np.uint32(0x7FFF)


class RateCodec(Codec):
    """At most `percent` hundredths of a bit an element.

    With M the largest magnitude of a block, the error of an element is at most M and 2^-9 of it.

    Args:
        name: as in a run.
        percent: of a bit, at least 5.
    """

    def __init__(self, name: str, percent: int) -> None:
        if percent < _LOWEST_PERCENT:
            raise ValueError(f"{percent} hundredths of a bit do not carry what every block takes")
        self.name = name
        self.percent = percent

    def max_encoded_bytes(self, elems: int) -> int:
        """The rate, and a little more for small blocks."""
        return elems * self.percent // 800 + _SPARE_BYTES if elems else 0

    def encode(self, block_E: torch.Tensor) -> BytesLike:
        """Encode E finite elements.

        Raises:
            ValueError: an element is NaN or infinite.
        """
        return self._encoded(block_E)[0]

    def _encoded(self, block_E: torch.Tensor) -> tuple[bytes, Coded | None]:
        bits_E = block_E.detach().contiguous().numpy().view(np.uint32)
        magnitudes_E, most_bytes = bits_E & _MAGNITUDE, self.max_encoded_bytes(bits_E.size)
        if int(magnitudes_E.max(initial=0)) >= _INFINITY:
            raise ValueError("an element is NaN or infinite")
        if not bits_E.size:
            return b"", None
        rounded_E = levels.rounded(magnitudes_E.view(np.float32))
        histogram = Histogram(rounded_E)
        if not int(np.bitwise_or.reduce(magnitudes_E) & _DROPPED):
            coded = _as_it_is(histogram, rounded_E, bits_E)
            data = pack(coded) if coded else b""
            if coded and len(data) <= most_bytes:
                return data, coded
        return _fitting(histogram, rounded_E, bits_E, most_bytes)

    def open(self, data: BytesLike, elems: int) -> SparseBlock:
        """Check and decode; none of the elements that were left out is touched.

        Raises:
            ValueError: not one of the lengths that there may be, and as `unpack`.
        """
        length = memoryview(data).nbytes
        if length not in self.lengths(elems):
            raise ValueError(f"{length} bytes where at most {self.max_encoded_bytes(elems)} were expected")
        if not elems:
            return SparseBlock(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32), 0)
        coded = unpack(bytes(data), elems)
        magnitudes_K = levels.values(coded.levels_L)[coded.ranks_K]
        return SparseBlock(coded.places_K, np.where(coded.negative_K, -magnitudes_K, magnitudes_K), elems)

    def worst_error(self, block_E: torch.Tensor) -> float:
        """Whatever is left out is no larger than what is kept, and that becomes the mean of its bin."""
        return largest_magnitude(block_E) * (1 + levels.RELATIVE_ERROR)

    def error_norm(self, block_E: torch.Tensor) -> float:
        """From the encoding, which a block and what it was decoded to have in common.

        What is left out is no larger than the smallest kept element, and that no larger than the lowest level. Elements of a bin lie
        between a and 2a, and so does their mean m: their squared distances sum to at most n (2a-m)(m-a), which is at most n m^2/8 for
        any a (Bhatia and Davis, Am. Math. Monthly 107, 2000). Rounding comes on top.
        """
        _, coded = self._encoded(block_E)
        if coded is None:
            return 0.0
        values_L, elems_L = levels.values(coded.levels_L).astype(np.float64), coded.elems_of_levels
        lowest = (float(values_L[0]) if values_L.size else SMALLEST_KEPT) * (1 + 4 * levels.RELATIVE_ERROR)
        left_out = (coded.elems - coded.places_K.size) * lowest**2
        length = math.sqrt(float((elems_L * values_L**2).sum()))
        return math.sqrt(left_out + length**2 / 8) + 4 * levels.RELATIVE_ERROR * length


def _as_it_is(histogram: Histogram, rounded_E: NDArray[np.uint16], bits_E: NDArray[np.uint32]) -> Coded | None:
    """Nothing left out, or None where that needs too many levels."""
    found = np.flatnonzero(histogram.counts_H)
    if found.size > _MOST_LEVELS or bool(((rounded_E > 0) & (rounded_E < SMALLEST_LEVEL)).any()):
        return None
    places_K = np.flatnonzero(rounded_E)
    ranks_K = np.searchsorted(found, rounded_E[places_K]).astype(np.uint8)
    return Coded(rounded_E.size, places_K, ranks_K, _signs(bits_E, places_K), found.astype(np.uint16))


def _fitting(histogram: Histogram, rounded_E: NDArray[np.uint16], bits_E: NDArray[np.uint32], most_bytes: int) -> tuple[bytes, Coded]:
    """As much as fits, or nearly. The estimate is too high where what is kept lies together, and may be a little too low."""
    budget, too_much, found = 8.0 * most_bytes, math.inf, None
    for _ in range(_TRIES):
        coded = _largest(histogram, rounded_E, bits_E, budget)
        data = pack(coded)
        if len(data) > most_bytes:
            too_much, lower = budget, budget * (0.998 * most_bytes / len(data))
            budget = (budget + lower) / 2 if found else lower
            continue
        if found is None or len(data) > len(found[0]):
            found = data, coded
        if len(data) >= _ENOUGH * most_bytes or coded.places_K.size == histogram.most:
            break
        budget = min(budget * most_bytes / len(data), (budget + too_much) / 2)
    return found or _one(histogram, rounded_E, bits_E)


def _one(histogram: Histogram, rounded_E: NDArray[np.uint16], bits_E: NDArray[np.uint32]) -> tuple[bytes, Coded]:
    coded = _largest(histogram, rounded_E, bits_E, 0.0)
    return pack(coded), coded


def _largest(histogram: Histogram, rounded_E: NDArray[np.uint16], bits_E: NDArray[np.uint32], budget: float) -> Coded:
    """The largest ones that seem to fit, each as the mean of its bin."""
    if not histogram.most:
        nothing = np.empty(0, dtype=np.uint8)
        return Coded(rounded_E.size, np.empty(0, dtype=np.int64), nothing, nothing, np.empty(0, dtype=np.uint16))
    kept = histogram.fitting(budget)
    places_K = np.flatnonzero(rounded_E >= kept.threshold)
    if places_K.size > kept.count:
        least = rounded_E[places_K] == kept.threshold
        places_K = places_K[~least | (np.cumsum(least) <= kept.first)]
    rounded_K = rounded_E[places_K]
    bins_K = (rounded_K - np.uint16(kept.threshold)) // np.uint16(OCTAVE)
    elems_B = np.bincount(bins_K)
    sums_B = np.bincount(bins_K, levels.values(rounded_K).astype(np.float64))  # one by one, in this order: on no machine otherwise
    used_B = elems_B > 0
    means = (sums_B[used_B] / elems_B[used_B]).astype(np.float32)
    ranks_B = (np.cumsum(used_B) - 1).astype(np.uint8)
    return Coded(rounded_E.size, places_K, ranks_B[bins_K], _signs(bits_E, places_K), levels.rounded(means))


def _signs(bits_E: NDArray[np.uint32], places_K: NDArray[np.int64]) -> NDArray[np.uint8]:
    return (bits_E[places_K] >> np.uint32(31)).astype(np.uint8)
