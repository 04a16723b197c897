"""Rendezvous: how the members of one group find each other for one round, without a server.

    every member          sends its join to the first live member in a shared pseudo-random order and waits for the answer
    the first in order    tells the others that the epoch closes, collects joins, and answers all of them with one member list
    a silent leader       is skipped: its followers join the next in order, who leads

One machine lives for one round of one member. `handle(event, now)` returns actions; nothing is done inside. `now` is monotonic seconds.

    waiting ──Ready──► following(leader) ──its answer, which ends the machine's life
       │                  │    ▲ LeaderGone, LeaderUnwilling: next in order
       └──JoinArrived──►  leading ──everybody joined, or the deadline with a quorum──► formed
                                  └──the deadline without a quorum──► failed

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

MAX_ASKS = 2
"""How often we turn to one member as the leader of one round: it may have been too early the first time."""


def rendezvous_order(round_id: RoundId, peers: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """Peers in this round's order; the first leads. It changes with each round, so no peer leads for long."""
    prefix = b"swarm.v1.rendezvous" + epoch_coin(round_id.run, round_id.epoch) + round_id.index.to_bytes(4, "little")
    return tuple(sorted(peers, key=lambda peer: blake3(prefix + peer.public_key).digest()))


# Events


@dataclass(frozen=True, slots=True)
class RosterChanged:
    """Who is alive and belongs into our group, as far as we know; never includes ourselves.

    Args:
        live: they are waited for and count for the quorum. Others that join all the same, because they see another grid, are guests:
            they are taken in as long as there is room.
        undialable: those among them, and ourselves if so, that nobody can dial: they join by themselves and never lead others. What a
            member offers for reducing says nothing about it: everybody must see the same order.
        stand_ins: members of other groups that hold what somebody of this group would bring who is gone. They come when they are called,
            and never lead.
        whole_swarm: the group is the whole swarm, so whoever calls belongs into it, even if we had not heard of it. Otherwise a caller
            from elsewhere sees another grid than we do, and has its own group to lead.
    """

    live: frozenset[PeerId]
    undialable: frozenset[PeerId] = frozenset()
    stand_ins: frozenset[PeerId] = frozenset()
    whole_swarm: bool = True


@dataclass(frozen=True, slots=True)
class Ready:
    """Our own contribution is complete."""

    join: SealedJoin


@dataclass(frozen=True, slots=True)
class JoinArrived:
    """A member takes us for the leader and waits for our answer."""

    join: SealedJoin


@dataclass(frozen=True, slots=True)
class JoinWithdrawn:
    """That member does not wait any longer."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class ClosingHeard:
    """A member that leads says that the epoch closes."""

    leader: PeerId


@dataclass(frozen=True, slots=True)
class CallAnswered:
    """A member that we called is there.

    Args:
        peer: who.
        coming: it is still in an earlier round of the epoch, and comes when that is over.
    """

    peer: PeerId
    coming: bool


@dataclass(frozen=True, slots=True)
class LeaderGone:
    """The process of a member has surely ended: it neither leads nor takes part, and is not counted as alive."""

    leader: PeerId


@dataclass(frozen=True, slots=True)
class LeaderUnwilling:
    """A member refused, or did not answer in time: we neither follow nor wait for it, but it counts for the quorum.

    Silence may be the fault of our own link, and then we are the minority that must not go on alone.
    """

    leader: PeerId


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed.

    Args:
        on_our_way: we are still in an earlier round of the epoch ourselves.
    """

    on_our_way: bool = False


Event = RosterChanged | Ready | JoinArrived | JoinWithdrawn | ClosingHeard | CallAnswered | LeaderGone | LeaderUnwilling | Tick


# Actions


@dataclass(frozen=True, slots=True)
class CloseEpoch:
    """Ask our own trainer for its contribution."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell these members that the epoch closes."""

    to: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class SendJoin:
    """Send our join to this leader and wait for its answer."""

    leader: PeerId


