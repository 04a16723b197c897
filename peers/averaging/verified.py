"""A round from its plan to a verified result. Read `VerifiedRounds.average`: commit, average, verify, look, put right."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, field, replace

import torch

from peers.averaging.attempts import average_by_plan
from peers.averaging.coin_table import CoinHooks
from peers.averaging.context import Blame, Expected, MemberContext
from peers.averaging.court import Court
from peers.averaging.evidence import Brought, Evidence, Vouched
from peers.averaging.opening import open_block
from peers.averaging.parts_transfer import fetch_certificate
from peers.averaging.result import RoundResult
from peers.averaging.rounds import Rounds
from peers.averaging.verifying import Verified, Verifying, VerifyingHooks
from peers.inner_shelf import SHOWN_EPOCHS
from protocols.butterfly import accepted_weight, contributors_in, reducers_of
from protocols.content import input_hash
from protocols.errors import RoundError
from protocols.ids import BlockIndex, Epoch, PeerId
from protocols.messages import Commit, Plan
from protocols.trust.audits import AUDIT_WITHIN_S, AUDITABLE_EPOCHS
from protocols.trust.checks import BlockFacts, block_norm, codec_error, doubts, figures_of
from protocols.trust.offences import Offence
from protocols.trust.statements import COMMITMENT, Check, Commitment, begins_elsewhere, breaks_chain
from protocols.trust.verification import Looked, blocks_to_look_at

log = logging.getLogger(__name__)

_REMEMBERED_CASES = 64
_REMEMBERED_TRACES = 4
_REMEMBERED_MEMBERS = 4096
"""Commitments of each member, and members, by which a break in the chain of somebody's inner states is seen."""


@dataclass(frozen=True, slots=True)
class Case:
    """A round that is over, as long as it can be looked into.

    Args:
        evidence: what members committed to.
        plan: of the last attempt.
        result: as agreed on.
        verified: coin and checks; None if nobody led the verification through.
        agreed: names the result that the group had agreed on.
        put_right: blocks of the result that the group had agreed on otherwise.
        liars: members that had reported false figures of blocks that were looked at, by index.
        ended_s: when, on the event loop's clock.
    """

    evidence: Evidence
    plan: Plan
    result: RoundResult
    verified: Verified | None
    agreed: bytes
    put_right: set[BlockIndex] = field(default_factory=set)
    liars: set[int] = field(default_factory=set)
    ended_s: float = 0.0

    @property
    def checks(self) -> dict[int, Check]:
        """What members reported of the result that we hold, by index. Whoever speaks of another one says nothing about this."""
        reported = self.verified.checks if self.verified else {}
        return {i: check for i, (_, check) in reported.items() if check.result_hash == self.agreed}

    def certificate(self) -> tuple[bytes, ...]:
        """Sealed checks of those who hold our result: they vouch for it in the next round. Those that say more about it than is true would
        spoil it there, and count as none.
        """
        if self.verified is None:
            return ()
        said = input_hash(self.result.contents, self.evidence.digest), self.weight, self.evidence.plan.electorate
        reported = self.verified.checks.values()
        return tuple(sealed for sealed, check in reported if (check.result_hash, check.weight, check.electorate) == said)

    @property
    def weight(self) -> float:
        """Of the result, as we count it."""
        return accepted_weight(self.plan, self.result.masks)

    def certified(self, commit: Commit) -> Commit:
        """The round's commit with its certificate; without one where too few vouch for it."""
        certificate = self.certificate()
        return replace(commit, certificate=certificate if 2 * len(certificate) > self.evidence.plan.electorate else ())


