"""Audits: who the coin draws replays another's contribution, and everybody looks into what is said of anybody."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace

from peers.averaging.context import MemberContext
from peers.averaging.court import Court
from peers.averaging.inner_states import InnerStates
from peers.averaging.liveness import is_alive
from peers.averaging.opening import open_block
from peers.averaging.parts_transfer import fetch_parts
from peers.averaging.verified import Case, VerifiedRounds
from peers.inner_shelf import SHOWN_EPOCHS
from peers.training_peer import Replayed, ReplayRequest
from protocols.butterfly import blocks_reduced_by, reducers_of, senders_of
from protocols.errors import RemoteError, RemoteRefusal, RoundError
from protocols.ids import BlockIndex, PeerId
from protocols.messages import require
from protocols.signing import CLOCK_SKEW_S
from protocols.trust.audits import GROSS, UNSTEADY_SLACK, Audit, blocks_in_audit_order, contribution_differs, draw_audits
from protocols.trust.offences import Offence
from protocols.trust.statements import ACCUSATION, Charge, Commitment
from protocols.trust.traced import UNTRACED, Traced
from protocols.trust.verification import misreports

log = logging.getLogger(__name__)

_FIRST_BLOCK = BlockIndex(0)

_Differs = Callable[[Replayed, float], Awaitable[bool]]

ACCUSE = "accuse"
"""Name of the call."""

_ACCUSERS_MARGIN = 2.0
"""Whoever accuses wants to see twice the difference that those who judge want: machines differ by less than what they allow, so what one
of them finds so far off, none finds in order. Or who cheats by just what is allowed would have its auditor banned."""


Replayer = Callable[[ReplayRequest], Awaitable[Replayed | None]]
"""Computes a contribution again, or says None: we cannot."""


class Auditing:
    """One member's audits and its part in looking into accusations.

    Args:
        context: who we are.
        verified: rounds that can be looked into.
        court: judges.
        replayer: see `Replayer`.
    """

    def __init__(self, context: MemberContext, verified: VerifiedRounds, court: Court, replayer: Replayer) -> None:
        self._context = context
        self._verified = verified
        self._court = court
        self._replayer = replayer
        self._looked_into: set[tuple[bytes, PeerId, Charge]] = set()
        self._replayed: dict[ReplayRequest, asyncio.Future[Replayed | None]] = {}
        self._inner = InnerStates(context)
        self.busy: set[asyncio.Task[None]] = set()
        self.passed: dict[PeerId, int] = {}
        self.calls = {ACCUSE: self._on_accusation}

    def begin(self, case: Case) -> None:
        """A first round is over: do the audits that its coin gives us, beside everything else."""
        oldest = min(known.plan.epoch for known in self._verified.cases.values())
        self._replayed = {replay: future for replay, future in self._replayed.items() if replay.epoch >= oldest}
        self._looked_into = {known for known in self._looked_into if known[2].epoch >= oldest}
        drawn = self._drawn(case)
        if case.verified is not None and all(audit.target != self._context.me for audit in drawn):
            self._context.inner.release(case.plan.epoch)
        for target in [audit.target for audit in drawn if audit.auditor == self._context.me]:
            self._start(self._audit(case, target), f"audit of {target.short}")
        for liar in case.liars:
            self._start(self._look_through(case, liar), f"looking through figures of member {liar}")
        for charge in self._context.conduct.accusations(case.evidence.plan):
            self._start(self._accuse(charge), f"accusation of {charge.accused.short}")

    def _start(self, work: Coroutine[None, None, None], name: str) -> None:
        task = self._context.tasks.create_task(self._watched(work), name=name)
        self.busy.add(task)
        task.add_done_callback(self.busy.discard)

    @staticmethod
    async def _watched(work: Coroutine[None, None, None]) -> None:
        """What we look into may be forgotten meanwhile, and others may be gone: then nothing is found."""
        try:
            await work
        except (RoundError, RemoteError) as error:
            log.info("not looked into: %s", error)

    def _drawn(self, case: Case) -> Sequence[Audit]:
        rules = self._context.rules.trust
        if rules is None or case.verified is None:
            return ()
        plan, said = case.evidence.plan, case.verified.commitments
        proven = [plan.members[i].peer for i in sorted(senders_of(plan))]  # whether or not they have shown their share
        newcomers = [plan.members[i].peer for i in sorted(said) if said[i].samples > 0 and not plan.weights[i]]
        return draw_audits(case.evidence.coin, proven, newcomers, rules.auditors)

    # An audit

    async def _audit(self, case: Case, target: PeerId) -> None:
        member = case.evidence.plan.index_of(target)
        if member is None or (self._traced(case, member).inner_end and not self._inner.comparable):
            return
        if not await self._has_states(case, member):
            if not await self._owes_states(case, target):
                log.info("epoch %d: the inner state of %s cannot be had", case.plan.epoch, target.short)
                return
            log.info("epoch %d: %s keeps its inner state back", case.plan.epoch, target.short)
            await self._accuse(self._charge(case, member, Offence.WITHHELD_STATE))
            await asyncio.sleep(self._context.rules.stall_timeout_s)
            if not await self._has_states(case, member, [other.peer for other in case.evidence.plan.members]):
                return  # whoever has got it would have given it to us
        unseen: list[BlockIndex] = []
        charge = await self._false_state(case, member)
        if charge is None and ((request := self._request_of(case, member)) is None or await self._replayed_by(request) is None):
            log.info("epoch %d: we cannot audit %s", case.plan.epoch, target.short)
            return
        charge = charge or await self._first_difference(case, member, unseen) or await self._false_check(case, member)
        if charge is None and unseen:
            log.info("epoch %d: %d blocks of %s cannot be audited", case.plan.epoch, len(unseen), target.short)
            return
        if charge is None:
            log.info("epoch %d: the contribution of %s is in order", case.plan.epoch, target.short)
            self.passed[target] = self.passed.get(target, 0) + 1
            return
        if self._context.conduct.finds(charge, guilty=True):
            self._court.judge(charge.first_plan_digest, charge.accused, charge.offence)
            await self._accuse(charge)
            if charge.offence is Offence.CHECK:
                await self._look_through(case, member)

    async def _first_difference(self, case: Case, member: int, unseen: list[BlockIndex]) -> Charge | None:
        """The first false block; blocks that cannot be had, or compared, go into `unseen`."""
        evidence = case.evidence
        for block in map(BlockIndex, blocks_in_audit_order(evidence.coin, evidence.blocks)):
            had = await fetch_parts(self._context, evidence, member, [block], self._holders(case, member, block))
            false = await self._is_false(case, member, block, _ACCUSERS_MARGIN) if had else None
            if false:
                return self._charge(case, member, Offence.CONTRIBUTION, block)
            if false is None:
                unseen.append(block)
        return None

    async def _is_false(self, case: Case, member: int, block: BlockIndex, margin: float = 1.0) -> bool | None:
        """Whether a block is not what its member's samples give, in fp32 or in bf16: devices differ. None if we cannot know."""
        return await self._false_in_all(case, member, margin, lambda own, tolerance: self._differs(case, member, block, own, tolerance))

    async def _false_in_all(self, case: Case, member: int, margin: float, differs: _Differs) -> bool | None:
        """Whether what a member committed to is false in all arithmetics; None if we can compute it in none."""
        trust, answers = self._context.rules.trust, []
        if trust is None:
            return None
        request = self._request_of(case, member)  # holds the inner states, which others may push out meanwhile
        if request is None:
            return None
        unsteady: float | None = None
        for bf16 in (None, True, False):
            own = await self._replayed_by(replace(request, bf16=bf16))
            if own is None:
                continue
            allowed = margin * trust.audit_tolerance
            if not await differs(own, allowed):
                return False
            if unsteady is None:  # once: replays take long
                unsteady = await self._unsteady(replace(request, bf16=bf16, nudged=True, end=None), own)
            allowed += UNSTEADY_SLACK * unsteady
            if not await differs(own, allowed):
                log.info("epoch %d: a replay is unsteady by %.2g: nobody can know more", case.plan.epoch, unsteady)
                return None
            if await differs(own, max(GROSS, allowed)):
                return True
            answers.append(bf16)
        return True if answers else None

    async def _unsteady(self, nudged: ReplayRequest, own: Replayed) -> float:
        """How far a rounding error leads a replay away, relative; a step by the gradient rule is too short for that."""
        if not nudged.traced.inner_end:
            return 0.0
        other = await self._replayed_by(nudged)
        if other is None:
            return math.inf
        return await self._context.heavy(lambda: float((other.vector - own.vector).norm() / (own.vector.norm() + 1e-30)))

    async def _differs(self, case: Case, member: int, block: BlockIndex, own: Replayed, tolerance: float) -> bool:
        """Bytes that are no block are no contribution either."""
        codec, (start, stop) = self._context.rules.part_codec(case.plan.round_index), case.evidence.blocks.span(block)

        def compare() -> bool:
            try:
                theirs_E = codec.decode(case.evidence.part(member, block), stop - start)
            except ValueError:
                return True
            return contribution_differs(theirs_E, own.vector, (start, stop), codec, tolerance)

        return await self._context.heavy(compare)

    async def _false_check(self, case: Case, member: int) -> Charge | None:
        for block in map(BlockIndex, range(case.evidence.blocks.count)):
            if await self._context.heavy(lambda b=block: self._misreported(case, member, b, _ACCUSERS_MARGIN)):  # type: ignore[misc]
                return self._charge(case, member, Offence.CHECK, block)
        return None

    def _misreported(self, case: Case, member: int, block: BlockIndex, margin: float = 1.0) -> bool | None:
        """Whether a member's figures of a block are false, as those of bytes that are no block are; None if we cannot know. In the pool."""
        check, data = case.checks.get(member), case.evidence.parts.get((member, block))
        if check is None or data is None or block in case.put_right or not case.result.masks.get(block, 0) >> member & 1:
            return None
        start, stop = case.evidence.blocks.span(block)
        try:
            part_E = self._context.rules.part_codec(case.plan.round_index).open(data, stop - start)
        except ValueError:  # only who lies together with the block's reducer gets them into a result
            return True
        return misreports(check, part_E, case.result.averaged_D[start:stop], block, margin)

    # Inner states

    def _traced(self, case: Case, member: int) -> Traced:
        said = self._said(case, member)
        return said.traced if said else UNTRACED

    async def _has_states(self, case: Case, member: int, others: Sequence[PeerId] = ()) -> bool:
        """Whether the inner states that a member has committed to are here, or can be had from it or others."""
        traced = self._traced(case, member)
        return not traced.inner_end or await self._inner.fetch(traced, [*others, case.evidence.plan.members[member].peer])

    async def _false_state(self, case: Case, member: int) -> Charge | None:
        if await self._is_state_false(case, member, _ACCUSERS_MARGIN):
            return self._charge(case, member, Offence.INNER_STATE)
        return None

    async def _is_state_false(self, case: Case, member: int, margin: float = 1.0) -> bool | None:
        """Whether an inner state is not what its member's samples make of the one before. None if we cannot know."""
        traced = self._traced(case, member)
        if not traced.inner_end or not self._inner.comparable:
            return None
        if await self._context.heavy(lambda: self._inner.is_malformed(traced)):
            return True

        async def differs(own: Replayed, tolerance: float) -> bool:
            return own.end_distance is not None and own.end_distance > tolerance

        return await self._false_in_all(case, member, margin, differs)

    async def _is_state_withheld(self, case: Case, member: int) -> bool | None:
        """None where its member may not have to show it any more, is cut off, or has lost it with its process: then nobody is to blame."""
        accused = case.evidence.plan.members[member].peer
        if not self._traced(case, member).inner_end or not self._inner.comparable:
            return None
        if await self._has_states(case, member):
            return False
        return True if await self._owes_states(case, accused) else None

    async def _owes_states(self, case: Case, peer: PeerId) -> bool:
        """Whether a member still has to show what it committed to, answers, and is the process that committed to it."""
        await asyncio.sleep(self._context.rules.stall_timeout_s)  # it may answer calls before everybody has heard that it is new
        await self._context.directory.refresh()  # or a process that has just begun would look like the one before
        if self._court.epoch > case.plan.epoch + SHOWN_EPOCHS:  # by now: asking for a state may take epochs
            return False
        age_s = self._context.directory.age_s(peer)
        restarted = age_s is None or age_s <= asyncio.get_running_loop().time() - case.ended_s + CLOCK_SKEW_S
        return not restarted and await is_alive(self._context, peer)

    def _charge(self, case: Case, member: int, offence: Offence, block: BlockIndex = _FIRST_BLOCK) -> Charge:
        plan = case.evidence.plan
        return Charge(plan.digest, plan.epoch, plan.members[member].peer, offence, block)

    def _holders(self, case: Case, member: int, block: BlockIndex, first: Sequence[PeerId] = ()) -> list[PeerId]:
        """Who may have a member's block: itself, and whoever reduced it."""
        plan = case.evidence.plan
        reducers = [i for i in sorted(reducers_of(plan)) if block in blocks_reduced_by(plan, i)]
        return [*first, plan.members[member].peer, *(plan.members[i].peer for i in reducers)]

    @staticmethod
    def _said(case: Case, member: int) -> Commitment | None:
        """What a member committed to."""
        said = case.verified.commitments.get(member) if case.verified else None
        heard = case.evidence.committed.get(member)
        return said or (heard.commitment if heard else None)

    def _request_of(self, case: Case, member: int) -> ReplayRequest | None:
        """What to ask our trainer for, with the inner states that are here; None where some are not, or there is nothing to compute."""
        plan, said = case.evidence.plan, self._said(case, member)
        if said is None or not said.samples:
            return None
        traced, join = said.traced, plan.members[member].join
        start, end = self._inner.held(traced.inner_start), self._inner.held(traced.inner_end)
        if (traced.inner_start and start is None) or (traced.inner_end and end is None):
            return None
        what = plan.epoch, plan.members[member].peer, said.first_sample, said.samples, join.state_hash
        return ReplayRequest(*what, None, traced, start=start, end=end)

    async def _replayed_by(self, replay: ReplayRequest) -> Replayed | None:
        """Each contribution is computed once in each arithmetic, however many look into it."""
        known = self._replayed.get(replay)
        if known is None:
            known = self._replayed[replay] = asyncio.get_running_loop().create_future()
            try:
                known.set_result(await self._replayer(replay))
            finally:
                if not known.done():
                    known.set_result(None)
        return await asyncio.shield(known)

    # Accusations

    async def _accuse(self, charge: Charge) -> None:
        """Ask everybody in the group to look."""
        case = self._verified.cases.get(charge.first_plan_digest)
        if case is None:
            return
        sealed = self._context.notary.seal(ACCUSATION, charge.encode_accusation())
        others = [member.peer for member in case.evidence.plan.members if member.peer != self._context.me]  # the accused may know better
        await asyncio.gather(*(self._send(peer, sealed) for peer in others))

    async def _send(self, peer: PeerId, sealed: bytes) -> None:
        endpoint = self._context.directory.endpoint(peer)
        if endpoint is None:
            return
        try:
            await self._context.transport.call(endpoint, ACCUSE, sealed, timeout_s=self._context.rules.stall_timeout_s)
        except RemoteError as error:
            log.info("accusation not heard: %s", error)

    async def _on_accusation(self, sender: PeerId, request: bytes) -> bytes:
        accuser, payload = await self._context.heavy(lambda: self._context.notary.open(ACCUSATION, request))
        charge = Charge.decode_accusation(payload, accuser)
        case = await self._verified.case_of(charge.first_plan_digest)
        if case is None:
            raise RemoteRefusal(sender, "unknown-plan", "this member cannot look into that round")
        plan = case.evidence.plan
        strangers = plan.index_of(accuser) is None or plan.index_of(charge.accused) is None or accuser == charge.accused
        require(charge.epoch == plan.epoch, sender, "an accusation that names another epoch than its round")
        require(not strangers and charge.block < case.evidence.blocks.count, sender, "an accusation of strangers, or of no block")
        key = (charge.first_plan_digest, accuser, charge)
        mine = sum(known[:2] == key[:2] for known in self._looked_into)
        if key not in self._looked_into and mine < 2 and not self._court.is_banned(accuser):
            self._looked_into.add(key)
            self._start(self._look_into(case, charge, accuser), f"looking into {charge.accused.short}")
        return b""

    async def _look_into(self, case: Case, charge: Charge, accuser: PeerId) -> None:
        found = await self._finding(case, charge, accuser)
        guilty = None if found is None else self._context.conduct.finds(charge, guilty=found)
        if guilty:
            self._court.judge(charge.first_plan_digest, charge.accused, charge.offence)
            if charge.offence is Offence.CHECK and (liar := case.evidence.plan.index_of(charge.accused)) is not None:
                await self._look_through(case, liar)
        elif guilty is False and charge.offence is not Offence.WITHHELD_STATE:  # it may well have kept it back from the accuser alone
            self._court.judge(charge.first_plan_digest, accuser, Offence.FALSE_ACCUSATION)

    async def _look_through(self, case: Case, liar: int) -> None:
        """False figures have no other use than to cover false results. Find all of a member's, and whoever gained or lied in those blocks:
        of those who lie together, the first who is found gives away the others.
        """
        for block in map(BlockIndex, range(case.evidence.blocks.count)):
            holders = self._holders(case, liar, block)
            if not await fetch_parts(self._context, case.evidence, liar, [block], holders):
                continue
            if not await self._context.heavy(lambda b=block: self._misreported(case, liar, b)):  # type: ignore[misc]
                continue
            opened = await open_block(self._context, case.evidence, case.plan, case.result, block, case.checks)
            for finding in opened.findings:
                if self._context.conduct.finds(
                    Charge(case.evidence.digest, case.plan.epoch, finding.peer, finding.offence, block), guilty=True
                ):
                    self._court.judge(case.evidence.digest, finding.peer, finding.offence)

    async def _finding(self, case: Case, charge: Charge, accuser: PeerId) -> bool | None:
        """Whether the accused is guilty; None if we cannot know."""
        member = case.evidence.plan.index_of(charge.accused)
        if member is None:
            return None
        if charge.offence is Offence.WITHHELD_STATE:
            asked_for = Audit(accuser, charge.accused) in self._drawn(case)  # others have no reason to make everybody fetch it
            return await self._is_state_withheld(case, member) if asked_for else None
        if charge.offence in (Offence.CONTRIBUTION, Offence.INNER_STATE) and not await self._has_states(case, member, (accuser,)):
            return None
        if charge.offence is Offence.INNER_STATE:
            return await self._is_state_false(case, member)
        if charge.offence not in (Offence.CONTRIBUTION, Offence.CHECK):
            return None  # of anything else everybody has seen what there is to see
        holders = self._holders(case, member, charge.block, (accuser,))
        if not await fetch_parts(self._context, case.evidence, member, [charge.block], holders):
            return None
        if charge.offence is Offence.CHECK:
            return await self._context.heavy(lambda: self._misreported(case, member, charge.block))
        return await self._is_false(case, member, charge.block)