@dataclass(frozen=True, slots=True)
class Lead:
    """The group is complete and we lead it: answer its members with the plan of these joins, in member order."""

    joins: tuple[SealedJoin, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer this waiting member with a refusal."""

    peer: PeerId
    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send a Tick at this time."""

    time_s: float


@dataclass(frozen=True, slots=True)
class Fail:
    """No round can be formed now.

    Args:
        reason: one sentence.
        left_out: the others average something that does not fit ours, so trying again is useless.
    """

    reason: str
    left_out: bool = False


Action = CloseEpoch | Announce | SendJoin | Lead | Refuse | WakeAt | Fail


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
        self._roster = RosterChanged(frozenset())
        self._callers: set[PeerId] = set()
        self._asked: Counter[PeerId] = Counter()
        self._silent: set[PeerId] = set()
        self._unwilling: set[PeerId] = set()
        self._joins: dict[PeerId, SealedJoin] = {}
        self._own: SealedJoin | None = None
        self._leader: PeerId | None = None
        self._deadline_s: float | None = None
        self._call_at_s = 0.0
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
                self._joins[join.peer] = join
                self._hear_from(join.peer)
            case JoinWithdrawn(peer):
                self._joins.pop(peer, None)
            case ClosingHeard(leader):
                self._callers.add(leader)
                self._hear_from(leader)
            case CallAnswered(peer, coming):
                (self._coming.add if coming else self._coming.discard)(peer)
            case LeaderGone(leader):
                self._turn_away(leader, self._silent)
            case LeaderUnwilling(leader):
                self._turn_away(leader, self._unwilling)
            case Tick():
                pass

    @property
    def _live(self) -> frozenset[PeerId]:
        callers = self._callers if self._roster.whole_swarm else ()
        return self._roster.live.union(self._roster.stand_ins, callers) - {self._me}

    def _hear_from(self, peer: PeerId) -> None:
        self._silent.discard(peer)
        self._unwilling.discard(peer)

    def _turn_away(self, leader: PeerId, reason: set[PeerId]) -> None:
        reason.add(leader)
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
        never = self._roster.undialable | self._roster.stand_ins
        leaders = self._live - self._silent - self._unwilling - never - set(self._joins) - worn_out
        order = rendezvous_order(self._round_id, leaders | {self._me})
        if self._me in self._roster.undialable:
            order = (*(peer for peer in order if peer != self._me), self._me)
        return min(order, key=lambda peer: self._rules.failures.get(peer, 0))

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
        waiting, self._joins = sorted(self._joins), {}
        return [Refuse(peer, "not-ready", "this member has nothing to average yet") for peer in waiting]

    def _decide(self, now: float) -> list[Action]:
        first = self._first()
        if first == self._me:
            return self._lead(now)
        if first != self._leader:
            self._leader = first
            self._asked[first] += 1
            return [SendJoin(first)]
        return []

    def _lead(self, now: float) -> list[Action]:
        if self._deadline_s is None:
            self._deadline_s = now + self._rules.join_timeout_s
        missing = self._waited_for()
        if not missing or now >= self._deadline_s + self._extra_s(missing):
            return self._form()
        if self._leader == self._me and now < self._call_at_s:
            return []
        self._leader = self._me
        self._call_at_s = min(now + self._rules.call_again_s, self._deadline_s + self._extra_s(missing))
        called = rendezvous_order(self._round_id, missing - self._roster.undialable)
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
        live_count = len(self._live - self._silent | set(joins))
        if own_hash != agreed:
            sentence = "the leader's state differs from the group's"
            refused = [Refuse(peer, "not-leading", sentence) for peer in self._joins]
            return [*refused, Fail("our state differs from the majority's", left_out=True)]
        if 2 * len(joins) <= live_count:
            reason = f"only {len(joins)} of {live_count} live members joined in time"
            return [*(Refuse(peer, "no-quorum", reason) for peer in self._joins), Fail(reason)]
        left_out = [join for join in joins.values() if join not in chosen]
        refusals: list[Action] = [
            Refuse(join.peer, "state-differs", "your state differs from the majority's")
            if join.join.state_hash != agreed
            else Refuse(join.peer, "group-full", f"the group has its {self._rules.max_group} members")
            for join in left_out
        ]
        return [*refusals, Lead(tuple(chosen))]
