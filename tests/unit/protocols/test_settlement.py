"""Settlement: what follows from reports, for whoever reads them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.butterfly import reducers_of, senders_of
from protocols.ids import Attempt
from protocols.messages import Commit, Plan, Report, parse, plan_from_message
from protocols.partition import assign_blocks
from protocols.proto.swarm.v1 import control_pb2 as pb
from protocols.settlement import MAX_ATTEMPTS, GiveUp, report_fits, settle, settlement_order
from tests.helpers.round_values import STATE, peer, plan_of

PLAN = plan_of([1.0] * 4)
FIRST = b"1" * 32


def hashes(text: str) -> tuple[bytes, ...]:
    """One letter a block; "." is a missing one."""
    return tuple(b"" if letter == "." else letter.encode() * 32 for letter in text)


def reports(*texts: str | None, plan: Plan = PLAN) -> dict[int, Report]:
    """Reports of members 0, 1, ...; None for one that is silent."""
    return {number: Report(plan.digest, hashes(text)) for number, text in enumerate(texts) if text is not None}


def repaired(*texts: str | None, plan: Plan = PLAN) -> Plan:
    repair = settle(plan, FIRST, reports(*texts, plan=plan), 4.0)
    assert isinstance(repair, Plan)
    assert plan_from_message(parse(pb.Plan, repair.encode(), peer(0)), plan.members, peer(0)) == repair  # others will accept it
    return repair


def fetched(repair: Plan) -> list[tuple[int, int, bytes]]:
    return [(task.block, task.member, value[:1]) for task, value in zip(repair.fetch, repair.fetch_hashes, strict=True)]


def test_everybody_holds_the_same_is_a_commit() -> None:
    assert settle(PLAN, FIRST, reports("abcdef", "abcdef", "abcdef", "abcdef"), 3.5) == Commit(
        FIRST, PLAN.epoch, hashes("abcdef"), 3.5, STATE
    )


def test_who_is_silent_does_not_stop_the_commit() -> None:
    assert isinstance(settle(PLAN, FIRST, reports("abcdef", None, "abcdef", "abcdef"), 4.0), Commit)
    assert isinstance(settle(PLAN, FIRST, reports(None, "abcdef", "abcdef", "abcdef"), 4.0), Commit)


def test_half_or_less_gives_up() -> None:
    """Or two halves of a group that was cut in two would both go on, with different results."""
    verdict = settle(PLAN, FIRST, reports("abcdef", None, None, "abcdef"), 4.0)
    assert verdict == GiveUp("only 2 of 4 members are left: no majority")
    assert isinstance(settle(plan_of([1.0] * 5), FIRST, reports("abcdef", "abcdef", plan=plan_of([1.0] * 5)), 4.0), GiveUp)


@pytest.mark.parametrize(("counted", "commits"), [(0, True), (4, True), (5, True), (6, False), (9, False)])
def test_more_than_half_of_the_members_that_were_counted_must_report(counted: int, commits: bool) -> None:
    """Two groups of one swarm cannot both have them, whatever their plans say of each other's members."""
    plan = replace(PLAN, counted=counted)
    verdict = settle(plan, FIRST, reports("abcdef", "abcdef", None, "abcdef", plan=plan), 3.0)
    assert isinstance(verdict, Commit if commits else GiveUp)
    last = replace(plan, attempt=Attempt(MAX_ATTEMPTS))
    liar = reports("abcdef", "abcdef", "xxxxxx", "abcdef", plan=last)
    assert isinstance(settle(last, FIRST, liar, 3.0), Commit if commits else GiveUp)


def test_one_member_lacks_a_block_and_fetches_it() -> None:
    repair = repaired("abcdef", "ab.def", "abcdef", "abcdef")
    assert (repair.attempt, repair.reduce, repair.absent) == (1, (), frozenset())
    ((block, holder, value),) = fetched(repair)
    assert (block, value) == (2, b"c")
    assert holder != 1


