"""Reducing a block again in the open: everybody gets its parts, computes the aggregate, and sees who lied (papers.md B.3, steps 7 to 9).

Everybody must end with the same block. A reducer that lied is banned while some are still at it, and then gives its own part to nobody, so
that part is left out of what is put right, by all. Those of others are had from whoever has had them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from peers.averaging.context import MemberContext
from peers.averaging.evidence import Evidence
from peers.averaging.parts_transfer import fetch_parts, refuses_parts
from peers.averaging.result import RoundResult
from protocols.aggregation.mean import weighted_mean
from protocols.butterfly import contributors_in, fold_order
from protocols.frames import BlockBytes, FrameKind
from protocols.ids import BlockIndex, PeerId
from protocols.messages import Plan
from protocols.parts import Part
from protocols.trust.checks import BlockFacts, block_norm, codec_error, reductions_differ
from protocols.trust.offences import Offence
from protocols.trust.statements import Check
from protocols.trust.verification import misreports

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finding:
    """Who is guilty of what."""

    peer: PeerId
    offence: Offence


@dataclass(frozen=True, slots=True)
class Opened:
    """What a block turned out to be.

    Args:
        findings: who lied about it.
        right: the block as it should be, if it is another than was returned.
        complete: whether the parts of all contributors could be had; if not, nobody is found guilty.
    """

    findings: tuple[Finding, ...] = ()
    right: BlockBytes | None = None
    complete: bool = True


async def open_block(
    context: MemberContext, evidence: Evidence, plan: Plan, result: RoundResult, block: BlockIndex, checks: dict[int, Check]
) -> Opened:
    """Reduce a block of a round again.

    Args:
        context: who we are.
        evidence: of the round.
        plan: of its last attempt.
        result: as the group agreed on.
        block: which.
        checks: what members reported of their parts, by index; their figures are compared.
    """
    contributors = contributors_in(plan, result.masks.get(block, 0)) or ()
    stated = evidence.stated_radii().get(block)
    reducer = stated[0] if stated else next((task.member for task in evidence.plan.reduce if task.block == block), None)
    second = [plan.members[reducer].peer] if reducer is not None else []
    others = [member.peer for i, member in enumerate(plan.members) if i not in plan.absent]
    had = []
    vouched = [member for member in contributors if evidence.is_vouched(member)]
    for member in fold_order(plan, tuple(vouched)):
        # Its sender first: one member could not send everybody's parts to everybody.
        if await fetch_parts(context, evidence, member, [block], dict.fromkeys([plan.members[member].peer, *second, *others])):
            had.append(member)
    missing = [member for member in vouched if member not in had]
    accountable = second if stated else []  # whoever has signed for the block; the first plan's reducer need not be the one who reduced it
    refused = [Finding(peer, Offence.REDUCTION) for peer in accountable if await _shows_nothing(context, evidence, missing, block, peer)]
    if not had:
        return Opened(tuple(refused), complete=False)
    ban = context.ledger.of(plan.members[reducer].peer) if reducer is not None else None
    convicted = ban is not None and ban.offence is Offence.REDUCTION and set(contributors) - set(had) == {reducer}
    convicted = convicted or len(vouched) < len(contributors)
    opening = _Opening(context, evidence, plan, result, block, tuple(had), reducer, convicted)
    opened = await context.heavy(lambda: opening.judge(checks, complete=len(had) == len(contributors)))
    return replace(opened, findings=(*opened.findings, *refused)) if refused else opened


async def _shows_nothing(context: MemberContext, evidence: Evidence, missing: Sequence[int], block: BlockIndex, reducer: PeerId) -> bool:
    """Whether a reducer lives and will not show a part that it says is in its block. An honest one holds them all."""
    if not missing or reducer == context.me:
        return False
    return await refuses_parts(context, evidence, missing[0], block, reducer)


@dataclass(frozen=True, slots=True)
class _Opening:
    """A block whose parts, as far as they could be `had`, are in the evidence; `convicted`: its reducer is banned for false blocks."""

    context: MemberContext
    evidence: Evidence
    plan: Plan
    result: RoundResult
    block: BlockIndex
    had: tuple[int, ...]
    reducer: int | None
    convicted: bool
    """Put right it is in any case: its reducer is found guilty, or it holds what nobody vouches for."""

    def judge(self, checks: dict[int, Check], *, complete: bool) -> Opened:
        """Reduce again and compare. Runs in the pool."""
        parts, findings = self._readable_parts()
        start, stop = self.result.blocks.span(self.block)
        claimed_E = self.result.averaged_D[start:stop]
        mean_E, spread = self._aggregate(parts) if parts else (torch.zeros_like(claimed_E), 0.0)
        codec = self.context.rules.result_codec
        found_E = codec.decode(codec.encode(mean_E), stop - start)
        facts = BlockFacts((1.0,), math.inf, block_norm(found_E), codec_error(codec, found_E))
        right, unreadable = None, bool(findings)
        if self.convicted or unreadable or reductions_differ(claimed_E, found_E, facts, spread):
            right = self._put_right(parts)
            if complete and self.reducer is not None:
                findings.append(Finding(self.plan.members[self.reducer].peer, Offence.REDUCTION))
        if complete:
            findings += self._false_figures(parts, claimed_E, checks)
        return Opened(tuple(findings), right, complete)

    def _readable_parts(self) -> tuple[dict[int, Part], list[Finding]]:
        """Those who have committed to bytes that are no block are guilty, and their parts are left out; so is who has taken them in."""
        parts, findings = {}, []
        for member in self.had:
            try:
                parts[member] = self._part(member)
            except ValueError as error:
                log.info("block %d of epoch %d: %s", self.block, self.plan.epoch, error)
                findings.append(Finding(self.plan.members[member].peer, Offence.MALFORMED))
        return parts, findings

    def _part(self, member: int) -> Part:
        codec = self.context.rules.part_codec(self.plan.round_index)
        return codec.open(self.evidence.part(member, self.block), self.result.blocks.elems(self.block))

    def _put_right(self, parts: Mapping[int, Part]) -> BlockBytes:
        """The block without its reducer's part, unless there is no other."""
        counted = {member: part for member, part in parts.items() if member != self.reducer} or parts
        mean_E = self._aggregate(counted)[0] if counted else torch.zeros(self.result.blocks.elems(self.block))
        mask = sum(1 << member for member in counted or self.had)
        return BlockBytes(FrameKind.RESULT, self.block, bytes(self.context.rules.result_codec.encode(mean_E)), mask)

    def _aggregate(self, parts: Mapping[int, Part]) -> tuple[torch.Tensor, float]:
        """The aggregate, and how far the parts lie around it as far as that counts."""
        parts_GE, weights_G = list(parts.values()), [self.plan.weights[member] for member in parts]
        trust = self.context.rules.trust
        if trust is None or self.plan.round_index:
            return weighted_mean(parts_GE, weights_G), 0.0
        aggregated = trust.aggregator_of(len(parts_GE), self.evidence.digest).aggregate(parts_GE, weights_G)
        return aggregated.value_E, aggregated.radius if math.isfinite(aggregated.radius) else 0.0

    def _false_figures(self, parts: Mapping[int, Part], claimed_E: torch.Tensor, checks: dict[int, Check]) -> list[Finding]:
        """Verification 1, by everybody: a contributor's figures must be those of its part."""
        return [
            Finding(self.plan.members[member].peer, Offence.CHECK)
            for member, part_E in parts.items()
            if member in checks and misreports(checks[member], part_E, claimed_E, self.block)
        ]
