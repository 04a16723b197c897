"""Who audits whom, and whether a replayed contribution is the one committed to (papers.md B.3, step 11)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from blake3 import blake3

from protocols.codecs.base import Codec
from protocols.ids import PeerId
from protocols.layout import Blocks

AUDITABLE_EPOCHS = 4
AUDIT_WITHIN_S = 30.0
"""What a contribution was computed on, and its blocks, are kept until the next epoch is over; where epochs are short, for so many or
so long, whichever ends first: an audit, and then everybody's look at what it found, take a while whatever the epoch."""

GROSS = 1.0
"""A block that differs by this share of its norm was computed in no arithmetic: fp32 and bf16 are far closer than that."""

INNER_SLACK = 3.0
"""An inner state may differ by so many times what a contribution may differ by: it holds the last gradients alone, a contribution the mean
of all. Measured: `scripts.bench.replays`."""

UNSTEADY_SLACK = 4.0
"""Many steps at a high rate are chaos: what rounding makes of them nobody can know. A replay that begins a rounding error away
(`NUDGE`) shows how much that is; so many times as much is allowed. Measured, machines differ by half of it."""

NUDGE = 1e-7
"""Relative."""

_AUDITOR_DOMAIN = b"swarm.v1.auditors"
_TARGET_DOMAIN = b"swarm.v1.audited"
_SPREAD = 0.1
"""A block whose own gradient is small may differ by this share of what an average block may differ by."""


@dataclass(frozen=True, slots=True)
class Audit:
    """One member replays the contribution of another."""

    auditor: PeerId
    target: PeerId


def draw_audits(coin: bytes, members: Iterable[PeerId], newcomers: Iterable[PeerId], count: int) -> tuple[Audit, ...]:
    """The audits that a round's coin draws: auditors and targets without overlap, and besides one auditor for every newcomer.

    Args:
        coin: of the round.
        members: who contributed and may audit, newcomers left out.
        newcomers: who computed and is on probation: audited always, auditor never.
        count: auditors wanted; fewer are drawn where the members are too few to be halved.
    """
    by_auditor = sorted(members, key=lambda peer: blake3(_AUDITOR_DOMAIN + coin + peer.public_key).digest())
    auditors = by_auditor[: min(count, len(by_auditor) // 2)]
    rest = by_auditor[len(auditors) :]
    targets = sorted(rest, key=lambda peer: blake3(_TARGET_DOMAIN + coin + peer.public_key).digest())
    audits = [Audit(auditor, target) for auditor, target in zip(auditors, targets, strict=False)]
    fresh = sorted(newcomers, key=lambda peer: blake3(_TARGET_DOMAIN + coin + peer.public_key).digest())
    if by_auditor:
        audits += [Audit(by_auditor[-1 - number % len(by_auditor)], peer) for number, peer in enumerate(fresh)]
    return tuple(audits)


def contribution_differs(theirs_E: torch.Tensor, own_D: torch.Tensor, span: tuple[int, int], codec: Codec, tolerance: float) -> bool:
    """Whether one block of a contribution is not what replaying gives.

    Devices, thread counts and batch sizes differ in the last bits, bf16 in more; `tolerance` is what the run allows, relative to the norm
    of the block. A block with little in it is allowed a tenth of what an average block is. What the codec may change comes on top.

    Args:
        theirs_E: as committed to, decoded.
        own_D: the whole contribution as we replayed it.
        span: where the block lies.
        codec: of the run.
        tolerance: relative.
    """
    start, stop = span
    own_E = own_D[start:stop].double()
    average = float(torch.linalg.vector_norm(own_D.double())) * math.sqrt((stop - start) / own_D.numel())
    allowed = tolerance * (float(torch.linalg.vector_norm(own_E)) + _SPREAD * average)
    allowed += 2 * codec.worst_error(own_D[start:stop]) * math.sqrt(stop - start) + 1e-30
    return float(torch.linalg.vector_norm(theirs_E.double() - own_E)) > allowed


def blocks_in_audit_order(coin: bytes, blocks: Blocks) -> list[int]:
    """The order in which an auditor looks at blocks: by the coin, so that nobody knows which one it will name first."""
    return sorted(range(blocks.count), key=lambda block: blake3(_TARGET_DOMAIN + coin + block.to_bytes(8, "little")).digest())
