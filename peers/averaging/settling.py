"""Everybody ends with the same bytes: reports go to a leader, who answers with a commit or a repair plan."""

from __future__ import annotations

import asyncio
import logging

from peers.averaging.context import Blame, MemberContext
from peers.averaging.exchange import RoundResult
from protocols.butterfly import accepted_weight
from protocols.errors import RemoteError, RemoteGone, RemoteProtocolError, RemoteRefusal, RoundError
from protocols.ids import PeerId
from protocols.messages import Commit, Plan, Report, parse, plan_from_message, require
from protocols.proto.swarm.v1 import control_pb2 as pb
from protocols.settlement import MAX_ATTEMPTS, GiveUp, report_fits, settle, settlement_order

log = logging.getLogger(__name__)

Verdict = Commit | Plan | GiveUp


def verdict_bytes(verdict: Commit | Plan) -> bytes:
    """Wire form of a verdict."""
    message = pb.Verdict(commit=verdict.to_message()) if isinstance(verdict, Commit) else pb.Verdict()
    if isinstance(verdict, Plan):
        message.repair.ParseFromString(verdict.encode())
    return message.SerializeToString()


class Settling:
    """The settlement of one plan attempt, seen by one member.

    Args:
        context: who we are.
        plan: the attempt.
        first_plan_digest: names the round.
        blame: called with a member that broke the protocol, and how.
    """

    def __init__(self, context: MemberContext, plan: Plan, first_plan_digest: bytes, blame: Blame) -> None:
        self._context = context
        self._blame = blame
        self._plan = plan
        self._digest = plan.digest
        self._first_plan_digest = first_plan_digest
        self._reports: dict[int, Report] = {}
        self._changed = asyncio.Event()
        self._verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

    async def run(self, result: RoundResult, gone: set[int]) -> Verdict:
        """Report what we hold and learn the verdict; leads if everyone before us in order is gone.

        Args:
            result: what we hold.
            gone: members whose connection broke during the exchange.
        """
        me = self._plan.index_of(self._context.me)
        report = Report(self._digest, tuple(result.hashes))
        verdict: Verdict = GiveUp("the settlement was abandoned")
        try:
            verdict = await self._settle(me, report, result, gone)
        finally:
            self._verdict.set_result(verdict)
        return verdict

    async def _settle(self, me: int | None, report: Report, result: RoundResult, gone: set[int]) -> Verdict:
        for leader in settlement_order(self._plan):
            if leader == me:
                return await self._lead(leader, report, accepted_weight(self._plan, result.masks), gone)
            if leader in gone:
                continue
            answer = await self._ask(leader, report)
            if answer is not None:
                return answer
            gone.add(leader)
        return GiveUp("every member before us is silent and we are not in the plan")

    async def serve(self, sender: PeerId, report: Report) -> Verdict:
        """Take a member's report; answers when the verdict is known.

        Raises:
            RemoteRefusal: it is not in this plan.
            RemoteProtocolError: its report does not fit the plan.
        """
        index = self._plan.index_of(sender)
        if index is None or index in self._plan.absent:
            raise RemoteRefusal(sender, "not-in-plan", "you are not in this plan")
        if not report_fits(self._plan, report):
            raise RemoteProtocolError(sender, "a report that does not fit its plan")
        self._reports[index] = report
        self._changed.set()
        return await asyncio.shield(self._verdict)

    async def _lead(self, me: int, report: Report, weight: float, gone: set[int]) -> Verdict:
        """Collect reports until everyone who may still be there has reported, then decide."""
        self._reports[me] = report
        everyone = set(range(len(self._plan.members))) - self._plan.absent
        try:
            async with asyncio.timeout(self._context.rules.settle_timeout_s):
                while everyone - self._reports.keys() - gone:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            late = sorted(everyone - self._reports.keys())
            log.info("epoch %d: no report from %s", self._plan.epoch, ", ".join(self._plan.members[i].peer.short for i in late))
        verdict = settle(self._plan, self._first_plan_digest, dict(self._reports), weight)
        if isinstance(verdict, Commit):
            for index in sorted(self._reports):
                if self._reports[index].block_hashes != verdict.block_hashes:
                    self._blame(self._plan.members[index].peer, "it kept reporting other blocks than everybody else")
        return verdict

    async def _ask(self, leader: int, report: Report) -> Verdict | None:
        """One leader's verdict, or None if it cannot be had."""
        peer = self._plan.members[leader].peer
        endpoint = self._context.directory.endpoint(peer)
        if endpoint is None:
            return None
        patience_s = self._context.rules.settle_timeout_s + self._context.rules.stall_timeout_s
        try:
            reply = await self._context.transport.call(endpoint, "report", report.encode(), timeout_s=patience_s)
            return self._checked(parse(pb.Verdict, reply, peer), peer)
        except RemoteError as error:
            log.info("report not answered: %s", error)
            if isinstance(error, RemoteProtocolError):
                self._blame(peer, error.reason)
            if isinstance(error, RemoteGone):
                self._context.directory.suspect(peer)
            return GiveUp(error.reason) if isinstance(error, RemoteRefusal) and error.code == "given-up" else None

    def _checked(self, message: pb.Verdict, leader: PeerId) -> Commit | Plan:
        """A repair must be about the same members and vector, one attempt further, and still count us in."""
        if message.HasField("commit"):
            commit = Commit.from_message(message.commit, leader)
            require(commit.first_plan_digest == self._first_plan_digest, leader, "a commit of another round")
            return commit
        require(message.HasField("repair"), leader, "an empty verdict")
        same_members = tuple(message.repair.sealed_joins) == tuple(member.sealed for member in self._plan.members)
        require(same_members, leader, "a repair with other members")
        repair = plan_from_message(message.repair, self._plan.members, leader)
        same = (repair.epoch, repair.size_elems, repair.block_elems, repair.codec) == (
            self._plan.epoch,
            self._plan.size_elems,
            self._plan.block_elems,
            self._plan.codec,
        )
        in_turn = repair.attempt == self._plan.attempt + 1 and repair.attempt <= MAX_ATTEMPTS
        require(same and in_turn and repair.absent >= self._plan.absent, leader, "a repair of another vector or out of turn")
        if self._plan.index_of(self._context.me) in repair.absent:
            raise RoundError("the others went on without us")
        return repair
