"""Whom a member follows while its group forms, and when it leads instead."""

from __future__ import annotations

import pytest

from protocols.rendezvous import MAX_ASKS, MAX_DISAPPOINTMENTS, Rendezvous, RendezvousRules
from protocols.rendezvous_events import (
    Action,
    Announce,
    CloseEpoch,
    ClosingHeard,
    Fail,
    JoinWithdrawn,
    LeaderFollows,
    LeaderGone,
    LeaderUnwilling,
    RosterChanged,
    SendJoin,
    Tick,
    WakeAt,
    WithdrawJoin,
)
from tests.helpers.rendezvous_machine import TIMEOUT_S, A, B, C, D, E, arrived, led, machine, play, ready, sent_on
from tests.helpers.round_values import ROUND


def test_a_member_joins_the_first_in_order() -> None:
    assert play(machine(C), ready(C)) == [SendJoin(A)]


def test_it_waits_until_its_contribution_is_ready() -> None:
    target = machine(C)
    assert play(target, ClosingHeard(A)) == [CloseEpoch()]
    assert play(target, ClosingHeard(A), Tick(), LeaderGone(A)) == []
    assert play(target, ready(C)) == [SendJoin(B)]


def test_a_silent_leader_is_skipped_and_in_the_end_we_lead() -> None:
    target = machine(C)
    play(target, ready(C))
    assert play(target, LeaderGone(A)) == [SendJoin(B)]
    assert play(target, LeaderGone(B)) == [WithdrawJoin(), Announce((D, E)), WakeAt(TIMEOUT_S)]


def test_an_earlier_leader_that_calls_late_is_turned_to() -> None:
    target = machine(C)
    play(target, ready(C), LeaderGone(A))
    assert play(target, ClosingHeard(A)) == [SendJoin(A)]


def test_an_earlier_leader_that_nobody_knew_is_turned_to() -> None:
    target = machine(C, live=[B, D])
    assert play(target, ready(C)) == [SendJoin(B)]
    assert play(target, ClosingHeard(A)) == [SendJoin(A)]


def test_the_call_of_a_later_leader_changes_nothing() -> None:
    target = machine(C)
    play(target, ready(C))
    assert play(target, ClosingHeard(D)) == []


def test_we_turn_to_nobody_more_than_so_often() -> None:
    """A member that calls and never answers must not keep the others busy for ever."""
    target = machine(B)
    asked = play(target, ready(B)).count(SendJoin(A))
    for _ in range(10):
        play(target, LeaderGone(A))
        asked += play(target, ClosingHeard(A)).count(SendJoin(A))
    assert asked == MAX_ASKS


def test_a_member_that_joins_us_before_we_are_ready_is_no_leader_wherever_it_stands() -> None:
    """A joins B, and B would wait for A, if the order alone counted."""
    assert led(play(machine(B, live=[A]), arrived(A), ready(B))) == [B, A]


def test_of_two_that_join_each_other_the_first_in_the_bare_order_leads() -> None:
    """A has seen itself fail, and B has not."""
    first, second = machine(A, live=[B], failures={A: 1}), machine(B, live=[A])
    assert play(first, ready(A)) == [SendJoin(B)]
    assert play(second, ready(B)) == [SendJoin(A)]
    actions = play(first, arrived(B))
    assert actions[0] == WithdrawJoin()
    assert led(actions) == [A, B]
    assert play(second, arrived(A)) == [sent_on(A)]
    assert play(second, JoinWithdrawn(A)) == []


def test_whoever_follows_keeps_nobody_waiting() -> None:
    target = machine(C)
    assert play(target, arrived(D)) == [CloseEpoch(), WakeAt(TIMEOUT_S)]
    assert play(target, ready(C)) == [sent_on(D), SendJoin(A)]
    assert play(target, arrived(E)) == [sent_on(E)]
    assert play(target, LeaderGone(A)) == [SendJoin(B)]


def test_a_member_that_follows_does_not_lead_until_it_calls_and_is_waited_for_all_the_same() -> None:
    target = machine(C)
    assert play(target, ready(C), LeaderFollows(A)) == [SendJoin(B)]
    assert play(target, LeaderFollows(B)) == [WithdrawJoin(), Announce((A, B, D, E)), WakeAt(TIMEOUT_S)]
    assert play(target, arrived(D), arrived(E)) == []
    assert play(target, ClosingHeard(B)) == [sent_on(D), sent_on(E), SendJoin(B)]


def test_a_member_that_has_called_since_it_sent_us_on_is_asked_again() -> None:
    target = machine(C)
    assert play(target, ready(C), ClosingHeard(A), LeaderFollows(A)) == [SendJoin(A)]
    assert play(target, LeaderFollows(A)) == [SendJoin(B)]


