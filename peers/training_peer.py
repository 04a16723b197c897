"""What trainer and network say to each other: immutable values, and `TrainingPeer`, the trainer's view of a peer.

A `TrainingPeer` is either `peers.bridge.PeerHandle`, with a swarm behind it, or `peers.local.LocalPeer`, on its own.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import torch

from peers.state_snapshot import StateSnapshot
from protocols.errors import SwarmError
from protocols.ids import Epoch, PeerId
from protocols.trust.traced import UNTRACED, Traced

_FIRST_EPOCH = Epoch(0)


class PeerStopped(SwarmError):
    """The peer is stopping: leave the training loop."""


class RoundStatus(StrEnum):
    """How a round ended for this member."""

    APPLIED = "applied"
    """The group agreed on one vector: apply it."""
    ALONE = "alone"
    """Nobody else was there: the vector is this member's own contribution; apply it."""
    ABORTED = "aborted"
    """No agreement: keep what was accumulated and go on."""
    BEHIND = "behind"
    """The swarm has gone on without this member: fetch the state."""


@dataclass(frozen=True, slots=True)
class InnerStates:
    """What a member's inner state was when a contribution began, and what it was in the end: for whoever audits it.

    Args:
        start: None: it began anew, from the anchor and with an optimizer that knows nothing.
        start_epoch: of the contribution that ended with `start`.
        end: after all samples of this one. Nobody writes to it.
        cuts: see `protocols.trust.traced`.
    """

    start: StateSnapshot | None
    start_epoch: Epoch
    end: StateSnapshot
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Contribution:
    """What this member brings to an epoch.

    Args:
        epoch: the epoch it was computed in (updates applied to the state it was computed from).
        vector: flat_D, fp32 on the CPU. By the gradient rule the mean gradient over samples first_sample .. first_sample + weight - 1 of
            this member in that epoch; by the outer rule how far its model moved with them. Not written to after it was handed over.
        weight: samples; 0 for a helper.
        state_hash: of the state it was computed from (32 bytes).
        first_sample: index of the first of them, as `swarm.data.assignment` counts: anybody can draw the same and compute the vector again.
        late_samples: how many of them, the first ones, were computed before the result of the epoch before was applied.
        inner: for auditors; None where members have no inner state, or nobody audits.
    """

    epoch: Epoch
    vector: torch.Tensor
    weight: float
    state_hash: bytes
    first_sample: int = 0
    late_samples: int = 0
    inner: InnerStates | None = None

    @property
    def traced(self) -> Traced:
        """What we commit to of how it came about."""
        if self.inner is None:
            return Traced(self.late_samples)
        inner = self.inner
        start = inner.start.state_hash if inner.start else b""
        return Traced(self.late_samples, start, inner.start_epoch if start else Epoch(0), inner.end.state_hash, inner.cuts)


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """Compute again what another member contributed, from public data.

    Args:
        epoch: of the contribution.
        peer: whose samples.
        first_sample: index of the first of them.
        samples: how many, at least 1.
        state_hash: of the state it was computed from (32 bytes).
        bf16: under bf16 autocast, as GPUs compute, or in fp32, as CPUs do; None: as this machine computes by itself. Between the two lies
            more than an audit tolerates, so whoever finds a difference asks again in the other.
        traced: what the member says of how it came about.
        nudged: begin a rounding error away (`audits.NUDGE`), by the outer rule: what comes of it shows how far machines may be apart.
        start, end: the inner states that it began with, where it did not begin anew, and ended with; both come from that member.
    """

    epoch: Epoch
    peer: PeerId
    first_sample: int
    samples: int
    state_hash: bytes
    bf16: bool | None = None
    traced: Traced = UNTRACED
    nudged: bool = False
    start: StateSnapshot | None = field(default=None, compare=False, repr=False)
    end: StateSnapshot | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay came to. Nobody writes to it.

    Args:
        vector: flat_D, fp32 on the CPU: the contribution.
        end_distance: of the inner state after all samples from the request's `end`, relative, comparable with how far contributions may be
            off; None where there is none.
    """

    vector: torch.Tensor
    end_distance: float | None = None


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """How a round ended.

    Args:
        status: what to do now.
        epoch: the epoch that the round was to close; that of the contribution.
        vector: flat_D, fp32: weighted mean of the contributions; None unless APPLIED or ALONE.
        weight: samples that went in.
        contributors: whose.
        included_us: whether our contribution is among them.
        reason: one sentence, for ABORTED and BEHIND.
    """

    status: RoundStatus
    epoch: Epoch
    vector: torch.Tensor | None = None
    weight: float = 0.0
    contributors: tuple[PeerId, ...] = ()
    reason: str = ""
    included_us: bool = True


@dataclass(frozen=True, slots=True)
class MemberView:
    """One member as its signed records describe it; `protocols.records.Progress` says what each field means."""

    peer: PeerId
    role: str
    phase: str
    epoch: Epoch
    samples: int
    samples_per_s: float
    sent_bytes: int
    received_bytes: int
    loss: float | None
    state_hash: bytes


@dataclass(frozen=True, slots=True)
class BannedView:
    """A member that is out: who, since which epoch, and why, in one sentence."""

    peer: PeerId
    epoch: Epoch
    reason: str


@dataclass(frozen=True, slots=True)
class SwarmView:
    """The swarm as this member sees it, by quorum.

    Args:
        epoch: the swarm's epoch.
        samples: gathered by all members towards the end of this epoch.
        target_samples: that end the epoch; 0 while unknown.
        eta_s: until then; None while unknown.
        members: everybody known, this member included.
        state_hash: most common state hash at `epoch` (32 bytes), empty while unknown.
        behind: this member must fetch the state before it can go on.
        banned: who is out, and why.
        audited: members compute again what others contributed, and whoever cannot be confirmed is banned.
    """

    epoch: Epoch = _FIRST_EPOCH
    samples: int = 0
    target_samples: int = 0
    eta_s: float | None = None
    members: tuple[MemberView, ...] = ()
    state_hash: bytes = b""
    behind: bool = False
    banned: tuple[BannedView, ...] = ()
    audited: bool = False


@dataclass(frozen=True, slots=True)
class TrainerReport:
    """What the trainer has done in this epoch so far.

    Args:
        samples: accumulated and not yet applied.
        samples_per_s: while computing.
        loss: mean over `samples`, nats; None while unknown.
        phase: of `protocols.records.Progress`.
    """

    samples: int
    samples_per_s: float
    loss: float | None
    phase: str


@dataclass(frozen=True, slots=True)
class EpochAnnouncement:
    """The state that the trainer now holds: updates applied, its hash (32 bytes), samples that went into it since the run began."""

    epoch: Epoch
    state_hash: bytes
    accepted_samples: int


class TrainingPeer(Protocol):
    """What the trainer needs of a peer: `PeerHandle` in a swarm, `peers.local.LocalPeer` on its own."""

    def report(self, samples: int, samples_per_s: float, loss: float | None, phase: str) -> None:
        """Say what was done; instant."""

    def view(self) -> SwarmView:
        """The swarm as last seen; instant."""

    def epoch_closing(self) -> bool:
        """Whether to call `average` now; instant."""

    def wait_for_call(self, timeout_s: float) -> bool:
        """For helpers: wait until something is wanted (epoch closing, behind, snapshot or replay wanted), at most `timeout_s`.

        Raises:
            PeerStopped: the peer is stopping.
        """

    def pause(self, duration_s: float) -> None:
        """Do nothing for a while.

        Raises:
            PeerStopped: the peer is stopping.
        """

    def average(self, contribution: Contribution) -> RoundOutcome:
        """Take part in the round that closes the contribution's epoch; blocks.

        Raises:
            PeerStopped: the peer is stopping.
        """

    def start_averaging(self, contribution: Contribution) -> Future[RoundOutcome]:
        """As `average`, beside computing: until the future is done, `epoch_closing` does not ask for that epoch. One at a time.

        Raises:
            PeerStopped: the peer is stopping; also from the future.
        """

    def announce_epoch(self, epoch: Epoch, state_hash: bytes, accepted_samples: int) -> None:
        """Say which state the trainer now holds; instant."""

    def snapshot_wanted(self) -> bool:
        """Whether somebody waits for a copy of the state; instant."""

    def publish_snapshot(self, snapshot: StateSnapshot) -> None:
        """Hand over a copy of the state to serve; instant."""

    def replay_wanted(self) -> ReplayRequest | None:
        """The oldest replay that somebody waits for, the same one until it is published or nobody waits any more; instant."""

    def publish_replay(self, request: ReplayRequest, replayed: Replayed | None) -> None:
        """Hand over what a replay came to; instant. Nothing happens if nobody waits for it any more.

        Args:
            request: as `replay_wanted` gave it.
            replayed: None: this member cannot replay it, as it does not hold that state, or has no data.
        """

    def fetch_state(self) -> StateSnapshot:
        """The swarm's newest state by majority, verified; blocks.

        Raises:
            PeerStopped: the peer is stopping.
            RoundError: nobody could give it; try again later.
        """

    def stopping(self) -> bool:
        """Whether to leave the training loop; instant."""