def test_what_most_hold_wins_and_ties_go_to_the_smaller_hash() -> None:
    assert fetched(repaired("xbcdef", "abcdef", "abcdef", "xbcdef")) == [(0, 1, b"a")]
    assert fetched(repaired("xbcdef", "abcdef", "xbcdef", "xbcdef")) == [(0, 0, b"x")]


def test_holders_share_the_serving() -> None:
    assert {holder for _, holder, _ in fetched(repaired("abcdef", "......", "abcdef", "abcdef"))} == {0, 2, 3}


def test_blocks_of_a_reducer_that_is_gone_are_split_among_the_survivors() -> None:
    plan = plan_of([1.0] * 4, [2000, 2000, 2000, 0], num_blocks=12)
    lost = [task.block for task in plan.reduce if task.member == 1]
    text = "".join("." if block in lost else "a" for block in range(12))
    repair = repaired(text, None, text, text, plan=plan)
    survivors = [0, 2, 3]
    expected = [survivors[owner] for owner in assign_blocks(len(lost), [2000, 2000, 0])]
    assert [(task.block, task.member) for task in repair.reduce] == list(zip(lost, expected, strict=True))
    assert {task.member for task in repair.reduce} == {0, 2}
    assert repair.absent == {1}
    assert repair.fetch == ()
    assert senders_of(repair) == {0, 2, 3}


def test_a_reducer_that_brought_nothing_does_not_reduce_again() -> None:
    for block, task in enumerate(PLAN.reduce):
        text = "".join("." if number == block else "a" for number in range(6))
        (again,) = repaired(text, text, text, text).reduce
        assert again.block == block
        assert again.member != task.member


def test_a_holder_that_does_not_serve_is_not_asked_twice() -> None:
    first = repaired("a.cdef", "abcdef", "a.cdef", "a.cdef")
    assert fetched(first) == [(1, 1, b"b")]
    second = repaired("a.cdef", "abcdef", "a.cdef", "a.cdef", plan=first)
    assert second.fetch == ()
    assert [task.block for task in second.reduce] == [1]
    assert second.reduce[0].member != 1
    other_holder = repaired("abcdef", "abcdef", "a.cdef", "a.cdef", plan=first)
    assert fetched(other_holder) == [(1, 0, b"b")]


def test_only_client_members_left_reduce_for_each_other() -> None:
    plan = plan_of([1.0] * 3, [1000, 0, 0])
    repair = repaired(None, "ab.def", "ab.def", plan=plan)
    assert [task.block for task in repair.reduce] == [2]
    assert reducers_of(repair) <= {1, 2}


def test_a_repair_keeps_what_the_round_is_about() -> None:
    repair = repaired("abcdef", "ab.def", None, "abcdef")
    unchanged = ("epoch", "members", "size_elems", "block_elems", "codec")
    assert all(getattr(repair, name) == getattr(PLAN, name) for name in unchanged)
    assert repaired("abcdef", "ab.def", None, "abcdef", plan=repair).absent == {2}


def test_repairs_end() -> None:
    last = replace(PLAN, attempt=Attempt(MAX_ATTEMPTS))
    almost = replace(PLAN, attempt=Attempt(MAX_ATTEMPTS - 1))
    assert isinstance(settle(almost, FIRST, reports("abcdef", "ab.def", "abcdef", "xbcdef", plan=almost), 4.0), Plan)
    assert isinstance(settle(last, FIRST, reports("abcdef", "ab.def", "abcdef", "xbcdef", plan=last), 4.0), GiveUp)
    assert isinstance(settle(last, FIRST, reports("abcde.", "abcde.", "abcde.", "abcde.", plan=last), 4.0), GiveUp)


def test_in_the_end_one_liar_cannot_take_the_round_from_the_majority() -> None:
    last = replace(PLAN, attempt=Attempt(MAX_ATTEMPTS))
    verdict = settle(last, FIRST, reports("abcdef", "abcdef", "xxxxxx", "abcdef", plan=last), 4.0)
    assert verdict == Commit(FIRST, PLAN.epoch, hashes("abcdef"), 4.0, STATE)
    assert isinstance(settle(last, FIRST, reports("abcdef", "abcdef", "xxxxxx", None, plan=last), 4.0), GiveUp)  # 2 of 4 are no majority


