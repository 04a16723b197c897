"""Shares of the vector by bandwidth: the closed form against its definition, and whole blocks dealt by it."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.partition import assign_blocks, reducer_shares

BANDWIDTHS = st.lists(st.integers(0, 10**12), min_size=1, max_size=12).filter(any)


def slowest_finish(bandwidths: list[int], shares: list[Fraction]) -> Fraction:
    """When the last reducer has moved its 1 + (n - 2) w vectors."""
    n = len(bandwidths)
    return max((1 + (n - 2) * w) / Fraction(b) for b, w in zip(bandwidths, shares, strict=True) if w)


def best_finish(bandwidths: list[int]) -> Fraction:
    """The smallest possible slowest finish: for each set of reducers, all of them finish together."""
    n = len(bandwidths)
    able = [i for i in range(n) if bandwidths[i]]
    finishes = []
    for k in range(1, len(able) + 1):
        for chosen in combinations(able, k):
            finish = Fraction(n - 2 + k, sum(bandwidths[i] for i in chosen))
            if all(finish * bandwidths[i] >= 1 for i in chosen):
                finishes.append(finish)
    return min(finishes)


def test_the_worked_examples() -> None:
    shares = reducer_shares([400, 300, 200, 100, 50, 25, 0, 0])
    assert shares == [Fraction(1, 2), Fraction(1, 3), Fraction(1, 6), 0, 0, 0, 0, 0]
    assert slowest_finish([400, 300, 200, 100, 50, 25, 0, 0], shares) == Fraction(1, 100)
    mixed = [1000, *[200] * 8, *[100] * 4, *[50] * 4]
    shares = reducer_shares(mixed)
    assert float(shares[0]) == pytest.approx(0.549, abs=5e-4)
    assert [round(float(share), 3) for share in shares[1:9]] == [0.056] * 8
    assert shares[9:] == [0] * 8
    assert float(slowest_finish(mixed, shares)) == pytest.approx(0.0092, abs=5e-5)
    assert reducer_shares([1000, 200, 200, 100]) == [1, 0, 0, 0]  # a parameter server


def test_no_split_finishes_earlier() -> None:
    for bandwidths in product([0, 1, 2, 5, 30], repeat=4):
        if any(bandwidths):
            assert slowest_finish(list(bandwidths), reducer_shares(bandwidths)) == best_finish(list(bandwidths)), bandwidths


@given(BANDWIDTHS)
def test_shares_sum_to_one_and_only_the_able_reduce(bandwidths: list[int]) -> None:
    shares = reducer_shares(bandwidths)
    assert sum(shares) == 1
    assert all(share >= 0 and (bandwidth or not share) for bandwidth, share in zip(bandwidths, shares, strict=True))


@given(BANDWIDTHS, st.integers(1, 1000))
def test_only_proportions_count_and_the_faster_never_reduces_less(bandwidths: list[int], factor: int) -> None:
    shares = reducer_shares(bandwidths)
    assert reducer_shares([bandwidth * factor for bandwidth in bandwidths]) == shares
    ordered = [share for _, share in sorted(zip(bandwidths, shares, strict=True))]
    assert ordered == sorted(ordered)


@pytest.mark.parametrize(
    ("bandwidths", "shares"),
    [
        ([7], [1]),
        ([7, 7], [0.5, 0.5]),
        ([1000, 1], [0.5, 0.5]),
        ([0, 3], [0, 1]),
        ([5, 5, 5], [Fraction(1, 3)] * 3),
        ([0, 0, 9], [0, 0, 1]),
    ],
)
def test_small_groups(bandwidths: list[int], shares: list[float]) -> None:
    assert reducer_shares(bandwidths) == shares


@pytest.mark.parametrize("bandwidths", [[], [0], [0, 0, 0]])
def test_somebody_must_reduce(bandwidths: list[int]) -> None:
    with pytest.raises(ValueError, match="no member can reduce"):
        reducer_shares(bandwidths)
    with pytest.raises(ValueError, match="no member can reduce"):
        assign_blocks(3, bandwidths)


def dealt_by_the_rule(num_blocks: int, bandwidths: list[int]) -> list[int]:
    """Hagenbach-Bischoff as it is written down."""
    shares = reducer_shares(bandwidths)
    counts = [0] * len(shares)
    owners = []
    for _ in range(num_blocks):
        owner = max(range(len(shares)), key=lambda i: (shares[i] / (counts[i] + 1), -i))
        counts[owner] += 1
        owners.append(owner)
    return owners


@given(st.integers(0, 60), st.lists(st.integers(0, 1000), min_size=1, max_size=8).filter(any))
def test_blocks_are_dealt_by_the_rule(num_blocks: int, bandwidths: list[int]) -> None:
    assert list(assign_blocks(num_blocks, bandwidths)) == dealt_by_the_rule(num_blocks, bandwidths)


@given(st.integers(1, 200), BANDWIDTHS)
def test_nobody_gets_less_than_its_whole_quota(num_blocks: int, bandwidths: list[int]) -> None:
    counts = Counter(assign_blocks(num_blocks, bandwidths))
    assert sum(counts.values()) == num_blocks
    for i, share in enumerate(reducer_shares(bandwidths)):
        assert counts[i] >= num_blocks * share // 1
        assert share or not counts[i]


def test_reducers_take_turns() -> None:
    assert assign_blocks(6, [10, 10, 10]) == (0, 1, 2, 0, 1, 2)
    assert assign_blocks(4, [10, 0]) == (0, 0, 0, 0)


def test_a_negative_number_of_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        assign_blocks(-1, [1])
