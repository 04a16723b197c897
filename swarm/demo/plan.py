"""What the demonstration does next, decided from what it sees. Pure: time comes in as a number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from swarm.monitoring.status import PeerStatus

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
class Plan:
    """Limits of one demonstration.

    Args:
        seconds: for everything, from the first process to the last line.
        goal_loss: held-out loss in nats per byte that must be beaten.
        start_limit_s: by when the swarm must have finished its first epoch.
        epochs_after_join: the newcomer must have taken part in so many epochs before the end.
    """

    seconds: float
    goal_loss: float
    start_limit_s: float = 90.0
    epochs_after_join: int = 2

    @property
    def kill_at_s(self) -> float:
        """When one volunteer is killed: after a third of the time."""
        return self.seconds / 3

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
    """

    elapsed_s: float
    statuses: Mapping[str, PeerStatus | None]
    exited: Mapping[str, int]
    killed: bool
    newcomer: str
    joined_epoch: int | None


def decide(seen: Seen, plan: Plan) -> Decision:
    """The next action, first reason that applies."""
    if seen.exited:
        name, code = next(iter(seen.exited.items()))
        return Decision(Action.FAIL, f"{name} ended by itself with exit code {code}")
    epoch = swarm_epoch(seen.statuses.values())
    if epoch < 1:
        if seen.elapsed_s > plan.start_limit_s:
            return Decision(Action.FAIL, f"no epoch was finished within {plan.start_limit_s:.0f} s")
        return Decision(Action.WAIT, "the peers find each other and start")
    if not seen.killed:
        if seen.elapsed_s >= plan.kill_at_s:
            return Decision(Action.KILL, f"a third of the time is over, at epoch {epoch}")
        return Decision(Action.WAIT, "everybody trains")
    if not seen.newcomer:
        return Decision(Action.JOIN, "a new volunteer takes the place of the killed one")
    loss = held_out_loss(seen.statuses.values())
    settled = seen.joined_epoch is not None and epoch >= seen.joined_epoch + plan.epochs_after_join
    if seen.elapsed_s >= plan.stop_at_s:
        return Decision(Action.STOP, "time is up")
    if settled and loss is not None and loss <= plan.goal_loss - MARGIN:
        return Decision(Action.STOP, f"held-out loss {loss:.2f} is well below {plan.goal_loss:.2f}")
    return Decision(Action.WAIT, "the newcomer trains along" if settled else "the newcomer finds its way in")


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
