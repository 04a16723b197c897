"""A settlement in which somebody shows nothing but life: everybody else commits in bounded time, and leaves no honest leader too early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from peers.averaging.patience import Patience
from peers.averaging.settling import SETTLE
from peers.simulation import run_simulated
from protocols.deadline import AdaptiveDeadline
from protocols.frames import HEARTBEAT
from protocols.messages import Commit
from protocols.settlement import GiveUp
from tests.helpers.settlements import PATIENCE_S, STALL_S, Settlement
from tests.helpers.swarm_liars import LAST, SECOND, play
from tests.helpers.swarm_tampering import Tamper


def settle(ready_s: Mapping[int, float], count: int, limit_s: float) -> Settlement:
    """All honest members commit by then, and blame nobody."""
    settlement = Settlement(ready_s, count)
    verdicts = run_simulated(settlement.run(), limit_s=1e5)
    assert all(isinstance(verdict, Commit) for verdict in verdicts.values()), verdicts
    assert verdicts.keys() == ready_s.keys()
    assert max(settlement.ended_s.values()) < limit_s
    assert settlement.blamed == {}
    return settlement


def test_a_member_that_never_reports_is_waited_for_as_long_as_an_honest_one_may_need() -> None:
    settlement = settle({0: 1.0, 1: 0.0, 2: 0.0}, count=4, limit_s=PATIENCE_S + 2)
    assert min(settlement.ended_s.values()) >= PATIENCE_S + 1


def test_whoever_needs_that_long_is_waited_for() -> None:
    settlement = settle({0: 0.0, 1: 0.0, 2: PATIENCE_S - 1}, count=3, limit_s=PATIENCE_S)
    assert settlement.settlings[0]._reports.keys() == {0, 1, 2}


def test_those_without_whom_there_is_no_majority_are_waited_for_longer() -> None:
    settle({0: 0.0, 1: PATIENCE_S + 50, 2: PATIENCE_S + 50}, count=4, limit_s=PATIENCE_S + 51)


def test_members_that_follow_another_leader_are_not() -> None:
    """Whoever has lost patience with a leader that the others still wait for leads nobody, and soon knows it."""
    settlement = Settlement({1: 0.0, 2: 500.0, 3: 500.0}, count=4)
    assert isinstance(run_simulated(settlement.run(), limit_s=1e5)[1], GiveUp)
    assert settlement.ended_s[1] < 3 * PATIENCE_S + STALL_S + 1


def test_a_leader_that_never_decides_is_left() -> None:
    settle({1: 0.0, 2: 0.0, 3: 0.0}, count=4, limit_s=2 * PATIENCE_S + STALL_S + 1)


@pytest.mark.parametrize("ready_s", [(0.0, 8.0, 20.0), (20.0, 8.0, 0.0), (8.0, 0.0, 20.0)])
def test_those_who_leave_it_one_after_the_other_settle_together(ready_s: Sequence[float]) -> None:
    settlement = settle({1 + number: at_s for number, at_s in enumerate(ready_s)}, count=4, limit_s=3 * PATIENCE_S)
    assert settlement.settlings[1]._reports.keys() == {1, 2, 3}


def test_two_leaders_that_never_decide_are_left_in_turn() -> None:
    settle({2: 0.0, 3: 0.0, 4: 5.0}, count=5, limit_s=2 * (2 * PATIENCE_S + STALL_S) + 10)


def test_a_slow_leader_that_has_others_to_wait_for_is_not_left() -> None:
    """Its exchange ends when we have waited for as long as it may take, and then it waits for a member that shows nothing but life."""
    settlement = settle({0: PATIENCE_S, 1: 0.0, 2: 0.0}, count=4, limit_s=2 * PATIENCE_S + 1)
    assert all(0 not in settlement.settlings[number]._gone for number in (1, 2))


@pytest.mark.parametrize("offender", [SECOND, LAST])
def test_a_report_that_never_comes_costs_a_bounded_time(offender: int) -> None:
    """The streams of a round would live for 66 s."""

    def no_report(method: str, message: bytes) -> list[bytes]:
        return [HEARTBEAT] if method == SETTLE and len(message) > 40 else [message]

    done, _ = play(offender, Tamper(dialled=no_report))
    assert done[0].weight == 4


# Patience


def test_patience_follows_our_own_exchange_until_there_is_history() -> None:
    deadline = AdaptiveDeadline(6.0, 3600.0)
    patience = Patience(deadline, STALL_S)
    patience.exchanged(0.5)
    assert patience.usual_s == 2 * (6 + STALL_S)
    patience.exchanged(10.0)
    patience.exchanged(1.0)  # a repair, of which the others may have more
    assert patience.usual_s == 2 * (30 + STALL_S)
    patience.exchanged(5000.0)
    assert patience.usual_s == patience.longest_s == 2 * (3600 + STALL_S)
    for _ in range(3):
        deadline.observe(20.0)
    assert patience.usual_s == patience.longest_s == 2 * (40 + STALL_S)
