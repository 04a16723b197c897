"""Claims, what others have seen, and what a plan makes of both."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.bandwidth import (
    ALIKE,
    FREE_EPOCHS,
    HEADROOM,
    VectorBytes,
    assigned_reducers,
    believed_bandwidths,
    proven_by,
    reducer_bandwidths,
    stream_rates,
)
from protocols.errors import RoundError
from protocols.ids import Epoch
from protocols.messages import Plan, Proven, Report, SealedJoin
from protocols.settlement import settle
from tests.helpers.round_values import join_of, peer, plan_of

A, B, C, D = (peer(number) for number in range(4))


def with_proven(join: SealedJoin, **seen: int) -> SealedJoin:
    """A join that speaks of others' links, by letter."""
    peers = {"a": A, "b": B, "c": C, "d": D}
    return replace(join, join=replace(join.join, proven=tuple(Proven(peers[name], rate) for name, rate in seen.items())))


def test_what_nobody_has_seen_is_believed_up_to_the_middle_of_the_group() -> None:
    assert believed_bandwidths([1000, 10, 100], [[], [], []]) == [100, 10, 100]
    assert believed_bandwidths([1000, 10, 100, 300], [[]] * 4) == [300, 10, 100, 300]
    assert believed_bandwidths([0, 70, 0], [[], [], []]) == [0, 70, 0]
    assert believed_bandwidths([0, 0], [[], []]) == [0, 0]


def test_a_claim_counts_up_to_a_multiple_of_what_was_proven() -> None:
    assert believed_bandwidths([1000, 10, 10], [[50, 50], [10], [10]]) == [100, 10, 10]
    assert believed_bandwidths([60, 10, 10], [[50, 50], [10], [10]]) == [60, 10, 10]


def test_one_friend_among_the_observers_does_not_help() -> None:
    assert believed_bandwidths([1000, 10, 10, 10], [[50, 10**9, 40], [], [], []])[0] == 100
    assert believed_bandwidths([1000, 10, 10, 10], [[50, 10**9], [], [], []])[0] == 100


def test_proven_almost_nothing_still_reduces() -> None:
    assert believed_bandwidths([1000, 900], [[0], [900]]) == [1, 900]


