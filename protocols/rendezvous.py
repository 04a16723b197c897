"""Rendezvous: how the members of one group find each other for one round, without a server.

    every member          sends its join to the first live member in a shared pseudo-random order and waits for the answer
    the first in order    tells the others that the epoch closes, collects joins, and answers all of them with one member list
    a silent leader       is skipped: its followers join the next in order, who leads

One machine lives for one round of one member. `handle(event, now)` returns actions; nothing is done inside. `now` is monotonic seconds.

    waiting ──Ready──► following(leader) ──its answer, which ends the machine's life
                          │    ▲ LeaderGone, LeaderUnwilling, LeaderFollows: next in order; a better leader's call: that one
                          ▼    │
                       leading ──everybody joined, or the deadline with a quorum──► formed
                               └──the deadline without a quorum──► failed

Members may see different orders, because some have seen a leader fail and others have not. Three rules bring them together all the same.
A member's join stands at one leader at a time: whoever turns to another leader, or to leading, withdraws it first. Whoever follows keeps
nobody waiting: those who join it are sent on at once, and it is called and waited for as before. Of two that lead, the one for whom the
other comes first in order gives up when it is called; nobody knows of more failures under a leader than that leader itself, so it cannot be
that each takes itself for the better one. If each takes the other for it and both have joined, the order without failures decides.

That one group at most commits is not left to this: a plan names how many members its leader counted, and `settlement.py` wants the reports
of more than half of them. A member reports on the plan it was answered with and on no other.

Nobody can hold a round up for long: a member is turned to at most `MAX_ASKS` times, whatever it announces, and the deadline of a leader
runs from the first time it leads. A member that has joined us follows us, so it is no leader, wherever it stands in the order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from blake3 import blake3

from protocols.grid import epoch_coin
from protocols.ids import PeerId, RoundId
from protocols.messages import SealedJoin
from protocols.rendezvous_events import (
    Action,
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
    Ready,
    Refuse,
    RosterChanged,
    SendJoin,
    Tick,
    WakeAt,
    WithdrawJoin,
)

MAX_ASKS = 3
"""How often we turn to one member as the leader of one round: it may have been too early, or have followed somebody else."""

MAX_DISAPPOINTMENTS = 2
"""When so many have let us wait in vain, we lead ourselves and turn only to those who call: each of them may have taken its time."""


def rendezvous_order(round_id: RoundId, peers: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """Peers in this round's order; the first leads. It changes with each round, so no peer leads for long."""
    prefix = b"swarm.v1.rendezvous" + epoch_coin(round_id.run, round_id.epoch) + round_id.index.to_bytes(4, "little")
    return tuple(sorted(peers, key=lambda peer: blake3(prefix + peer.public_key).digest()))


@dataclass(frozen=True, slots=True)
class RendezvousRules:
    """What bounds a rendezvous.

    Args:
        join_timeout_s: how long a leader waits for members that answer its call and do not come, and members for a leader that has
            nothing to average yet.
        longest_wait_s: how long a leader waits for members that are still in an earlier round.
        call_again_s: how often it calls them meanwhile: whoever does not answer is waited for no longer.
        max_group: most members in one group.
        failures: how often a round of this epoch has failed under a leader; whoever failed less often leads first, so that nobody can
            keep an epoch from closing by leading badly.
    """

    join_timeout_s: float
    longest_wait_s: float
    call_again_s: float
    max_group: int
    failures: Mapping[PeerId, int] = field(default_factory=dict)


