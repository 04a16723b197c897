"""Blocks out, results back: one attempt of a round, seen by one member.

Every member opens one stream to every reducer, sends the blocks that the reducer owns, and gets each reduced block back on the same
stream (so a member that nobody can dial takes part all the same). The other end is `reducing.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import torch

from peers.averaging.context import Blame, MemberContext
from peers.averaging.evidence import Evidence
from peers.averaging.liveness import alongside, beat_forever, next_frame, next_real_frame, plain_remote_errors
from peers.averaging.reducing import ABANDONED, Reducing
from peers.averaging.result import RoundResult
from peers.averaging.terms import Terms
from peers.interfaces import Stream
from protocols.butterfly import blocks_reduced_by, contributors_in, reducers_of, senders_of
from protocols.errors import RemoteError, RemoteGone, RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.frames import BlockBytes, BytesLike, FrameKind, FrameReader
from protocols.ids import BlockIndex
from protocols.messages import Plan, require
from protocols.parts import Part
from protocols.proto.swarm.v1 import control_pb2 as pb

log = logging.getLogger(__name__)


class Exchange:
    """One attempt.

    Args:
        context: who we are.
        plan: who averages what.
        own_D: our contribution, not changed; ignored if our weight is 0.
        result: where reduced blocks go.
        cut_after_s: a reducer waits no longer than this for anyone's blocks, however alive they seem; others wait twice as long for it.
        blame: called with a reducer that broke the protocol, and how; for senders, `serve` raises.
        evidence: of the round, if it is verified.
    """

    def __init__(
        self,
        context: MemberContext,
        plan: Plan,
        own_D: torch.Tensor,
        result: RoundResult,
        cut_after_s: float,
        blame: Blame,
        evidence: Evidence | None = None,
    ) -> None:
        self._terms = Terms(context, plan, evidence)
        self._evidence = evidence
        self._context = context
        self._plan = plan
        self._me = self._terms.me
        self._own_D = own_D
        self._result = result
        self._cut_after_s = cut_after_s
        self._blame = blame
        self._reducing = Reducing(self._terms, result)

    @property
    def ended(self) -> set[int]:
        """Members whose process has surely ended, or that have stopped averaging."""
        return self._reducing.ended

    async def run(self) -> None:
        """Exchange until every block has come or its reducer is gone; what is missing then is a matter of settlement."""
        self._terms.measuring.begin()
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._reducing.watch_senders())
            reducing = group.create_task(self._reducing.reduce_all())
            for reducer in sorted(reducers_of(self._plan) - {self._me}, key=self._after_us):
                group.create_task(self._with_reducer(reducer))
            cut = asyncio.get_running_loop().call_later(self._cut_after_s, self._reducing.cut, self._cut_after_s)
            try:
                await self._contribute_to_self()
                await reducing
            finally:
                cut.cancel()
                watch.cancel()
        self._terms.measuring.end(self._result.encoded_bytes, complete=all(self._result.hashes))
        self._own_D = torch.empty(0)

    def abandon(self) -> None:
        """`run` was broken off: nobody shall wait for blocks of ours."""
        self._reducing.abandon()
        self.forget()

    def forget(self) -> None:
        """Let go of the vectors: who still holds us, a task that has not quite ended or the garbage collector, may do so for long."""
        self._reducing.forget()
        self._own_D = torch.empty(0)
        self._result = self._result.without_vector()

    async def serve(self, stream: Stream, committed: bytes = b"") -> None:
        """The other end of `_with_reducer`.

        Args:
            stream: of the member.
            committed: what it says that it brings, in a verified round.

        Raises:
            RemoteProtocolError: it broke the protocol; its later parts are ignored.
            RemoteRefusal: we have stopped averaging.
        """
        await self._reducing.serve(stream, committed)

    def _after_us(self, member: int) -> int:
        """How far behind us a member stands: everybody turns to the next one first, so not all to the same."""
        return (member - self._me) % len(self._plan.members)

    # With one reducer

    async def _with_reducer(self, reducer: int) -> None:
        """Send a reducer its blocks and take its results; its failure leaves its blocks missing, nothing more."""
        peer = self._terms.peer(reducer)
        endpoint = self._context.directory.endpoint(peer)
        if endpoint is None:
            return
        try:
            with plain_remote_errors():
                async with self._context.transport.stream(endpoint, "exchange", timeout_s=self._context.rules.stream_timeout_s) as stream:
                    committed = self._evidence.opening(peer) if self._evidence else b""
                    await stream.send(pb.ExchangeHeader(plan_digest=self._plan.digest, committed=committed).SerializeToString())
                    async with alongside(self._send_parts(stream, reducer)):
                        await self._take_results(stream, reducer)
        except RemoteError as error:
            log.info("blocks of member %s are missing in epoch %d: %s", peer.short, self._plan.epoch, error)
            self._reducer_failed(reducer, error)

    def _reducer_failed(self, reducer: int, error: RemoteError) -> None:
        if isinstance(error, RemoteProtocolError):
            self._blame(self._terms.peer(reducer), error.reason)
            if self._evidence:
                self._evidence.breach(self._terms.peer(reducer))
        if isinstance(error, RemoteGone):
            self._context.directory.suspect(self._terms.peer(reducer))
        if isinstance(error, RemoteGone) or (isinstance(error, RemoteRefusal) and error.code == ABANDONED):
            self.ended.add(reducer)
            if reducer not in self._reducing.served:  # it ended before its parts were on their way: none will come
                self._reducing.leave_out(reducer, error.reason)
        elif isinstance(error, RemoteTimeout):
            self._reducing.ask_after(reducer)

    async def _send_parts(self, stream: Stream, reducer: int) -> None:
        if self._me in senders_of(self._plan):
            pace = self._terms.pace(reducer)
            for block in blocks_reduced_by(self._plan, reducer):
                encoded = await self._context.heavy(lambda b=block: self._encode_own(b))  # type: ignore[misc]
                data = self._context.conduct.part(block, encoded, stream.peer)
                if data is None:
                    break
                await pace.send(stream, BlockBytes(FrameKind.PART, block, data))
                self._terms.measuring.moved()
        await beat_forever(stream, self._context.rules.heartbeat_s)  # our blocks are out; the results are not in

    async def _take_results(self, stream: Stream, reducer: int) -> None:
        """Take every block this reducer has for us. It may wait for others until its own cut, so it has twice as long as that."""
        patience_s = 2 * self._cut_after_s + self._context.rules.stall_timeout_s
        try:
            async with asyncio.timeout(patience_s):
                await self._take_all_results(stream, reducer)
        except TimeoutError as error:
            raise RemoteRefusal(stream.peer, "slow", f"its results had not come after {patience_s:.1f} s") from error

    async def _take_all_results(self, stream: Stream, reducer: int) -> None:
        terms = self._terms
        reader = FrameReader(stream.peer, FrameKind.RESULT, terms.result_lengths(reducer), self._result.buffer_for)
        while not reader.complete:
            item = reader.feed(await next_frame(stream, terms.rules.stall_timeout_s))
            if item:
                contributors = contributors_in(self._plan, item.contributors)
                if contributors is None or not self._plan.absent.isdisjoint(contributors):
                    raise RemoteProtocolError(stream.peer, f"block {item.block} names contributors that the plan does not have")
                await terms.checked(stream, item, lambda i=item: self._result.put(i, terms.open_result(i)))  # type: ignore[misc]
            terms.measuring.moved()
        if self._evidence:
            await self._take_statement(stream, reducer, self._evidence)
            drop_minorities(self._plan, self._result, blocks_reduced_by(self._plan, reducer))

    async def _take_statement(self, stream: Stream, reducer: int, evidence: Evidence) -> None:
        """A reducer signs for its blocks; those that it does not sign for are as good as missing."""
        blocks = blocks_reduced_by(self._plan, reducer)
        try:
            sealed = bytes(await next_real_frame(stream, self._terms.rules.stall_timeout_s))
            reduction = await self._context.heavy(lambda: evidence.note_reduction(reducer, sealed))
            held = tuple(self._result.hashes[block] for block in blocks)
            right = (reduction.attempt, reduction.blocks, reduction.block_hashes) == (self._plan.attempt, blocks, held)
            require(right, stream.peer, "a reduction of other blocks than it returned")
        except RemoteError:
            for block in blocks:
                self._result.hashes[block] = b""
            raise

    # With ourselves

    async def _contribute_to_self(self) -> None:
        if self._me in senders_of(self._plan):
            for block in self._reducing.blocks:
                try:
                    part_E = await self._context.heavy(lambda b=block: self._own_part(b))  # type: ignore[misc]
                except ValueError as error:  # nobody else could read it either
                    self._reducing.leave_out(self._me, f"our own block {block} cannot be read: {error}")
                    return
                self._reducing.part_arrived(self._me, block, part_E)

    def _own_part(self, block: BlockIndex) -> Part:
        """Our part as the others would see it: through the codec."""
        return self._terms.part_codec.open(self._encode_own(block), self._terms.blocks.elems(block))

    def _encode_own(self, block: BlockIndex) -> BytesLike:
        if self._evidence:
            return self._evidence.part(self._me, block)
        start, stop = self._terms.blocks.span(block)
        return self._terms.part_codec.encode(self._own_D[start:stop])


def drop_minorities(plan: Plan, result: RoundResult, blocks: Iterable[BlockIndex]) -> None:
    """In a verified first round: blocks that leave out half of the senders or more are as good as missing, so somebody else reduces them.

    No aggregate bounds what a few do to a block that most are kept out of, and its contributors are all who could find it false. Of two
    senders neither is a majority.
    """
    senders = len(senders_of(plan))
    for block in blocks if senders > 2 and not plan.round_index else ():
        if 2 * result.masks.get(block, 0).bit_count() <= senders:
            result.hashes[block] = b""
