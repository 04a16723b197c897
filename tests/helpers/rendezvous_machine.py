"""One `Rendezvous` among five members, and what happens to it."""

from __future__ import annotations

from collections.abc import Iterable

from protocols.ids import PeerId
from protocols.rendezvous import Rendezvous, RendezvousRules, rendezvous_order
from protocols.rendezvous_events import Action, Event, JoinArrived, Lead, Ready, Refuse, RosterChanged
from tests.helpers.round_values import ROUND, join_of, peer

ORDER = rendezvous_order(ROUND, [peer(number) for number in range(5)])
A, B, C, D, E = ORDER
TIMEOUT_S = 5.0


def machine(me: PeerId, live: Iterable[PeerId] = ORDER, *, max_group: int = 64, failures: dict[PeerId, int] | None = None) -> Rendezvous:
    found = Rendezvous(ROUND, me, RendezvousRules(TIMEOUT_S, TIMEOUT_S, TIMEOUT_S, max_group, failures or {}))
    assert found.handle(RosterChanged(frozenset(live)), 0.0) == []
    return found


def ready(me: PeerId, state: bytes = b"s" * 32, bandwidth: int = 1000) -> Ready:
    return Ready(join_of(me, bandwidth=bandwidth, state=state))


def arrived(who: PeerId, state: bytes = b"s" * 32) -> JoinArrived:
    return JoinArrived(join_of(who, state=state))


def play(target: Rendezvous, *events: Event, now: float = 0.0) -> list[Action]:
    """What the last event leads to."""
    actions: list[Action] = []
    for event in events:
        actions = target.handle(event, now)
    return actions


def led(actions: list[Action]) -> list[PeerId]:
    """Members of the group that was formed, in order."""
    (lead,) = [action for action in actions if isinstance(action, Lead)]
    return [join.peer for join in lead.joins]


def sent_on(who: PeerId) -> Refuse:
    return Refuse(who, "following", "this member follows another leader")
