"""What the collaborative optimizer tells the loop that calls it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from protocols.ids import Epoch, PeerId


class StepStatus(StrEnum):
    """What a call of `step` or `follow` did."""

    ACCUMULATED = "accumulated"
    """The micro-batch was added; the epoch goes on."""
    DROPPED = "dropped"
    """The micro-batch was not finite: it was left out, and what was accumulated before it too (`GradientAccumulator` says why)."""
    SURPLUS = "surplus"
    """The micro-batch was left out: an epoch that cannot be closed has had several times its samples, and more would not be believed."""
    WAITED = "waited"
    """A helper was not needed."""
    APPLIED = "applied"
    """The epoch closed: one step with the swarm's average."""
    ALONE = "alone"
    """The epoch closed: one step with this member's own gradient, nobody else was there."""
    SKIPPED = "skipped"
    """The epoch closed without a step: the swarm's average was not finite."""
    ABORTED = "aborted"
    """The round failed; what was accumulated is kept for the next."""
    CAUGHT_UP = "caught_up"
    """This member was behind: it took over the swarm's state and dropped what it had accumulated."""
    BEHIND = "behind"
    """This member is behind and could not fetch the state yet."""

    @property
    def closed_epoch(self) -> bool:
        """Whether this member now holds a newer state that it computed itself."""
        return self in (StepStatus.APPLIED, StepStatus.ALONE, StepStatus.SKIPPED)


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What happened.

    Args:
        status: see `StepStatus`.
        epoch: updates applied to the state held now.
        samples: accumulated now, towards the next update.
        weight: samples of the whole swarm in the update, if one was made.
        contributors: whose, if known.
        lost_samples: accumulated samples that had to be dropped.
        reason: one sentence where something went wrong.
    """

    status: StepStatus
    epoch: Epoch
    samples: int
    weight: float = 0.0
    contributors: tuple[PeerId, ...] = ()
    lost_samples: int = 0
    reason: str = ""
