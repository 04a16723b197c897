"""Shares of the vector: what hivemind's `test_averaging.py` asks of its linear programme, for the closed form of `protocols/partition.py`.

There a share below ten elements is set to zero; here the vector is dealt in whole blocks, so nobody gets less than one. The exact cases are
in `tests/unit/protocols/test_partition.py`. Here is a proof for any number of members: by the time when our slowest reducer is through, all
together can reduce the vector just once, so no other split finishes earlier.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

import pytest

from protocols.partition import block_counts, reducer_shares


def finish(bandwidths: Sequence[int], shares: Sequence[Fraction]) -> Fraction:
    """When the slowest reducer has moved its 1 + (n - 2) w vectors."""
    n = len(bandwidths)
    return max((1 + (n - 2) * w) / b for b, w in zip(bandwidths, shares, strict=True) if w)


def capacity(bandwidths: Sequence[int], by_s: Fraction) -> Fraction:
    """How many vectors all members can reduce by that time: w with (1 + (n - 2) w) / b = time, none below 0 and none above 1."""
    n = len(bandwidths)
    return sum((min(max((by_s * b - 1) / Fraction(n - 2), Fraction(0)), Fraction(1)) for b in bandwidths), Fraction(0))


def random_case(seed: int) -> list[int | None]:
    """Up to 256 members: most of them with a bandwidth, clients, and some that nobody knows anything about."""
    draw = random.Random(seed)
    kinds = draw.choices(["known", "client", "unknown"], [8, 1, 1], k=draw.randint(3, 256))
    return [10**6, *(None if kind == "unknown" else 0 if kind == "client" else draw.randint(1, 10**8) for kind in kinds)]


@pytest.mark.parametrize("seed", range(10))
def test_no_split_of_any_kind_finishes_earlier(seed: int) -> None:
    """The ten random cases; sums are exact, who offers nothing reduces nothing, and who is unknown counts as the mean of the known."""
    case = random_case(seed)
    known = [speed for speed in case if speed]
    speeds = [sum(known) // len(known) if speed is None else speed for speed in case]
    shares = reducer_shares(case)
    assert shares == reducer_shares(speeds)
    assert sum(shares) == 1
    assert all(share == 0 for share, speed in zip(shares, speeds, strict=True) if not speed)
    ends_s = finish(speeds, shares)
    assert capacity(speeds, ends_s) == 1 or max(shares) == 1
    assert capacity(speeds, ends_s * Fraction(10**9 - 1, 10**9)) < 1
    for num_blocks in (1, 7, 1000):
        counts = block_counts(num_blocks, case)
        assert sum(counts) == num_blocks
        assert all(count == 0 for count, speed in zip(counts, speeds, strict=True) if not speed)


@pytest.mark.parametrize(
    ("bandwidths", "suites_elems"),
    [([55, 44, 40], [41, 19, 0]), ([32, 55, 44], [0, 40, 20])],
)
def test_blocks_of_ten_elements_where_shares_below_ten_do_not_count(bandwidths: list[int], suites_elems: list[int]) -> None:
    """60 elements: nobody has fewer than ten unless it has none, and we are never later than the split that the suite expects."""
    elems = [10 * count for count in block_counts(6, bandwidths)]
    assert sum(elems) == 60
    expected = [Fraction(part, 60) for part in suites_elems]
    found = [Fraction(part, 60) for part in elems]
    assert finish(bandwidths, found) <= finish(bandwidths, expected)
