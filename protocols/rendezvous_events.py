"""What a `Rendezvous` is told, and what it answers with."""

from __future__ import annotations

from dataclasses import dataclass

from protocols.ids import PeerId
from protocols.messages import SealedJoin

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
            never lead, and count for the quorum only if they come.
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
    """A member that leads says that the epoch closes.

    Args:
        leader: who.
        failures: how often a round of this epoch has failed under it, as it says itself.
    """

    leader: PeerId
    failures: int = 0


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
class LeaderFollows:
    """A member sent us on, since it has joined another leader itself: it is waited for as before, but leads nobody until it calls."""

    leader: PeerId


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed.

    Args:
        on_our_way: we are still in an earlier round of the epoch ourselves.
    """

    on_our_way: bool = False


Event = (
    RosterChanged | Ready | JoinArrived | JoinWithdrawn | ClosingHeard | CallAnswered | LeaderGone | LeaderUnwilling | LeaderFollows | Tick
)


# Actions


@dataclass(frozen=True, slots=True)
class CloseEpoch:
    """Ask our own trainer for its contribution."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell these members that the epoch closes and that we lead."""

    to: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class SendJoin:
    """Withdraw our join wherever it is, send it to this leader, and wait for its answer."""

    leader: PeerId


@dataclass(frozen=True, slots=True)
class WithdrawJoin:
    """We lead now: withdraw our join wherever it still is, or that leader would count us as well."""


@dataclass(frozen=True, slots=True)
class Lead:
    """The group is complete and we lead it: answer its members with the plan of these joins.

    Args:
        joins: in member order.
        counted: live members against whom the quorum was counted, those in the plan included; without those who were refused.
    """

    joins: tuple[SealedJoin, ...]
    counted: int


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


Action = CloseEpoch | Announce | SendJoin | WithdrawJoin | Lead | Refuse | WakeAt | Fail
