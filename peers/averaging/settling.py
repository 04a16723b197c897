"""Everybody ends with the same bytes: reports go to a leader, who answers with a commit or a repair plan.

From the beginning of an exchange every member keeps a stream to whoever will decide, and both show on it that they are alive. So a
leader never waits for a member that is gone, nor a member for a leader that is, longer than it takes to notice: at once when a
connection breaks, `stall_timeout_s` when a link swallows everything.

Nor does anybody wait for ever for one that shows nothing but life (`patience.py`). A leader whose exchange is over waits once as long as
an honest member may still need for its own, and longer for those in touch without whom it could only give up. A member that has reported
waits twice as long, and a stall: the leader's exchange may end so much later, and then the leader may have others to wait for. So an
honest leader decides before anybody turns away from it. Those who have been kept waiting by a leader turn to the next one each in its own
time, and that one waits for them as for those who are not through.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Set
from contextlib import suppress

from peers.averaging.context import Blame, MemberContext
from peers.averaging.liveness import alongside, beat_forever, beat_until, has_ended, next_real_frame, plain_remote_errors
from peers.averaging.reducing import ABANDONED
from peers.averaging.result import RoundResult
from peers.averaging.verdicts import Verdict, ask_for_verdict, read_verdict, verdict_bytes
from peers.interfaces import Stream
from protocols.butterfly import accepted_weight
from protocols.errors import RemoteError, RemoteGone, RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.messages import Commit, Plan, Report, require
from protocols.proto.swarm.v1 import control_pb2 as pb
from protocols.settlement import GiveUp, report_fits, settle, settlement_order

log = logging.getLogger(__name__)

SETTLE = "settle"
"""Name of the stream."""


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
        self._me = plan.index_of(context.me)
        self._digest = plan.digest
        self._first_plan_digest = first_plan_digest
        self._own: Report | None = None
        self._own_weight = 0.0
        self._own_ready = asyncio.Event()
        self._patience_s = self._longest_s = 0.0
        self._outwaited = False
        self._reports: dict[int, Report] = {}
        self._in_touch: set[int] = set()
        self._streams: set[int] = set()
        self._gone: set[int] = set()
        self._heard: Commit | None = None
        self._changed = asyncio.Event()
        self._verdict: asyncio.Future[Verdict | None] = asyncio.get_running_loop().create_future()

    # Our own side, in order

    async def run(self) -> Verdict:
        """Keep in touch with who decides while blocks are exchanged, report, and learn the verdict; lead if all before us are gone."""
        verdict = await self._settle()
        self._verdict.set_result(verdict)
        return verdict

    def abandon(self) -> None:
        """`run` was broken off: whoever turns to us shall turn to the next in order."""
        if not self._verdict.done():
            self._verdict.set_result(None)

    def report(self, result: RoundResult, ended: Set[int], patience_s: float, longest_s: float) -> None:
        """The exchange is over.

        Args:
            result: what we hold.
            ended: members that have surely ended; nobody waits until they turn to us.
            patience_s: how long others may still need for theirs, as far as we can tell.
            longest_s: how long they may at most.
        """
        self._own = Report(self._digest, tuple(result.hashes))
        self._gone |= ended - self._in_touch
        self._own_weight = accepted_weight(self._plan, result.masks)
        self._patience_s, self._longest_s = patience_s, longest_s
        self._own_ready.set()

    async def _settle(self) -> Verdict:
        for leader in settlement_order(self._plan):
            if leader == self._me:
                return await self._lead(leader)
            answer = await self._follow(leader)
            if answer is not None:
                return answer
            self._gone.add(leader)
        return GiveUp("every member before us is silent and we are not in the plan")

    async def _lead(self, me: int) -> Verdict:
        """Collect reports until everyone who is still there has reported, or has had time enough, then decide."""
        everyone = set(range(len(self._plan.members))) - self._plan.absent - {me}

        def some_are_missing() -> bool:
            return self._heard is None and bool(everyone - self._reports.keys() - self._gone)

        def too_few_without() -> bool:
            few = 2 * (len(self._reports) + 1) <= self._plan.electorate
            return self._heard is None and few and bool(self._streams - self._reports.keys())

        async with alongside(self._give_up_strangers(everyone)):
            await self._own_ready.wait()
            await self._wait_while(some_are_missing, self._patience_s)
            await self._wait_while(too_few_without, self._longest_s - self._patience_s)
        if self._heard:
            return self._heard
        if late := sorted(everyone - self._reports.keys()):
            log.info("epoch %d: no report from %s", self._plan.epoch, ", ".join(self._plan.members[i].peer.short for i in late))
        if self._own:
            self._reports[me] = self._own
        verdict = settle(self._plan, self._first_plan_digest, dict(self._reports), self._own_weight)
        if isinstance(verdict, Commit):
            for index in sorted(self._reports):
                if self._reports[index].block_hashes != verdict.block_hashes:
                    self._blame(self._plan.members[index].peer, "it kept reporting other blocks than everybody else")
        return verdict

    async def _wait_while(self, condition: Callable[[], bool], longest_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                while condition():
                    self._changed.clear()
                    await self._changed.wait()

    async def _give_up_strangers(self, everyone: set[int]) -> None:
        """Whoever has not even turned to us: gone at once if its process has ended, and when it has had time enough in any case.

        Those whom a leader before us still keeps waiting, as it did us, get as much as everybody else.
        """
        rules = self._context.rules
        async with asyncio.TaskGroup() as asking:
            if self._gone:  # we lead because somebody before us is lost, who may have told some of them
                for member in everyone - self._gone:
                    asking.create_task(self._hear_verdict(member))
            await asyncio.sleep(rules.heartbeat_s)
            for stranger in everyone - self._in_touch:
                asking.create_task(self._learn_its_end(stranger))
            await asyncio.sleep(rules.stall_timeout_s - rules.heartbeat_s)
            if not self._outwaited:
                self._lose(everyone - self._in_touch)

    async def _learn_its_end(self, stranger: int) -> None:
        if not await has_ended(self._context, self._plan.members[stranger].peer):
            await self._hear_verdict(stranger)
        elif stranger not in self._in_touch:
            self._lose({stranger})

    async def _hear_verdict(self, member: int) -> None:
        """Whoever has the verdict already turns to nobody any more. It counts if it is about the blocks that we hold."""
        peer = self._plan.members[member].peer
        await self._own_ready.wait()
        try:
            verdict = await ask_for_verdict(self._context, self._plan, self._first_plan_digest, peer)
        except RemoteError as error:
            log.info("no verdict: %s", error)
            if isinstance(error, RemoteProtocolError):
                self._blame(peer, error.reason)
            return
        if isinstance(verdict, Commit) and self._own and verdict.block_hashes == self._own.block_hashes:
            self._heard = verdict
            self._changed.set()

    def _lose(self, members: set[int]) -> None:
        self._gone |= members
        self._changed.set()

    async def _follow(self, leader: int) -> Verdict | None:
        """One leader's verdict, or None if it cannot be had."""
        peer = self._plan.members[leader].peer
        endpoint = self._context.directory.endpoint(peer)
        if endpoint is None:
            return None
        try:
            with plain_remote_errors():
                async with self._context.transport.stream(endpoint, SETTLE, timeout_s=self._context.rules.stream_timeout_s) as stream:
                    await stream.send(pb.ExchangeHeader(plan_digest=self._digest).SerializeToString())
                    async with alongside(self._beat_then_report(stream)):
                        message = await next_real_frame(stream, self._context.rules.stall_timeout_s)
                        return read_verdict(bytes(message), self._plan, self._first_plan_digest, self._context.me, peer)
        except RemoteError as error:
            log.info("no verdict: %s", error)
            if isinstance(error, RemoteProtocolError):
                self._blame(peer, error.reason)
            if isinstance(error, RemoteGone):
                self._context.directory.suspect(peer)
            return GiveUp(error.reason) if isinstance(error, RemoteRefusal) and error.code == "given-up" else None

    async def _beat_then_report(self, stream: Stream) -> None:
        heartbeat_s = self._context.rules.heartbeat_s
        await beat_until(stream, heartbeat_s, self._own_ready.wait)
        patience_s = 2 * self._patience_s + self._context.rules.stall_timeout_s
        try:
            async with asyncio.timeout(patience_s):
                if self._own:
                    await stream.send(self._own.encode())
                await beat_forever(stream, heartbeat_s)
        except TimeoutError as error:
            self._outwaited = True
            raise RemoteTimeout(stream.peer, f"no verdict {patience_s:.1f} s after our report") from error

    # What we serve to those who take us for the leader

    async def serve(self, stream: Stream) -> None:
        """Take a member's report and answer with the verdict when it is known. A report counts only while its member waits for that.

        Raises:
            RemoteRefusal: it is not in this plan, its stream has broken before, or the round is given up.
            RemoteProtocolError: its report does not fit the plan, or it has another stream open.
        """
        index = self._plan.index_of(stream.peer)
        if index is None or index in self._plan.absent:
            raise RemoteRefusal(stream.peer, "not-in-plan", "you are not in this plan")
        if index in self._streams:
            raise RemoteProtocolError(stream.peer, "it opened a second stream for one settlement")
        if index in self._in_touch:  # nobody's fault, but we may have decided without it by now
            raise RemoteRefusal(stream.peer, "broken-off", "your stream of this settlement has ended")
        self._in_touch.add(index)
        self._streams.add(index)
        self._gone.discard(index)
        try:
            with plain_remote_errors():
                async with alongside(self._listen(stream, index)):
                    verdict = await beat_until(stream, self._context.rules.heartbeat_s, lambda: asyncio.shield(self._verdict))
        except BaseException:
            self._reports.pop(index, None)  # it may report elsewhere now, or average with others
            self._lose({index})
            raise
        finally:
            self._streams.discard(index)
        if verdict is None:
            raise RemoteRefusal(stream.peer, ABANDONED, "this member has stopped averaging")
        if isinstance(verdict, GiveUp):
            raise RemoteRefusal(stream.peer, "given-up", verdict.reason)
        await stream.send(verdict_bytes(verdict))

    async def _listen(self, stream: Stream, index: int) -> None:
        message = await next_real_frame(stream, self._context.rules.stall_timeout_s)
        report = Report.decode(bytes(message), stream.peer)
        require(report_fits(self._plan, report), stream.peer, "a report that does not fit its plan")
        self._reports[index] = report
        self._changed.set()
