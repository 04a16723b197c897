"""The swarm as one member shows it to its trainer and to whoever watches, and itself as it shows itself to the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from peers.interfaces import Traffic
from peers.training_peer import BannedView, EpochAnnouncement, MemberView, SwarmView, TrainerReport
from protocols.ids import PeerId, SwarmTime
from protocols.progress import SwarmProgress
from protocols.records import MAX_LOSS, MAX_SAMPLES, MAX_SAMPLES_PER_S, Phase, Progress
from protocols.trust.ledger import Ban


def swarm_view(
    swarm: SwarmProgress,
    target_samples: int,
    members: Iterable[Progress],
    roles: Mapping[PeerId, str],
    bans: Iterable[Ban],
    *,
    audited: bool = False,
) -> SwarmView:
    """Put it together.

    Args:
        swarm: by quorum.
        target_samples: that end an epoch.
        members: newest progress of everybody, ourselves included.
        roles: as far as they are announced; others count as trainers.
        bans: known ones.
        audited: whether members compute each other's contributions again.
    """
    return SwarmView(
        swarm.epoch,
        swarm.samples,
        target_samples,
        swarm.eta_s if swarm.samples_per_s else None,
        tuple(_member_view(progress, roles.get(progress.peer, "trainer")) for progress in members),
        swarm.state_hash,
        swarm.behind,
        tuple(BannedView(ban.accused, ban.epoch, ban.offence.sentence) for ban in bans),
        audited,
    )


def _member_view(progress: Progress, role: str) -> MemberView:
    return MemberView(
        progress.peer,
        role,
        progress.phase,
        progress.epoch,
        progress.samples,
        progress.samples_per_s,
        progress.sent_bytes,
        progress.received_bytes,
        progress.loss,
        progress.state_hash,
    )


def own_progress(me: PeerId, held: EpochAnnouncement, report: TrainerReport, traffic: Traffic, now: SwarmTime) -> Progress:
    """What a member tells the others of itself.

    Args:
        me: who.
        held: the state that its trainer holds.
        report: what its trainer has done since.
        traffic: totals of its transport.
        now: its clock.
    """
    phase: Phase = report.phase  # type: ignore[assignment]
    return Progress(
        me,
        held.epoch,
        min(report.samples, MAX_SAMPLES),
        min(report.samples_per_s, MAX_SAMPLES_PER_S),
        held.accepted_samples,
        held.state_hash,
        phase,
        report.loss if report.loss is not None and abs(report.loss) <= MAX_LOSS else None,
        traffic.sent_bytes,
        traffic.received_bytes,
        now,
    )
