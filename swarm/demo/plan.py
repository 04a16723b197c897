"""What the demonstration does next, decided from what it sees. Pure: time comes in as a number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from protocols.errors import ExitCode
from swarm.monitoring.status import BannedStatus, PeerStatus

WIND_DOWN_S = 40.0
"""Kept at the end for stopping everybody, exporting, loading and sampling."""

MARGIN = 0.3
"""The swarm goes on until the held-out loss is this much below the goal, or time runs out."""


class Action(Enum):
    """The next thing to do."""

    WAIT = "wait"
    KILL = "kill"
    JOIN = "join"
    STOP = "stop"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Decision:
    """An action and its reason in one sentence."""

    action: Action
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays what: volunteers are numbered from 1, the last of them attack, the second is killed, and one more joins later.

    Args:
        volunteers: that start together.
        attacks: of the last ones, in order; empty where everybody is honest.
    """

    volunteers: int = 4
    attacks: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the volunteers that start together."""
        return tuple(f"volunteer-{number}" for number in range(1, self.volunteers + 1))

    @property
    def attackers(self) -> dict[str, str]:
        """Name -> attack."""
        first = self.volunteers - len(self.attacks)
        return dict(zip(self.names[first:], self.attacks, strict=True))

    @property
    def victim(self) -> str:
        """Who is killed."""
        return self.names[1]

    @property
    def newcomer(self) -> str:
        """Who joins later."""
        return f"volunteer-{self.volunteers + 1}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Limits of one demonstration.

    Args:
        seconds: for everything, from the first process to the last line.
        goal_loss: held-out loss in nats per byte that must be beaten.
        start_limit_s: by when the swarm must have finished its first epoch.
        epochs_after_join: the newcomer must have taken part in so many epochs before the end.
        cast: who plays what.
    """

    seconds: float
    goal_loss: float
    start_limit_s: float = 90.0
    epochs_after_join: int = 2
    cast: Cast = Cast()

    def kill_at_s(self, attackers_left: int) -> float:
        """When one volunteer is killed: after a third of the time; with attackers still about, after half of it."""
        return self.seconds / (2 if attackers_left else 3)

    @property
    def stop_at_s(self) -> float:
        """When training ends whatever the loss is."""
        return self.seconds - WIND_DOWN_S


@dataclass(frozen=True, slots=True)
class Seen:
    """What the demonstration sees at one moment.

    Args:
        elapsed_s: since the start.
        statuses: newest status of every peer that is meant to run, by name; None before its first report.
        exited: name -> exit code of peers that ended without being asked to.
        killed: whether the victim has been killed.
        newcomer: name of the peer that joined afterwards, "" before.
        joined_epoch: first epoch the newcomer was seen training in, or None.
        bans: what members say of those who are out, by name.
    """

    elapsed_s: float
    statuses: Mapping[str, PeerStatus | None]
    exited: Mapping[str, int]
    killed: bool
    newcomer: str
    joined_epoch: int | None
    bans: Mapping[str, BannedStatus] = field(default_factory=dict)


def decide(seen: Seen, plan: Plan) -> Decision:
    """The next action, first reason that applies."""
    epoch = swarm_epoch(seen.statuses.values())
    if wrong := _gone_wrong(seen, plan, epoch):
        return wrong
    if epoch < 1:
        return Decision(Action.WAIT, "the peers find each other and start")
    at_large = [name for name in plan.cast.attackers if name not in seen.bans]
    if not seen.killed:
        if seen.elapsed_s >= plan.kill_at_s(len(at_large)):
            return Decision(Action.KILL, f"{'half' if at_large else 'a third'} of the time is over, at epoch {epoch}")
        return Decision(Action.WAIT, f"{' and '.join(at_large)} will attack or do already" if at_large else "everybody trains")
    return _to_the_end(seen, plan, epoch, at_large)


def _gone_wrong(seen: Seen, plan: Plan, epoch: int) -> Decision | None:
    """Why there is no point in going on, if so."""
    attackers = plan.cast.attackers
    if wronged := next((name for name in seen.bans if name not in attackers), None):
        return Decision(Action.STOP, f"{wronged} is honest and was banned")
    for name, code in seen.exited.items():
        if not (name in attackers and code == ExitCode.REFUSED):
            return Decision(Action.FAIL, f"{name} ended by itself with exit code {code}")
    if epoch < 1 and seen.elapsed_s > plan.start_limit_s:
        return Decision(Action.FAIL, f"no epoch was finished within {plan.start_limit_s:.0f} s")
    return None


def _to_the_end(seen: Seen, plan: Plan, epoch: int, at_large: Sequence[str]) -> Decision:
    """After one was killed."""
    if not seen.newcomer:
        return Decision(Action.JOIN, "a new volunteer takes the place of the killed one")
    loss = held_out_loss(seen.statuses.values())
    settled = seen.joined_epoch is not None and epoch >= seen.joined_epoch + plan.epochs_after_join
    if seen.elapsed_s >= plan.stop_at_s:
        return Decision(Action.STOP, "time is up")
    if settled and not at_large and loss is not None and loss <= plan.goal_loss - MARGIN:
        return Decision(Action.STOP, f"held-out loss {loss:.2f} is well below {plan.goal_loss:.2f}")
    if settled and at_large:
        return Decision(Action.WAIT, f"{' and '.join(at_large)} not banned yet")
    return Decision(Action.WAIT, "the newcomer trains along" if settled else "the newcomer finds its way in")


def bans_seen(statuses: Mapping[str, PeerStatus | None], names: Mapping[str, str]) -> dict[str, BannedStatus]:
    """Who is out, by name, as soon as any of these peers knows.

    Args:
        statuses: newest status of every peer that is believed, by name.
        names: text form of a peer's id -> its name.
    """
    known = [ban for status in statuses.values() if status is not None for ban in status.banned]
    return {names.get(ban.peer, ban.peer): ban for ban in sorted(known, key=lambda ban: ban.epoch)}


def swarm_epoch(statuses: Iterable[PeerStatus | None]) -> int:
    """Highest epoch anybody reports; 0 before the first."""
    return max((status.epoch for status in statuses if status is not None), default=0)


def held_out_loss(statuses: Iterable[PeerStatus | None]) -> float | None:
    """Held-out loss of the most advanced peer that has measured one, in nats per byte."""
    measured = [(status.epoch, status.eval_loss) for status in statuses if status is not None and status.eval_loss is not None]
    return max(measured, key=lambda pair: pair[0])[1] if measured else None


def takes_part(status: PeerStatus | None) -> bool:
    """Whether a peer holds the state and has computed something for the swarm."""
    return status is not None and status.state_hash != "" and status.samples_total > 0


def common_hashes(statuses: Mapping[str, PeerStatus | None]) -> tuple[int, dict[str, str]] | None:
    """State hash of every peer after the newest epoch that all of them remember.

    Returns:
        (epoch, name -> hex digest), or None if somebody remembers nothing or they have no epoch in common.
    """
    histories = {name: {entry.epoch: entry.state_hash for entry in status.hashes} if status else {} for name, status in statuses.items()}
    if not histories:
        return None
    shared = set.intersection(*(set(history) for history in histories.values()))
    if not shared:
        return None
    epoch = max(shared)
    return epoch, {name: history[epoch] for name, history in histories.items()}
