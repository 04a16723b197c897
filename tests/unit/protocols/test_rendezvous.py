"""Group formation: who leads, who is waited for, and that nobody can hold it up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.ids import Epoch, RoundId
from protocols.messages import SealedJoin
from protocols.rendezvous import MAX_ASKS, Rendezvous, RendezvousRules, rendezvous_order
from protocols.rendezvous_events import (
    Announce,
    CallAnswered,
    CloseEpoch,
    ClosingHeard,
    Event,
    Fail,
    JoinArrived,
    JoinWithdrawn,
    Lead,
    LeaderFollows,
    LeaderGone,
    LeaderUnwilling,
    Refuse,
    RosterChanged,
    SendJoin,
    Tick,
    WakeAt,
)
from tests.helpers.rendezvous_machine import ORDER, TIMEOUT_S, A, B, C, D, E, arrived, led, machine, play, ready
from tests.helpers.round_values import OTHER_STATE, ROUND, join_of

# Order


def test_the_order_is_the_same_for_everybody_and_another_in_each_round() -> None:
    assert rendezvous_order(ROUND, reversed(ORDER)) == ORDER
    orders = {rendezvous_order(RoundId(ROUND.run, Epoch(epoch)), ORDER) for epoch in range(20)}
    assert len(orders) > 10
    assert len({order[0] for order in orders}) == 5


# Leading


def test_everybody_joined_forms_at_once_in_order() -> None:
    target = machine(A)
    assert play(target, ready(A)) == [Announce((B, C, D, E)), WakeAt(TIMEOUT_S)]
    assert play(target, arrived(E), arrived(C), arrived(D)) == []
    assert led(play(target, arrived(B))) == [A, B, C, D, E]


def test_alone_forms_at_once() -> None:
    assert led(play(machine(A, live=[]), ready(A))) == [A]


def test_the_first_join_closes_the_epoch_and_joins_are_kept_until_we_are_ready() -> None:
    target = machine(A, live=[B, C])
    assert play(target, arrived(B)) == [CloseEpoch(), WakeAt(TIMEOUT_S)]
    assert play(target, arrived(C)) == []
    assert play(target, Tick(), now=TIMEOUT_S / 2) == []
    assert led(play(target, ready(A), now=TIMEOUT_S / 2)) == [A, B, C]


def test_a_leader_that_is_not_ready_sends_others_on_after_a_while() -> None:
    target = machine(A, live=[B, C])
    play(target, arrived(B))
    refused = play(target, Tick(), now=TIMEOUT_S)
    assert [(action.peer, action.code) for action in refused if isinstance(action, Refuse)] == [(B, "not-ready")]
    assert play(target, ready(A), now=TIMEOUT_S + 1) == [Announce(rendezvous_order(ROUND, [B, C])), WakeAt(2 * TIMEOUT_S + 1)]


def test_a_leader_that_is_still_in_an_earlier_round_keeps_those_who_wait() -> None:
    target = machine(A, live=[B])
    play(target, arrived(B))
    assert play(target, Tick(on_our_way=True), now=TIMEOUT_S) == [WakeAt(2 * TIMEOUT_S)]
    assert led(play(target, ready(A), now=TIMEOUT_S + 1)) == [A, B]


def test_members_in_an_earlier_round_are_waited_for_longer() -> None:
    rules = RendezvousRules(TIMEOUT_S, 3 * TIMEOUT_S, TIMEOUT_S, 64)
    target = Rendezvous(ROUND, A, rules)
    play(target, RosterChanged(frozenset({B, C})), ready(A))
    play(target, arrived(B), CallAnswered(C, coming=True))
    assert play(target, Tick(), now=TIMEOUT_S) == [Announce((C,)), WakeAt(2 * TIMEOUT_S)]
    play(target, CallAnswered(C, coming=True))
    assert led(play(target, arrived(C), now=2 * TIMEOUT_S)) == [A, B, C]


def test_whoever_answers_and_does_not_come_costs_the_deadline() -> None:
    target = machine(A, live=[B, C])
    play(target, ready(A), arrived(B), CallAnswered(C, coming=False))
    assert led(play(target, Tick(), now=TIMEOUT_S)) == [A, B]


def test_a_stand_in_is_called_and_waited_for_and_never_leads() -> None:
    first, second = machine(C, live=[D]), machine(C, live=[D])
    assert play(first, RosterChanged(frozenset({D}), stand_ins=frozenset({A})), ready(C)) == [Announce((A, D)), WakeAt(TIMEOUT_S)]
    assert led(play(first, arrived(D), arrived(A))) == [C, A, D]
    assert play(second, RosterChanged(frozenset({A, D})), ready(C)) == [SendJoin(A)]


def test_stand_ins_that_do_not_come_do_not_count_for_the_quorum() -> None:
    target = machine(A, live=[B])
    play(target, RosterChanged(frozenset({B}), stand_ins=frozenset({C, D, E})), ready(A), arrived(B), arrived(C))
    (lead,) = play(target, Tick(), now=TIMEOUT_S)
    assert isinstance(lead, Lead)
    assert led([lead]) == [A, B, C]
    assert lead.counted == 3


def test_guests_come_last_and_only_where_there_is_room() -> None:
    target = Rendezvous(ROUND, C, RendezvousRules(TIMEOUT_S, TIMEOUT_S, TIMEOUT_S, 3))
    play(target, RosterChanged(frozenset({D}), whole_swarm=False), ready(C), arrived(A), arrived(B))
    actions = play(target, arrived(D))
    assert led(actions) == [C, D, A]
    assert [action.peer for action in actions if isinstance(action, Refuse)] == [B]


def test_a_caller_of_another_group_is_not_followed() -> None:
    target = machine(C, live=[D])
    play(target, RosterChanged(frozenset({D}), whole_swarm=False), ClosingHeard(A))
    assert play(target, ready(C)) == [Announce((D,)), WakeAt(TIMEOUT_S)]


def test_a_silent_member_is_neither_waited_for_nor_counted() -> None:
    target = machine(A)
    play(target, ready(A), LeaderGone(B), LeaderGone(C), LeaderGone(D))
    assert led(play(target, LeaderGone(E))) == [A]


def test_a_member_that_refuses_is_not_waited_for_but_counts_for_the_quorum() -> None:
    target = machine(A)
    actions = play(target, ready(A), LeaderUnwilling(B), LeaderUnwilling(C), LeaderUnwilling(D), arrived(E))
    assert actions[-1] == Fail("only 2 of 5 live members joined in time")
    assert led(play(machine(A), ready(A), LeaderUnwilling(B), LeaderUnwilling(C), arrived(D), arrived(E))) == [A, D, E]


@pytest.mark.parametrize("joined", range(5))
def test_at_the_deadline_more_than_half_must_be_there(joined: int) -> None:
    target = machine(A)
    play(target, ready(A), *(arrived(who) for who in ORDER[1 : 1 + joined]))
    if joined == 4:
        return  # formed at once
    assert play(target, Tick(), now=TIMEOUT_S - 0.01) == []
    actions = play(target, Tick(), now=TIMEOUT_S)
    if 2 * (joined + 1) > 5:
        assert led(actions) == list(ORDER[: joined + 1])
    else:
        reason = f"only {joined + 1} of 5 live members joined in time"
        assert actions == [*(Refuse(who, "no-quorum", reason) for who in ORDER[1 : 1 + joined]), Fail(reason)]


@pytest.mark.parametrize("gone", [LeaderGone(E), LeaderUnwilling(E)])
def test_a_plan_names_the_live_members_that_its_quorum_was_counted_on(gone: LeaderGone | LeaderUnwilling) -> None:
    (lead,) = play(machine(A), ready(A), gone, LeaderUnwilling(D), arrived(B), arrived(C))
    assert isinstance(lead, Lead)
    assert lead.counted == (4 if isinstance(gone, LeaderGone) else 5)


def test_a_join_that_is_withdrawn_does_not_count() -> None:
    target = machine(A, live=[B, C])
    assert play(target, ready(A), arrived(B), JoinWithdrawn(B)) == []
    assert play(target, arrived(C)) == []
    assert led(play(target, Tick(), now=TIMEOUT_S)) == [A, C]


def test_a_second_join_replaces_the_first() -> None:
    target = machine(A, live=[B, C])
    newer = SealedJoin(B, join_of(B).join, b"newer")
    play(target, ready(A), arrived(B), JoinArrived(newer))
    (lead,) = play(target, arrived(C))
    assert isinstance(lead, Lead)
    assert lead.joins[1] is newer


def test_a_full_group_takes_the_leader_and_the_first_in_order() -> None:
    target = machine(A, max_group=3)
    actions = play(target, ready(A), arrived(E), arrived(D), arrived(C), arrived(B))
    assert led(actions) == [A, B, C]
    assert [(action.peer, action.code) for action in actions if isinstance(action, Refuse)] == [(D, "group-full"), (E, "group-full")]


def test_a_leader_later_in_order_is_always_in_its_own_group() -> None:
    target = machine(E, live=ORDER, max_group=2, failures={A: 1, B: 1, C: 1, D: 1})
    assert led(play(target, ready(E), arrived(A), arrived(B), arrived(C), arrived(D))) == [E, A]


def test_the_state_of_most_wins_and_the_others_are_refused() -> None:
    target = machine(A)
    actions = play(target, ready(A), arrived(B), arrived(C, OTHER_STATE), arrived(D), arrived(E, OTHER_STATE))
    assert led(actions) == [A, B, D]
    assert actions[-1].counted == 3  # type: ignore[union-attr]
    assert [(action.peer, action.code) for action in actions if isinstance(action, Refuse)] == [(C, "state-differs"), (E, "state-differs")]


def test_a_leader_whose_state_differs_gives_way() -> None:
    target = machine(A, live=[B, C])
    actions = play(target, ready(A), arrived(B, OTHER_STATE), arrived(C, OTHER_STATE))
    assert [action.code for action in actions if isinstance(action, Refuse)] == ["not-leading", "not-leading"]
    assert actions[-1] == Fail("our state differs from the majority's", left_out=True)


def test_between_two_states_held_by_as_many_the_leaders_wins() -> None:
    target = machine(A, live=[B])
    actions = play(target, ready(A, OTHER_STATE), arrived(B))
    assert led(actions) == [A]


def test_after_the_group_is_formed_nothing_happens() -> None:
    target = machine(A, live=[B])
    assert led(play(target, ready(A), arrived(B))) == [A, B]
    events: list[Event] = [arrived(C), ClosingHeard(D), LeaderGone(B), JoinWithdrawn(B), Tick(), ready(A), RosterChanged(frozenset())]
    assert all(target.handle(event, 99.0) == [] for event in events)


def test_a_copy_of_ourselves_changes_nothing() -> None:
    target = machine(A, live=[B])
    play(target, ready(A), ClosingHeard(A), arrived(A))
    assert led(play(target, arrived(B))) == [A, B]


# Whatever happens

EVENTS = st.one_of(
    st.sampled_from(ORDER).map(arrived),
    st.sampled_from(ORDER).map(lambda who: arrived(who, OTHER_STATE)),
    st.sampled_from([*map(JoinWithdrawn, ORDER), *map(ClosingHeard, ORDER), *map(LeaderGone, ORDER), *map(LeaderUnwilling, ORDER), Tick()]),
    st.sampled_from(ORDER).map(LeaderFollows),
    st.builds(ClosingHeard, st.sampled_from(ORDER), st.integers(0, 3)),
    st.builds(CallAnswered, st.sampled_from(ORDER), st.booleans()),
    st.just(ready(C)),
    st.frozensets(st.sampled_from(ORDER)).map(RosterChanged),
)


@given(st.lists(st.tuples(EVENTS, st.floats(0, 2)), max_size=40))
def test_whatever_happens_it_ends_once_and_soundly(script: list[tuple[Event, float]]) -> None:
    target = machine(C)
    now, asks, ended = 0.0, 0, 0
    for event, wait_s in script:
        now += wait_s
        actions = target.handle(event, now)
        assert not (ended and actions)
        asks += sum(isinstance(action, SendJoin) for action in actions)
        ended += sum(isinstance(action, Lead | Fail) for action in actions)
        assert all(action.leader != C for action in actions if isinstance(action, SendJoin))
        assert all(C not in action.to for action in actions if isinstance(action, Announce))
        for wake in (action for action in actions if isinstance(action, WakeAt)):
            assert now <= wake.time_s <= now + TIMEOUT_S
        for lead in (action for action in actions if isinstance(action, Lead)):
            members = [join.peer for join in lead.joins]
            assert members[0] == C
            assert len(set(members)) == len(members)
            assert len({join.join.state_hash for join in lead.joins}) == 1
    assert ended <= 1
    assert asks <= MAX_ASKS * 4
