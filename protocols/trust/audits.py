"""Who audits whom, and whether a replayed contribution is the one committed to (papers.md B.3, step 11)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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


def inner_states_differ(theirs: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], tolerance: float) -> bool:
    """Whether a member's inner state is not what replaying ends with.

    Counts must be equal. A tensor may differ by `tolerance` of its norm, and where little is in it by a tenth of what an average one of its
    kind may differ by: gradients that vanish but for rounding are other ones on every machine.

    Args:
        theirs: name -> tensor, as committed to; `kind/<parameter>/<key>`, of which the key and the kind say what is alike.
        own: as we replayed it.
        tolerance: relative.
    """
    if theirs.keys() != own.keys():
        return True
    squares: dict[tuple[str, str], tuple[float, int]] = {}
    for name, tensor in own.items():
        total, elems = squares.get(_alike(name), (0.0, 0))
        squares[_alike(name)] = total + float(tensor.double().square().sum()), elems + tensor.numel()
    for name, tensor in own.items():
        other = theirs[name]
        if other.shape != tensor.shape or other.dtype != tensor.dtype:
            return True
        if not tensor.dim() or not tensor.is_floating_point():
            if not torch.equal(other, tensor):
                return True
            continue
        total, elems = squares[_alike(name)]
        average = math.sqrt(total / elems * tensor.numel())
        allowed = tolerance * (float(torch.linalg.vector_norm(tensor.double())) + _SPREAD * average) + 1e-30
        if not float(torch.linalg.vector_norm(other.double() - tensor.double())) <= allowed:  # NaN is more than allowed
            return True
    return False


def _alike(name: str) -> tuple[str, str]:
    kind, _, rest = name.partition("/")
    return kind, rest.rpartition("/")[2] if kind == "optim" else ""


def blocks_in_audit_order(coin: bytes, blocks: Blocks) -> list[int]:
    """The order in which an auditor looks at blocks: by the coin, so that nobody knows which one it will name first."""
    return sorted(range(blocks.count), key=lambda block: blake3(_TARGET_DOMAIN + coin + block.to_bytes(8, "little")).digest())