class Rendezvous:
    """Group formation for one round, seen by one member."""

    def __init__(self, round_id: RoundId, me: PeerId, rules: RendezvousRules) -> None:
        self._round_id = round_id
        self._me = me
        self._rules = rules
        self._failures = dict(rules.failures)
        self._roster = RosterChanged(frozenset())
        self._callers: set[PeerId] = set()
        self._asked: Counter[PeerId] = Counter()
        self._silent: set[PeerId] = set()
        self._unwilling: set[PeerId] = set()
        self._following: set[PeerId] = set()
        self._calling: set[PeerId] = set()
        self._disappointed = 0
        self._joins: dict[PeerId, SealedJoin] = {}
        self._own: SealedJoin | None = None
        self._leader: PeerId | None = None
        self._join_is_out = False
        self._deadline_s: float | None = None
        self._call_at_s = 0.0
        self._called: frozenset[PeerId] = frozenset()
        self._coming: set[PeerId] = set()
        self._not_ready_at_s: float | None = None
        self._closing = False
        self._done = False

    def handle(self, event: Event, now: float) -> list[Action]:
        """Advance by one event.

        Args:
            event: what happened.
            now: monotonic seconds, never decreasing.

        Returns:
            What to do, in order. After Lead or Fail every further event returns nothing.
        """
        if self._done:
            return []
        self._note(event)
        actions = self._close_epoch() if isinstance(event, JoinArrived | ClosingHeard | Ready) else []
        if self._own is None:
            return actions + self._keep_waiting(now, isinstance(event, Tick) and event.on_our_way)
        return actions + self._decide(now)

    def _note(self, event: Event) -> None:
        match event:
            case RosterChanged():
                self._roster = event
            case Ready(join):
                self._own = join
            case JoinArrived(join):
                self._note_join(join)
            case JoinWithdrawn(peer):
                self._joins.pop(peer, None)
            case ClosingHeard(leader, failures):
                self._note_call(leader, failures)
            case CallAnswered(peer, coming):
                (self._coming.add if coming else self._coming.discard)(peer)
            case LeaderGone() | LeaderUnwilling() | LeaderFollows():
                self._turn_away(event)
            case Tick():
                pass

    @property
    def _live(self) -> frozenset[PeerId]:
        callers = self._callers if self._roster.whole_swarm else ()
        return self._roster.live.union(self._roster.stand_ins, callers) - {self._me}

    def _note_join(self, join: SealedJoin) -> None:
        self._joins[join.peer] = join
        if not self._goes_first(join.peer):
            self._silent.discard(join.peer)
            self._unwilling.discard(join.peer)
            self._calling.discard(join.peer)
            self._following.add(join.peer)

    def _note_call(self, leader: PeerId, failures: int) -> None:
        self._callers.add(leader)
        if leader != self._leader:  # whoever we wait for leads: it may have formed the group by now, so we stay
            self._failures[leader] = max(failures, self._failures.get(leader, 0))
        self._silent.discard(leader)
        self._unwilling.discard(leader)
        self._following.discard(leader)
        self._calling.add(leader)

    def _turn_away(self, event: LeaderGone | LeaderUnwilling | LeaderFollows) -> None:
        leader = event.leader
        match event:
            case LeaderGone():
                self._silent.add(leader)
            case LeaderUnwilling():
                self._unwilling.add(leader)
                self._disappointed += leader == self._leader
            case LeaderFollows():
                if leader not in self._calling:  # else it has called since: we ask once more
                    self._following.add(leader)
        self._calling.discard(leader)
        if self._leader == leader:
            self._leader = None

    def _close_epoch(self) -> list[Action]:
        if self._closing:
            return []
        self._closing = True
        return [] if self._own else [CloseEpoch()]

    def _first(self) -> PeerId:
        """Whose turn it is to lead, as far as we know."""
        worn_out = {peer for peer, times in self._asked.items() if times >= MAX_ASKS and peer != self._leader}
        never = self._roster.undialable | self._roster.stand_ins | worn_out
        followers = self._following.union(peer for peer in self._joins if not self._goes_first(peer))
        leaders = self._live - self._silent - self._unwilling - followers - never
        if self._disappointed >= MAX_DISAPPOINTMENTS:
            leaders = frozenset(peer for peer in leaders if peer in self._calling or peer == self._leader)
        order = rendezvous_order(self._round_id, leaders | {self._me})
        return min(order, key=lambda peer: (peer in self._roster.undialable, self._failures.get(peer, 0)))

    def _goes_first(self, peer: PeerId) -> bool:
        """Whether this is the member we have joined, and it leads us even if it has joined us too: both sides decide by the bare order."""
        return peer == self._leader and rendezvous_order(self._round_id, (peer, self._me))[0] == peer

    def _keep_waiting(self, now: float, on_our_way: bool) -> list[Action]:
        """We can neither join nor lead without a contribution. Who takes us for the leader is kept for a while, then sent on."""
        if not self._joins:
            self._not_ready_at_s = None
            return []
        if self._not_ready_at_s is None or (on_our_way and now >= self._not_ready_at_s):
            self._not_ready_at_s = now + self._rules.join_timeout_s
            return [WakeAt(self._not_ready_at_s)]
        if now < self._not_ready_at_s:
            return []
        return self._send_on("not-ready", "this member has nothing to average yet")

    def _send_on(self, code: str, sentence: str) -> list[Action]:
        """Keep nobody waiting any longer."""
        waiting, self._joins = sorted(self._joins), {}
        return [Refuse(peer, code, sentence) for peer in waiting]

    def _decide(self, now: float) -> list[Action]:
        first = self._first()
        if first == self._me:
            withdrawn = [WithdrawJoin()] if self._join_is_out else []
            self._join_is_out = False
            return [*withdrawn, *self._lead(now)]
        sent_on = self._send_on("following", "this member follows another leader")
        if first == self._leader:
            return sent_on
        self._leader, self._join_is_out = first, True
        self._asked[first] += 1
        return [*sent_on, SendJoin(first)]

    def _lead(self, now: float) -> list[Action]:
        if self._deadline_s is None:
            self._deadline_s = now + self._rules.join_timeout_s
        missing = self._waited_for()
        if not missing or now >= self._deadline_s + self._extra_s(missing):
            return self._form()
        within_reach = missing - self._roster.undialable
        if self._leader == self._me and now < self._call_at_s:
            new = within_reach - self._called
            self._called |= new
            return [Announce(rendezvous_order(self._round_id, new))] if new else []
        self._leader = self._me
        self._call_at_s = min(now + self._rules.call_again_s, self._deadline_s + self._extra_s(missing))
        self._called = within_reach
        called = rendezvous_order(self._round_id, within_reach)
        return [*([Announce(called)] if called else []), WakeAt(self._call_at_s)]

    def _extra_s(self, missing: frozenset[PeerId]) -> float:
        """How long the deadline is put off for members that are still in an earlier round."""
        return self._rules.longest_wait_s - self._rules.join_timeout_s if missing & self._coming else 0.0

    def _waited_for(self) -> frozenset[PeerId]:
        return self._live - self._silent - self._unwilling - set(self._joins)

    def _form(self) -> list[Action]:
        """Close the list: members whose state is the majority's, at most a group full, at least a quorum."""
        if self._own is None:
            return []
        self._done = True
        self._joins.pop(self._me, None)  # somebody runs a copy of us elsewhere
        order = sorted(rendezvous_order(self._round_id, self._joins), key=lambda peer: peer not in self._live)  # guests come last
        joins = {self._me: self._own, **{peer: self._joins[peer] for peer in order}}
        votes = Counter(join.join.state_hash for join in joins.values())
        own_hash = self._own.join.state_hash
        agreed = max(votes, key=lambda value: (votes[value], value == own_hash, value))
        chosen = [join for join in joins.values() if join.join.state_hash == agreed][: self._rules.max_group]
        refused = [join for join in joins.values() if join not in chosen]
        counted = len(self._live - self._silent - self._roster.stand_ins | set(joins)) - len(refused)
        if own_hash != agreed:
            sent_on = self._send_on("not-leading", "the leader's state differs from the group's")
            return [*sent_on, Fail("our state differs from the majority's", left_out=True)]
        if 2 * len(chosen) <= counted:
            reason = f"only {len(chosen)} of {counted} live members joined in time"
            return [*(Refuse(peer, "no-quorum", reason) for peer in self._joins), Fail(reason)]
        return [*(self._refusal(join, agreed) for join in refused), Lead(tuple(chosen), counted)]

    def _refusal(self, join: SealedJoin, agreed: bytes) -> Refuse:
        if join.join.state_hash != agreed:
            return Refuse(join.peer, "state-differs", "your state differs from the majority's")
        return Refuse(join.peer, "group-full", f"the group has its {self._rules.max_group} members")