def test_small_differences_count_for_nothing() -> None:
    assert believed_bandwidths([100, 85, 81, 79], [[100], [100], [100], [100]]) == [88, 88, 88, 79]
    assert believed_bandwidths([100, 79, 70, 63, 50], [[99]] * 5) == [100, 74, 74, 63, 50]


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=16), st.data())
def test_nobody_is_believed_far_above_its_claim_or_what_it_proved(claims: list[int], data: st.DataObject) -> None:
    seen = st.lists(st.integers(1, 10**12), max_size=15)
    proven = data.draw(st.lists(seen, min_size=len(claims), max_size=len(claims)))
    believed = believed_bandwidths(claims, proven)
    for claim, rates, belief in zip(claims, proven, believed, strict=True):
        assert (belief == 0) == (claim == 0)
        assert belief <= claim / ALIKE
        assert not rates or belief <= HEADROOM * sorted(rates)[(len(rates) - 1) // 2] / ALIKE


def test_a_members_own_word_and_strangers_are_passed_over() -> None:
    joins = (with_proven(join_of(A, bandwidth=1000), a=900), with_proven(join_of(B, bandwidth=1000), a=30, d=5), join_of(C, bandwidth=100))
    assert reducer_bandwidths(joins) == [60, 1000, 100]


def test_a_plan_follows_from_what_is_believed() -> None:
    liar = join_of(A, bandwidth=10**12)
    honest = [with_proven(join_of(other, bandwidth=100), a=100) for other in (B, C, D)]
    counts = Counter(assigned_reducers((liar, *honest), 64, 10))
    assert counts == {0: 45, 1: 7, 2: 6, 3: 6}  # believed to be twice as fast as the others, whatever it says
    unseen = Counter(assigned_reducers((liar, *(join_of(other, bandwidth=100) for other in (B, C, D))), 64, 10))
    assert unseen == {0: 16, 1: 16, 2: 16, 3: 16}


def test_memory_bounds_what_a_member_reduces() -> None:
    def member(number: int, bandwidth: int, memory: int) -> SealedJoin:
        join = join_of(peer(number), bandwidth=bandwidth)
        seen = {"abc"[other]: 1000 for other in range(3) if other != number}
        return with_proven(replace(join, join=replace(join.join, part_memory_bytes=memory)), **seen)

    block_elems, senders = 10, 3
    one_block = senders * block_elems * 4
    assert Counter(assigned_reducers(tuple(member(i, b, 0) for i, b in enumerate([100, 10, 10])), 12, block_elems)) == {0: 12}
    small = tuple(member(i, b, m) for i, (b, m) in enumerate([(100, 4 * one_block), (10, 0), (10, 0)]))
    assert Counter(assigned_reducers(small, 12, block_elems)) == {0: 4, 1: 4, 2: 4}
    with pytest.raises(RoundError, match="too little memory"):
        assigned_reducers(tuple(member(i, 10, one_block) for i in range(3)), 12, block_elems)


def test_who_can_reduce() -> None:
    assert assigned_reducers((join_of(A, bandwidth=0),), 3, 10) == (0, 0, 0)
    with pytest.raises(RoundError, match="nobody in the group can reduce"):
        assigned_reducers((join_of(A, bandwidth=0), join_of(B, bandwidth=0)), 3, 10)


def test_a_round_proves_what_everybody_moved_in_it() -> None:
    plan = plan_of([1.0, 1.0, 1.0, 1.0], [300, 100, 100, 0], num_blocks=8)
    counts = Counter(task.member for task in plan.reduce)
    proven = proven_by(plan, 3, VectorBytes(8000, 8000), 2.0, {})
    assert proven == {member.peer: int((1 + 2 * counts[i] / 8) * 4000) for i, member in enumerate(plan.members[:3])}
    assert proven_by(plan_of([1.0]), 0, VectorBytes(8000, 8000), 2.0, {}) == {}
    assert list(proven_by(plan_of([1.0, 1.0]), 0, VectorBytes(8000, 8000), 2.0, {}).values()) == [4000]


def test_what_goes_up_and_what_comes_back_may_differ_in_length() -> None:
    plan = plan_of([1.0, 1.0, 1.0, 1.0], [300, 100, 100, 0], num_blocks=8)
    counts = Counter(task.member for task in plan.reduce)
    proven = proven_by(plan, 3, VectorBytes(800, 8000), 2.0, {})
    for index, member in enumerate(plan.members[:3]):
        blocks = counts[index]
        sent, received = (8 - blocks) * 100 + 3 * blocks * 1000, 3 * blocks * 100 + (8 - blocks) * 1000
        assert proven[member.peer] == min(sent, received) // 2
    client = plan.members[3].peer
    assert proven_by(plan, 0, VectorBytes(800, 8000), 2.0, {})[client] == 400, "it gets 8000, but sends only what it brings"
    assert proven_by(plan, 0, VectorBytes(800, 8000), 100.0, {3: 1.0})[client] == 800, "parts prove what parts take"


def test_parts_that_came_early_prove_more_than_a_round_that_was_slow_for_others_sake() -> None:
    plan = plan_of([1.0, 1.0, 1.0], num_blocks=6)
    fast, slow = (member.peer for member in plan.members[:2])
    assert proven_by(plan, 2, VectorBytes(9000, 9000), 30.0, {0: 2.0, 1: 29.0}) == {fast: 3000, slow: 400}


def test_a_reducer_of_little_saw_little() -> None:
    plan = plan_of([1.0, 1.0, 1.0], [100, 100, 75], num_blocks=10)
    counts = Counter(task.member for task in plan.reduce)
    assert counts == {0: 5, 1: 4, 2: 1}
    # With one part here after a second, as much has gone to the other reducer: two of the ten thousand bytes' ten blocks.
    assert proven_by(plan, 2, VectorBytes(10_000, 10_000), 100.0, {0: 1.0})[plan.members[0].peer] == 2000


def test_absent_members_prove_nothing() -> None:
    plan = replace(plan_of([1.0, 1.0, 1.0], num_blocks=6), absent=frozenset({1}), reduce=plan_of([1.0, 1.0, 1.0], [1, 0, 1]).reduce)
    assert set(proven_by(plan, 0, VectorBytes(600, 600), 1.0, {1: 0.5})) == {plan.members[2].peer}


def test_nobody_elses_word_slows_a_members_streams_down() -> None:
    lied_about = with_proven(join_of(A, bandwidth=12_500_000), b=12_000_000, c=12_000_000)
    liar = with_proven(join_of(B, bandwidth=12_500_000), a=1000, c=1000)
    other = with_proven(join_of(C, bandwidth=12_500_000), a=12_000_000, b=12_000_000)
    for joins in ((lied_about, liar, other), (lied_about, liar, other, with_proven(join_of(D, bandwidth=12_500_000), a=1))):
        plan = replace(plan_of([1.0] * len(joins), num_blocks=12), members=joins, epoch=Epoch(1))
        rates = [rate for me in range(len(joins)) for rate in stream_rates(plan, me).values()]
        assert min(rates) > 3_000_000
    assert stream_rates(replace(plan, epoch=Epoch(FREE_EPOCHS)), 0) == {}


def test_who_reduces_a_repair_is_believed_no_more_than_in_a_plan() -> None:
    honest = [with_proven(join_of(other, bandwidth=100), a=50) for other in (B, C, D)]
    plan = replace(plan_of([1.0] * 4, num_blocks=30), members=(join_of(A, bandwidth=10**12), *honest))
    reports = {i: Report(plan.digest, (b"",) * 30) for i in (0, 1, 2)}
    repair = settle(plan, plan.digest, reports, 0.0)
    assert isinstance(repair, Plan)
    counts = Counter(task.member for task in repair.reduce)
    assert counts == {0: 10, 1: 10, 2: 10}
