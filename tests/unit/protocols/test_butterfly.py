"""One reducer's bookkeeping: every block is ordered once, from whoever came."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.butterfly import (
    BlockReducer,
    ReduceBlock,
    accepted_weight,
    blocks_reduced_by,
    contributors_in,
    reducers_of,
    senders_of,
)
from protocols.ids import BlockIndex
from tests.helpers.round_values import plan_of

PLAN = plan_of([1.0, 2.0, 0.0, 4.0], [1000, 0, 1000, 0])  # 2 only reduces, 1 and 3 only send


def order(block: int, *contributors: int) -> ReduceBlock:
    return ReduceBlock(BlockIndex(block), contributors)


def test_roles_follow_from_the_plan() -> None:
    assert senders_of(PLAN) == {0, 1, 3}
    assert senders_of(replace(PLAN, absent=frozenset({1}))) == {0, 3}
    assert reducers_of(PLAN) == {0, 2}
    assert blocks_reduced_by(PLAN, 0) == (0, 2, 4)
    assert blocks_reduced_by(PLAN, 2) == (1, 3, 5)
    assert blocks_reduced_by(PLAN, 1) == ()


@pytest.mark.parametrize(
    ("mask", "contributors"),
    [(0b1, (0,)), (0b1011, (0, 1, 3)), (0b100, None), (0b111, None), (0b10000, None), (0, None), (2**63 | 1, None)],
)
def test_masks_name_senders_of_the_plan_or_nobody(mask: int, contributors: tuple[int, ...] | None) -> None:
    assert contributors_in(PLAN, mask) == contributors
    if contributors:
        assert order(0, *contributors).mask == mask


def cut(reducer: BlockReducer) -> list[ReduceBlock]:
    """What happens when the deadline passes: nobody is waited for any longer."""
    return [found for sender in sorted(reducer.missing_senders()) for found in reducer.sender_gone(sender)]


def test_a_block_is_reduced_when_every_sender_has_delivered() -> None:
    reducer = BlockReducer(PLAN, 0)
    assert reducer.start() == []
    assert reducer.part_arrived(3, BlockIndex(0)) == []
    assert reducer.part_arrived(0, BlockIndex(2)) == []
    assert reducer.part_arrived(1, BlockIndex(0)) == []
    assert reducer.part_arrived(0, BlockIndex(0)) == [order(0, 0, 1, 3)]
    assert reducer.part_arrived(0, BlockIndex(0)) == []
    assert reducer.missing_senders() == {0, 1, 3}


def test_what_somebody_delivered_before_it_left_counts() -> None:
    reducer = BlockReducer(PLAN, 0)
    for sender in (0, 1):
        for block in (0, 2, 4):
            assert reducer.part_arrived(sender, BlockIndex(block)) == []
    assert reducer.part_arrived(3, BlockIndex(0)) == [order(0, 0, 1, 3)]
    assert reducer.missing_senders() == {3}
    assert reducer.sender_gone(3) == [order(2, 0, 1), order(4, 0, 1)]
    assert reducer.missing_senders() == frozenset()
    assert reducer.sender_gone(3) == cut(reducer) == []


def test_the_cut_goes_on_with_what_is_there() -> None:
    reducer = BlockReducer(PLAN, 0)
    reducer.part_arrived(3, BlockIndex(2))
    assert cut(reducer) == [order(2, 3), order(0), order(4)]


def test_a_plan_without_senders_needs_no_waiting() -> None:
    reducer = BlockReducer(plan_of([0.0, 0.0]), 0)
    assert reducer.start() == [order(0), order(2), order(4)]


def test_only_our_blocks_are_ours() -> None:
    with pytest.raises(KeyError):
        BlockReducer(PLAN, 0).part_arrived(1, BlockIndex(1))
    assert BlockReducer(PLAN, 1).missing_senders() == frozenset()


EVENTS = st.one_of(
    st.tuples(st.sampled_from([0, 1, 3]), st.sampled_from([0, 2, 4])),
    st.sampled_from([0, 1, 3]),
)


@given(st.lists(EVENTS, max_size=30))
def test_each_block_is_ordered_once_from_what_had_arrived(events: list[tuple[int, int] | int]) -> None:
    reducer = BlockReducer(PLAN, 0)
    arrived: dict[int, set[int]] = {0: set(), 2: set(), 4: set()}
    gone: set[int] = set()
    ordered: set[int] = set()

    def check(orders: list[ReduceBlock]) -> None:
        for one in orders:
            assert one.block not in ordered
            assert one.contributors == tuple(sorted(arrived[one.block]))
            assert {0, 1, 3} == arrived[one.block] | gone
            ordered.add(one.block)

    check(reducer.start())
    for event in events:
        if isinstance(event, tuple):
            sender, block = event
            arrived[block].add(sender)
            check(reducer.part_arrived(sender, BlockIndex(block)))
        else:
            gone.add(event)
            check(reducer.sender_gone(event))
        assert (reducer.missing_senders() == frozenset()) == (len(ordered) == 3)
    gone |= {0, 1, 3}
    check(cut(reducer))
    assert ordered == {0, 2, 4}


def test_accepted_weight_counts_each_block_by_its_length() -> None:
    everywhere = {BlockIndex(block): 0b1011 for block in range(6)}
    assert accepted_weight(PLAN, everywhere) == pytest.approx(7.0)
    without_3_in_the_last = {**everywhere, BlockIndex(5): 0b0011}  # 5 of 55 elements
    assert accepted_weight(PLAN, without_3_in_the_last) == pytest.approx(7.0 - 4.0 * 5 / 55)
    assert accepted_weight(PLAN, {BlockIndex(0): 0b0001}) == pytest.approx(10 / 55)
    assert accepted_weight(PLAN, {}) == 0
    shuffled = dict(reversed(without_3_in_the_last.items()))
    assert accepted_weight(PLAN, shuffled) == accepted_weight(PLAN, without_3_in_the_last)  # to the last bit: it enters the state