@pytest.mark.parametrize(("says", "answer"), [(0, [SendJoin(A)]), (1, [SendJoin(A)]), (2, [])])
def test_of_two_that_lead_one_gives_way_by_what_each_says_of_its_failures(says: int, answer: list[Action]) -> None:
    """We know that we have failed once; how often A has, it knows best."""
    target = machine(C, live=[A, B], failures={C: 1})
    play(target, ready(C), LeaderFollows(A), LeaderFollows(B))
    assert play(target, ClosingHeard(A, failures=says)) == answer


def test_a_leader_hears_that_we_lead_as_well_and_only_once() -> None:
    target = machine(C)
    play(target, ready(C), LeaderGone(A), LeaderUnwilling(B))
    assert play(target, ClosingHeard(B, failures=1)) == [Announce((B,))]
    assert play(target, ClosingHeard(B, failures=1)) == []


def test_whoever_we_wait_for_leads_whatever_it_says_of_its_failures() -> None:
    """It may have formed the group by now."""
    target = machine(C)
    assert play(target, ready(C), ClosingHeard(A, failures=3)) == []


def test_a_better_leader_is_turned_to_and_our_followers_are_sent_on() -> None:
    target = machine(B)
    play(target, ready(B), LeaderGone(A), arrived(C), arrived(D))
    assert play(target, ClosingHeard(A)) == [sent_on(C), sent_on(D), SendJoin(A)]


def test_whoever_is_disappointed_too_often_leads_and_turns_only_to_those_who_call() -> None:
    target = machine(E)
    assert MAX_DISAPPOINTMENTS == 2
    assert play(target, ready(E), LeaderUnwilling(A)) == [SendJoin(B)]
    assert play(target, LeaderUnwilling(B)) == [WithdrawJoin(), Announce((C, D)), WakeAt(TIMEOUT_S)]
    assert play(target, ClosingHeard(D)) == [SendJoin(D)]
    assert play(target, LeaderFollows(D)) == [WithdrawJoin(), Announce((C, D)), WakeAt(TIMEOUT_S)]


def test_joining_and_withdrawing_does_not_restart_the_deadline() -> None:
    target = machine(B, live=[A, C])
    play(target, ready(B), LeaderGone(A))
    for now in (1.0, 2.0, 3.0, 4.0):
        play(target, arrived(A), JoinWithdrawn(A), LeaderUnwilling(A), now=now)
    assert any(isinstance(action, Fail) for action in play(target, Tick(), now=TIMEOUT_S))


def test_who_cannot_be_dialled_does_not_lead_and_is_waited_for() -> None:
    target = Rendezvous(ROUND, B, RendezvousRules(TIMEOUT_S, TIMEOUT_S, TIMEOUT_S, 64))
    target.handle(RosterChanged(frozenset({A, C}), undialable=frozenset({A})), 0.0)
    assert play(target, ready(B)) == [Announce((C,)), WakeAt(TIMEOUT_S)]
    assert play(target, arrived(C)) == []
    assert led(play(target, arrived(A))) == [B, A, C]


def test_who_cannot_be_dialled_itself_leads_only_if_nobody_else_is_there() -> None:
    target = Rendezvous(ROUND, A, RendezvousRules(TIMEOUT_S, TIMEOUT_S, TIMEOUT_S, 64))
    target.handle(RosterChanged(frozenset({B, C}), undialable=frozenset({A})), 0.0)
    assert play(target, ready(A)) == [SendJoin(B)]
    assert play(target, LeaderGone(B)) == [SendJoin(C)]
    assert led(play(target, LeaderGone(C))) == [A]


def test_who_cannot_be_dialled_does_not_lead_before_others_although_they_have_failed() -> None:
    target = Rendezvous(ROUND, A, RendezvousRules(TIMEOUT_S, TIMEOUT_S, TIMEOUT_S, 64, {B: 1}))
    target.handle(RosterChanged(frozenset({B}), undialable=frozenset({A})), 0.0)
    assert play(target, ready(A)) == [SendJoin(B)]


def test_who_reduces_nothing_leads_in_its_turn_since_nobody_else_knows_that_it_reduces_nothing() -> None:
    assert play(machine(A, live=[B, C]), ready(A, bandwidth=0)) == [Announce((B, C)), WakeAt(TIMEOUT_S)]
    assert play(machine(B, live=[A, C]), ready(B)) == [SendJoin(A)]


def test_whoever_led_a_round_that_failed_leads_later() -> None:
    assert play(machine(C, failures={A: 1}), ready(C)) == [SendJoin(B)]
    assert play(machine(C, failures={A: 1, B: 1}), ready(C)) == [Announce((A, B, D, E)), WakeAt(TIMEOUT_S)]
    assert play(machine(A, failures={A: 1}), ready(A)) == [SendJoin(B)]
    assert play(machine(C, failures={A: 2, B: 1, C: 1, D: 1, E: 1}), ready(C)) == [SendJoin(B)]