TEXTS = st.lists(st.one_of(st.none(), st.text("ab.", min_size=6, max_size=6)), min_size=4, max_size=4)


@given(TEXTS, st.integers(0, MAX_ATTEMPTS), st.permutations(range(4)))
def test_two_leaders_with_the_same_reports_decide_the_same(texts: list[str | None], attempt: int, order: list[int]) -> None:
    plan = replace(PLAN, attempt=Attempt(attempt))
    one = reports(*texts, plan=plan)
    other = {number: one[number] for number in order if number in one}
    assert settle(plan, FIRST, one, 4.0) == settle(plan, FIRST, other, 4.0)


@given(TEXTS, st.integers(0, MAX_ATTEMPTS))
def test_every_verdict_is_sound(texts: list[str | None], attempt: int) -> None:
    plan = replace(PLAN, attempt=Attempt(attempt))
    given_reports = reports(*texts, plan=plan)
    verdict = settle(plan, FIRST, given_reports, 4.0)
    if isinstance(verdict, GiveUp):
        assert len(given_reports) <= 2 or attempt == MAX_ATTEMPTS
    elif isinstance(verdict, Commit):
        holders = [report for report in given_reports.values() if report.block_hashes == verdict.block_hashes]
        assert len(holders) == len(given_reports) or len(holders) > 2
        assert all(verdict.block_hashes)
    else:
        assert verdict.attempt == attempt + 1 <= MAX_ATTEMPTS
        assert verdict.absent == set(range(4)) - set(given_reports)
        for task, value in zip(verdict.fetch, verdict.fetch_hashes, strict=True):
            assert given_reports[task.member].block_hashes[task.block] == value
        for task in verdict.reduce:
            assert task.member in given_reports
            if not attempt:
                assert not any(report.block_hashes[task.block] for report in given_reports.values())
        touched = {task.block for task in (*verdict.reduce, *verdict.fetch)}
        assert touched
        for block in set(range(6)) - touched:
            assert len({report.block_hashes[block] for report in given_reports.values()} | {b""}) == 2


@given(TEXTS.filter(lambda texts: sum(text is not None for text in texts) >= 3))
def test_following_a_repair_ends_in_a_commit(texts: list[str | None]) -> None:
    """If everybody who is left does what the repair says, they agree."""
    verdict = settle(PLAN, FIRST, reports(*texts), 4.0)
    if isinstance(verdict, Plan):
        held: dict[int, bytes] = dict(zip((task.block for task in verdict.fetch), verdict.fetch_hashes, strict=True))
        held.update({task.block: b"n" * 32 for task in verdict.reduce})
        after = {
            number: Report(verdict.digest, tuple(held.get(block, value) for block, value in enumerate(report.block_hashes)))
            for number, report in reports(*texts).items()
        }
        verdict = settle(verdict, FIRST, after, 4.0)
    assert isinstance(verdict, Commit)


@pytest.mark.parametrize(
    ("bandwidths", "absent", "order"),
    [([1, 1, 1], [], (0, 1, 2)), ([1, 1, 1], [0], (1, 2)), ([0, 1, 1], [], (1, 2, 0)), ([0, 1, 0], [1], (0, 2))],
)
def test_who_reduces_nothing_decides_last(bandwidths: list[int], absent: list[int], order: tuple[int, ...]) -> None:
    assert settlement_order(replace(plan_of([1.0] * 3, bandwidths), absent=frozenset(absent))) == order


def test_a_report_fits_its_own_plan_only() -> None:
    assert report_fits(PLAN, Report(PLAN.digest, hashes("abcdef")))
    assert not report_fits(PLAN, Report(FIRST, hashes("abcdef")))
    assert not report_fits(PLAN, Report(PLAN.digest, hashes("abcde")))
    assert not report_fits(PLAN, Report(PLAN.digest, hashes("abcdefg")))
