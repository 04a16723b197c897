"""Levels: the few magnitudes that the kept elements of a chunk become.

A magnitude is first rounded to a number of 8 exponent and 8 mantissa bits, the form that scales have in `blockwise.py`. A chunk with at
most L different ones keeps them. Else its elements are split at their mean, each half at its own, and so on, into L parts, and a level is
the mean of a part, so rounded. Parts that come to one level are one part. What was decoded has at most L different magnitudes and so stays
as it is. Sums are in fp64 and in the order of the elements, so all machines find the same.

SparseLoCo (arXiv 2508.15706) splits evenly at multiples of the deviation, with signs in it: of numbers of both signs, of which the smaller
ones are gone, two of its four levels remain unused. A mean splits what it is given.

Legend: P kept elements of N chunks, L levels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocols.codecs.records import Levels

DROPPED_BITS = np.uint32(15)
SMALLEST_LEVEL = 0x0100
LARGEST_LEVEL = 0xFEFF
RELATIVE_ERROR = 2.0**-9
"""Of a rounded magnitude, and of a rounded mean."""

_HALF = np.uint32(1 << 14)

Ids = NDArray[np.int64]
Numbers = NDArray[np.float64]


def rounded(magnitudes_P: NDArray[np.float32]) -> Levels:
    """Bits of the nearest number of this form, of the larger one from the middle; never an infinity. Needs what is normal and finite."""
    bits_P: Levels = np.minimum((magnitudes_P.view(np.uint32) + _HALF) >> DROPPED_BITS, LARGEST_LEVEL).astype(np.uint16)
    return bits_P


def values(bits: Levels) -> NDArray[np.float32]:
    """The magnitudes that these bits stand for."""
    return (bits.astype(np.uint32) << DROPPED_BITS).view(np.float32)


def choose(bits_P: Levels, chunks_P: Ids, chunks: int, depth: int) -> tuple[Levels, Ids]:
    """Levels of each chunk, ascending, unused ones 0 and last; and which one each element becomes.

    Args:
        bits_P: rounded magnitudes.
        chunks_P: whose they are, ascending.
        chunks: N.
        depth: L is two to the power of it.
    """
    count = 2**depth
    found_P = values(bits_P).astype(np.float64)
    parts_P = np.zeros_like(chunks_P)
    for level in range(depth):
        ids_P = (chunks_P << level) + parts_P
        means = _means(found_P, ids_P, chunks << level)
        parts_P = 2 * parts_P + (found_P > means[ids_P])
    if depth > 1:  # one mean parts two numbers by itself, three do not part any eight
        parts_P = _few_as_they_are(bits_P, chunks_P, chunks, parts_P, count)
    ids_P = chunks_P * count + parts_P
    levels = rounded(_means(found_P, ids_P, chunks * count).astype(np.float32))  # an empty part's is 0
    return _ranked(levels.reshape(chunks, count), ids_P)


def _means(found_P: Numbers, ids_P: Ids, count: int) -> Numbers:
    """Mean of each part, 0 of an empty one. `bincount` adds one by one, in this order: on no machine otherwise."""
    elems = np.bincount(ids_P, minlength=count)
    means: Numbers = np.bincount(ids_P, found_P, minlength=count) / np.maximum(elems, 1)
    return means


def _few_as_they_are(bits_P: Levels, chunks_P: Ids, chunks: int, parts_P: Ids, count: int) -> Ids:
    """Parts of one number each where a chunk has few different ones."""
    keys_P = (chunks_P << 16) + bits_P
    keys = np.sort(keys_P)
    keys = keys[np.diff(keys, prepend=-1) > 0]
    different_N = np.bincount(keys >> 16, minlength=chunks)
    few_P = different_N[chunks_P] <= count
    first_N = np.cumsum(different_N) - different_N
    parts_P[few_P] = np.searchsorted(keys, keys_P[few_P]) - first_N[chunks_P[few_P]]
    return parts_P


def _ranked(levels_NL: Levels, ids_P: Ids) -> tuple[Levels, Ids]:
    """Leave out parts without elements, join those of one level."""
    chunks, count = levels_NL.shape
    ranks_NL = np.zeros((chunks, count), dtype=np.int64)
    table_NL = np.zeros_like(levels_NL)
    used_N, last_N, rows = np.zeros(chunks, dtype=np.int64), np.zeros(chunks, dtype=np.uint16), np.arange(chunks)
    for part in range(count):
        level_N = levels_NL[:, part]
        new_N = level_N > last_N  # an empty part has level 0
        table_NL[rows[new_N], used_N[new_N]] = level_N[new_N]
        used_N += new_N
        last_N = np.maximum(last_N, level_N)
        ranks_NL[:, part] = used_N - 1
    return table_NL, ranks_NL.reshape(-1)[ids_P]


def check_table(levels_NL: Levels) -> None:
    """That tables are as `choose` makes them.

    Raises:
        ValueError: they are not.
    """
    if int(levels_NL.max(initial=0)) > LARGEST_LEVEL:
        raise ValueError("a level is NaN or infinite")
    used_NL = levels_NL > 0
    if bool((used_NL & (levels_NL < SMALLEST_LEVEL)).any()):
        raise ValueError("a level is subnormal")
    if bool((used_NL[:, 1:] & ((levels_NL[:, 1:] <= levels_NL[:, :-1]) | ~used_NL[:, :-1])).any()):
        raise ValueError("levels are not ascending")


def check_use(levels_NL: Levels, elems_NL: Ids) -> None:
    """That elements become all levels that there are, and no others.

    Raises:
        ValueError: they do not.
    """
    if bool(((levels_NL > 0) != (elems_NL > 0)).any()):
        raise ValueError("a level is not used, or one that is not there is")


def spread_squares(levels_NL: Levels, elems_NL: Ids) -> Numbers:
    """Square of the 2-norm of what the kept elements of each chunk may have lost by becoming levels, at most.

    Parts are in order, so a part's elements lie between the means of its neighbours: with mean m and bounds a and b their squared distances
    from m sum to at most n (b-m) (m-a) (Bhatia and Davis, Am. Math. Monthly 107, 2000). The uppermost part has no b: there it is n (n-1)
    (m-a)^2, with all elements but one at a. Where there is one level, the means of the two halves are within rounding of it. That of levels
    and of elements comes on top.
    """
    found_NL = values(levels_NL).astype(np.float64)
    slack = 2 * RELATIVE_ERROR * found_NL
    below_NL = np.pad(found_NL - slack, ((0, 0), (1, 0)))[:, :-1]
    above_NL = np.pad(found_NL + slack, ((0, 0), (0, 1)))[:, 1:]
    down_NL = found_NL + slack - below_NL
    last_NL = above_NL == 0
    squares_NL = np.where(last_NL, (elems_NL - 1) * down_NL**2, (above_NL - found_NL + slack) * down_NL) * elems_NL
    single_N = (levels_NL > 0).sum(1) == 1
    squares_NL[single_N] = (elems_NL * slack)[single_N] ** 2
    roundings_N = 4 * RELATIVE_ERROR * np.sqrt((elems_NL * found_NL**2).sum(1))
    total_N: Numbers = ((1 + 2 * RELATIVE_ERROR) * np.sqrt((squares_NL * (elems_NL > 0)).sum(1)) + roundings_N) ** 2
    return total_N