class VerifiedRounds:
    """Runs rounds of a run that verifies, and remembers what they were made of.

    Args:
        context: who we are.
        rounds: where others find what we take part in.
        court: judges.
        blame: called with a member that broke the protocol, and how.
    """

    def __init__(self, context: MemberContext, rounds: Rounds, court: Court, blame: Blame) -> None:
        self._context = context
        self._rounds = rounds
        self._court = court
        self._blame = blame
        self.cases: dict[bytes, Case] = {}
        self._unfinished: dict[bytes, Evidence] = {}
        self._traces: dict[PeerId, list[tuple[bytes, Commitment]]] = {}
        self._concluded: Expected[bytes, Case] = Expected(_REMEMBERED_CASES)

    async def average(self, plan: Plan, own_D: torch.Tensor, brought: Brought, vouched: Vouched) -> tuple[Case, Commit]:
        """Average as planned, and verify what came of it.

        Args:
            plan: attempt 0.
            own_D: what we bring; not changed. Its encoded blocks are kept as long as they can be audited (`audits.AUDITABLE_EPOCHS`).
            brought: where it comes from.
            vouched: checks what others bring to later rounds.

        Raises:
            RoundError: no agreement.
        """
        self._forget(plan.epoch)
        evidence = Evidence(self._context, plan, own_D, brought, vouched, self._court.breach_in(plan.digest))
        self._unfinished[evidence.digest] = evidence
        self._court.open_round(plan)
        await evidence.commit()
        self._rounds.evidence.put(evidence.digest, evidence)
        last_plan, result, commit = await average_by_plan(self._context, self._rounds, plan, own_D, self._blame, evidence)
        verifying = Verifying(self._context, evidence, last_plan, self._hooks(evidence, last_plan, result), self._rounds.usual_exchange_s)
        self._rounds.verifyings.put(evidence.digest, verifying)
        agreed, verified = input_hash(result.contents, evidence.digest), await verifying.run()
        if verified and 2 * sum(check.result_hash == agreed for _, check in verified.checks.values()) <= plan.electorate:
            verified = None  # what a few say, who are cut off from the rest, shows nothing about the result that the rest has
        self._judge_claims(plan)  # not before its commitment is known: the proof of a ban must show that the accused took part
        case = Case(evidence, last_plan, result, verified, agreed, ended_s=asyncio.get_running_loop().time())
        self.cases[evidence.digest] = case
        self._unfinished.pop(evidence.digest, None)
        self._concluded.put(evidence.digest, case)
        if case.verified is None:
            log.info("epoch %d: round %d could not be verified", plan.epoch, plan.round_index)
            return case, commit
        evidence.coin = case.verified.coin
        self._trace(evidence.plan, verifying, case.verified)
        return case, await self._look(case, commit)

    async def case_of(self, first_plan_digest: bytes) -> Case | None:
        """The case of a round. Others may be through with it, and ask us about it, a little earlier than we are."""
        return self.cases.get(first_plan_digest) or await self._concluded.get(first_plan_digest, self._context.rules.stall_timeout_s)

    def _forget(self, now: Epoch) -> None:
        """What nobody asks about any more; of rounds that came to nothing others may have a result, and look for parts for a while."""
        for digest in [digest for digest, evidence in self._unfinished.items() if evidence.plan.epoch + 1 < now]:
            self._unfinished.pop(digest).forget()
        trust = self._context.rules.trust
        audited = trust is not None and trust.auditors > 0
        shown = SHOWN_EPOCHS if self._context.inner.newest is not None else 1  # many steps take long to compute again
        latest_s = asyncio.get_running_loop().time() - (AUDIT_WITHIN_S if audited else 0.0)
        for digest in [
            digest
            for digest, case in self.cases.items()
            if case.plan.epoch + AUDITABLE_EPOCHS < now or (case.plan.epoch + shown < now and case.ended_s < latest_s)
        ]:
            self._concluded.pop(digest)
            self.cases.pop(digest).evidence.forget()

    def _judge_claims(self, plan: Plan) -> None:
        """Samples beyond what an epoch can have are a lie that nobody could replay. All see the same signed joins."""
        trust = self._context.rules.trust
        most = trust.most_samples if trust else 0
        for member in plan.members if most and not plan.round_index else ():
            if member.join.weight > most:
                self._court.judge(plan.digest, member.peer, Offence.ABSURD_CLAIM)

    def _trace(self, plan: Plan, verifying: Verifying, verified: Verified) -> None:
        """Whoever begins with another inner state than its last contribution ended with, as we have seen that, is out by its own word."""
        for member, said in verified.commitments.items():
            peer, sealed = plan.members[member].peer, verifying.sealed_commitment(member)
            if plan.round_index or not said.samples or sealed is None or peer == self._context.me:
                continue
            known = self._traces.get(peer, [])
            if known and said.epoch < known[-1][1].epoch:
                known = []  # the run has gone back to an older state
            for known_sealed, before in known:
                if breaks_chain(before, said):
                    self._court.convict(peer, Offence.EQUIVOCATION, [(COMMITMENT, known_sealed), (COMMITMENT, sealed)])
            if begins_elsewhere(said, [before for _, before in known]):
                self._court.judge(plan.digest, peer, Offence.INNER_STATE)
            self._traces[peer] = [*known, (sealed, said)][-_REMEMBERED_TRACES:]
        while len(self._traces) > _REMEMBERED_MEMBERS:
            del self._traces[next(iter(self._traces))]

    def _hooks(self, evidence: Evidence, plan: Plan, result: RoundResult) -> VerifyingHooks:
        digest = evidence.digest
        coin = CoinHooks(
            self._blame,
            lambda peer: self._court.judge(digest, peer, Offence.WITHHELD_COIN),
            lambda peer, kind, one, other: self._court.convict(peer, Offence.EQUIVOCATION, [(kind, one), (kind, other)]),
        )
        return VerifyingHooks(lambda value: self._make_check(evidence, plan, result, value), coin)

    def _make_check(self, evidence: Evidence, plan: Plan, result: RoundResult, coin: bytes) -> Check:
        """Our figures. Runs in the pool."""
        count, codec = evidence.blocks.count, self._context.rules.part_codec(plan.round_index)
        projections, distances, doubted = [0.0] * count, [0.0] * count, []
        for block in map(BlockIndex, range(count)):
            if not result.masks.get(block, 0) >> evidence.me & 1:
                continue
            start, stop = evidence.blocks.span(block)
            part_E = codec.open(evidence.part(evidence.me, block), stop - start)
            figures = figures_of(part_E, result.averaged_D[start:stop], coin, block)
            projections[block], distances[block] = figures.projection, figures.distance
            if not plan.round_index and doubts(figures.distance, figures.length):
                doubted.append(block)
        named = input_hash(result.contents, evidence.digest)
        weight = accepted_weight(plan, result.masks)
        round_ = (evidence.digest, plan.epoch, plan.round_index, coin)
        return Check(*round_, plan.electorate, named, weight, tuple(projections), tuple(distances), tuple(doubted))

    async def _look(self, case: Case, commit: Commit) -> Commit:
        """Open what does not add up, judge who lied, and put right what is wrong."""
        looked = await self._context.heavy(lambda: self._suspects(case))
        unvouched = await self._unvouched(case)
        blocks = sorted({*looked.blocks, *unvouched})
        for block in blocks:
            log.info("epoch %d: block %d is reduced again in the open", case.plan.epoch, block)
            opened = await open_block(self._context, case.evidence, case.plan, case.result, block, case.checks)
            for finding in opened.findings:
                self._court.judge(case.evidence.digest, finding.peer, finding.offence)
                member = case.plan.index_of(finding.peer)
                if finding.offence is Offence.CHECK and member is not None:
                    case.liars.add(member)
            if opened.right is not None:
                right = opened.right
                part = self._context.rules.result_codec.open(right.data, case.result.blocks.elems(block))
                case.put_right.add(block)  # first: whoever looks into this round meanwhile shall not compare a half-written block
                case.result.put(right, part)
        if not case.put_right.issuperset(unvouched):
            self._rounds.results.pop(case.evidence.digest, None)
            raise RoundError("a block holds what nobody vouches for, and nothing else")
        if not blocks:
            return commit
        return replace(commit, block_hashes=tuple(case.result.hashes), weight=accepted_weight(case.plan, case.result.masks))

    async def _unvouched(self, case: Case) -> list[BlockIndex]:
        """Blocks of a later round with a contributor for whom no group vouches. Reducers see that of each other's senders, not of each
        other: whoever reduces takes in what it brings itself.
        """
        evidence, plan = case.evidence, case.plan
        contributors = {block: contributors_in(plan, mask) or () for block, mask in case.result.masks.items()}
        reducers = [plan.members[i].peer for i in sorted(reducers_of(plan))]
        unknown = sorted({i for members in contributors.values() for i in members if not evidence.is_vouched(i)})
        for member in unknown:
            await fetch_certificate(self._context, evidence, member, dict.fromkeys([plan.members[member].peer, *reducers]))
        return [block for block in sorted(contributors) if not all(evidence.is_vouched(i) for i in contributors[block])]

    def _suspects(self, case: Case) -> Looked:
        """Runs in the pool."""
        evidence, plan, result, codec = case.evidence, case.plan, case.result, self._context.rules.result_codec
        trust = self._context.rules.trust
        contributors = {block: contributors_in(plan, mask) or () for block, mask in result.masks.items()}
        facts, radii = {}, evidence.stated_radii()
        for block, members in contributors.items():
            if block not in radii:
                continue
            reducer, radius = radii[block]
            start, stop = evidence.blocks.span(block)
            result_E = result.averaged_D[start:stop]
            weights_G = tuple(plan.weights[i] for i in members)
            radius = math.inf if plan.round_index else radius
            clipped = not plan.round_index and trust is not None and trust.clips
            facts[block] = BlockFacts(weights_G, radius, block_norm(result_E), codec_error(codec, result_E), clipped, reducer)
        vanishing = bool(plan.round_index) or (trust is not None and trust.vanishing)
        return blocks_to_look_at(contributors, case.checks, facts, case.evidence.coin, vanishing=vanishing)
