"""Blocks out, results back: one attempt of a round, seen by one member.

Every member opens one stream to every reducer, sends the blocks that the reducer owns, and gets each reduced block back on the same
stream (so a member that nobody can dial takes part all the same). Whoever is silent for `stall_timeout_s`, heartbeats included, is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import torch

from peers.averaging.context import Blame, MemberContext
from peers.averaging.liveness import alongside, beat_forever, beat_until, has_ended, next_frame, plain_remote_errors
from peers.averaging.measuring import Measuring
from peers.averaging.pace import Pace, Turns
from peers.averaging.result import RoundResult
from peers.interfaces import Stream
from protocols.aggregation.mean import weighted_mean
from protocols.bandwidth import stream_rates
from protocols.butterfly import BlockReducer, ReduceBlock, blocks_reduced_by, contributors_in, fold_order, reducers_of, senders_of
from protocols.errors import RemoteError, RemoteGone, RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.frames import BlockBytes, BytesLike, FrameKind, FrameReader
from protocols.ids import BlockIndex
from protocols.layout import Blocks
from protocols.messages import Plan
from protocols.parts import Part
from protocols.proto.swarm.v1 import control_pb2 as pb

log = logging.getLogger(__name__)
T = TypeVar("T")

ABANDONED = "abandoned"
"""Code of the refusal of a member that has left a round under way."""


class Exchange:
    """One attempt.

    Args:
        context: who we are.
        plan: who averages what.
        own_D: our contribution, not changed; ignored if our weight is 0.
        result: where reduced blocks go.
        cut_after_s: a reducer waits no longer than this for anyone's blocks, however alive they seem; others wait twice as long for it.
        blame: called with a reducer that broke the protocol, and how; for senders, `serve` raises.

    Attributes:
        ended: members whose process has surely ended, or that have stopped averaging.
    """

    def __init__(
        self, context: MemberContext, plan: Plan, own_D: torch.Tensor, result: RoundResult, cut_after_s: float, blame: Blame
    ) -> None:
        index = plan.index_of(context.me)
        if index is None:
            raise ValueError("an exchange of a plan that we are not in")
        self._context = context
        self._plan = plan
        self._me = index
        self._own_D = own_D
        self._result = result
        self._blocks = result.blocks
        self._codec = context.rules.codec
        self._cut_after_s = cut_after_s
        self._blame = blame
        self._machine = BlockReducer(plan, index)
        self._measuring = Measuring(context, plan, index)
        self._turns = {other: Turns(rate) for other, rate in stream_rates(plan, index).items()}
        self._parts: dict[BlockIndex, dict[int, Part]] = {block: {} for block in blocks_reduced_by(plan, index)}
        self._reduced: list[BlockBytes] = []
        self._orders: asyncio.Queue[ReduceBlock] = asyncio.Queue()
        self._news = asyncio.Event()
        self._finished_reducing = not self._parts
        self._heard_at_s: dict[int, float] = {}
        self._left_out: set[int] = set()
        self._served: set[int] = set()
        self._abandoned = False
        self._asked_after: set[int] = set()
        self._asking: asyncio.TaskGroup | None = None
        self.ended: set[int] = set()

    # The attempt, in order

    async def run(self) -> None:
        """Exchange until every block has come or its reducer is gone; what is missing then is a matter of settlement."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._heard_at_s = {i: now for i in senders_of(self._plan) if i != self._me}
        self._measuring.begin()
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch_senders())
            reducing = group.create_task(self._reduce_all())
            for reducer in sorted(reducers_of(self._plan) - {self._me}, key=lambda r: (r - self._me) % len(self._plan.members)):
                group.create_task(self._with_reducer(reducer))
            cut = loop.call_later(self._cut_after_s, self._cut)
            try:
                self._order(self._machine.start())
                await self._contribute_to_self()
                await reducing
            finally:
                cut.cancel()
                watch.cancel()
        self._measuring.end(complete=all(self._result.hashes))

    def abandon(self) -> None:
        """`run` was broken off: nobody shall wait for blocks of ours."""
        self._abandoned = self._finished_reducing = True
        self.forget()
        self._tell()

    def forget(self) -> None:
        """Let go of the vectors: who still holds us, a task that has not quite ended or the garbage collector, may do so for long."""
        self._parts.clear()
        self._reduced.clear()
        self._own_D = torch.empty(0)
        self._result = RoundResult(Blocks(1, 1), self._codec, self._context.memory)

    async def serve(self, stream: Stream) -> None:
        """The other end of `_with_reducer`: take a member's parts, give it every block we reduce.

        Raises:
            RemoteProtocolError: it broke the protocol; its later parts are ignored.
            RemoteRefusal: we have stopped averaging.
        """
        sender = self._plan.index_of(stream.peer)
        if sender is None or sender in self._plan.absent:
            raise RemoteProtocolError(stream.peer, "it opened an exchange of a plan that it is not in")
        if sender in self._served:
            raise RemoteProtocolError(stream.peer, "it opened a second stream for one exchange")
        self._served.add(sender)
        with plain_remote_errors():
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(stream, sender))
                group.create_task(self._give_results(stream, sender))

    # As a reducer

    async def _listen(self, stream: Stream, sender: int) -> None:
        """Take the member's parts, then wait until it leaves: ending the stream under a member that still sends heartbeats would cost it
        the results that are on their way.
        """
        if sender in senders_of(self._plan):
            await self._take_parts(stream, sender)
        try:
            while True:
                await next_frame(stream, self._context.rules.stall_timeout_s)
        except RemoteError as error:
            log.debug("a member has left: %s", error)

    async def _take_parts(self, stream: Stream, sender: int) -> None:
        reader = FrameReader(stream.peer, FrameKind.PART, self._expected_bytes(self._me), self._part_buffer)
        try:
            while not reader.complete:
                item = reader.feed(await next_frame(stream, self._context.rules.stall_timeout_s))
                self._heard_at_s[sender] = asyncio.get_running_loop().time()
                if item:
                    part_E = await self._checked(stream, item, lambda i=item: self._open(i))  # type: ignore[misc]
                    self._part_arrived(sender, item.block, part_E)
                self._measuring.moved()
            self._measuring.parts_in(sender)
        except RemoteProtocolError as error:
            self._sender_gone(sender, error.reason)
            raise
        except (RemoteTimeout, RemoteRefusal) as error:
            self._sender_gone(sender, error.reason)

    def _part_buffer(self, _block: BlockIndex, total_bytes: int) -> BytesLike:
        return self._context.memory.array(total_bytes).data

    async def _checked(self, stream: Stream, item: BlockBytes, work: Callable[[], T]) -> T:
        """Run work on what a member sent in the pool; what it cannot decode is that member's fault."""
        try:
            return await self._context.heavy(work)
        except ValueError as error:
            raise RemoteProtocolError(stream.peer, f"block {item.block}: {error}") from error

    def _open(self, item: BlockBytes) -> Part:
        """Check an encoding; it is decoded tile by tile where it is needed."""
        return self._codec.open(item.data, self._blocks.elems(item.block))

    def _keep(self, item: BlockBytes) -> None:
        self._result.put(item, self._open(item))

    def _part_arrived(self, sender: int, block: BlockIndex, part_E: Part) -> None:
        if sender not in self._left_out:
            self._parts[block][sender] = part_E
            self._order(self._machine.part_arrived(sender, block))

    def _sender_gone(self, sender: int, reason: str) -> None:
        if sender not in self._left_out:
            log.info("member %s is left out of the rest of epoch %d: %s", self._plan.members[sender].peer.short, self._plan.epoch, reason)
            self._left_out.add(sender)
            self._order(self._machine.sender_gone(sender))

    def _cut(self) -> None:
        for sender in sorted(self._machine.missing_senders()):
            self._sender_gone(sender, f"its blocks had not come {self._cut_after_s:.1f} s into the exchange")

    def _order(self, orders: list[ReduceBlock]) -> None:
        for order in orders:
            self._orders.put_nowait(order)

    async def _watch_senders(self) -> None:
        """A sender that never opens its stream, or whose link swallows everything, is noticed here."""
        rules = self._context.rules
        async with asyncio.TaskGroup() as asking:
            self._asking = asking
            try:
                while True:
                    await asyncio.sleep(rules.heartbeat_s)
                    now = asyncio.get_running_loop().time()
                    for sender in self._machine.missing_senders() & self._heard_at_s.keys():
                        if now - self._heard_at_s[sender] > rules.stall_timeout_s:
                            self._sender_gone(sender, f"silent for {rules.stall_timeout_s:.1f} s")
                        else:
                            self._ask_after(sender)
            finally:
                self._asking = None

    def _ask_after(self, sender: int) -> None:
        """Find out, once, whether a sender that has not opened its stream to us still exists."""
        if self._asking and sender in self._machine.missing_senders() - self._served - self._asked_after:
            self._asked_after.add(sender)
            self._asking.create_task(self._learn_its_end(sender))

    async def _learn_its_end(self, sender: int) -> None:
        if await has_ended(self._context, self._plan.members[sender].peer):
            self.ended.add(sender)
            self._sender_gone(sender, "its process has ended")

    async def _reduce_all(self) -> None:
        for _ in range(len(self._parts)):
            order = await self._orders.get()
            parts = self._parts.pop(order.block)
            if order.contributors:
                folded = fold_order(self._plan, order.contributors)
                parts_GE = [parts[i] for i in folded]
                weights_G = [self._plan.members[i].join.weight for i in folded]
                item = await self._context.heavy(lambda o=order, p=parts_GE, w=weights_G: self._reduce(o, p, w))  # type: ignore[misc]
                self._reduced.append(item)
                self._tell()
        self._finished_reducing = True
        self._tell()

    def _reduce(self, order: ReduceBlock, parts_GE: list[Part], weights_G: list[float]) -> BlockBytes:
        """Average, encode once, and keep what everyone else will decode. Runs in the pool."""
        start, stop = self._blocks.span(order.block)
        mean_E = weighted_mean(parts_GE, weights_G, out_E=self._result.averaged_D[start:stop])
        item = BlockBytes(FrameKind.RESULT, order.block, self._codec.encode(mean_E), order.mask)
        self._keep(item)
        return item

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _give_results(self, stream: Stream, member: int) -> None:
        heartbeat_s = self._context.rules.heartbeat_s
        sent, pace = 0, Pace(heartbeat_s, self._turns.get(member))
        while sent < len(self._reduced) or not self._finished_reducing:
            if sent == len(self._reduced):
                await beat_until(stream, heartbeat_s, self._news_after(sent))
            else:
                await pace.send(stream, self._reduced[sent])
                self._measuring.moved()
                sent += 1
        if self._abandoned:
            raise RemoteRefusal(stream.peer, ABANDONED, "this member has stopped averaging")

    def _news_after(self, sent: int) -> Callable[[], Awaitable[None]]:
        """Waits until there is more than `sent` blocks to give, or all that there will be."""

        async def wait() -> None:
            while sent == len(self._reduced) and not self._finished_reducing:
                await self._news.wait()

        return wait

    # As a member of somebody else's blocks

    async def _with_reducer(self, reducer: int) -> None:
        """Send a reducer its blocks and take its results; its failure leaves its blocks missing, nothing more."""
        peer = self._plan.members[reducer].peer
        endpoint = self._context.directory.endpoint(peer)
        if endpoint is None:
            return
        try:
            with plain_remote_errors():
                async with self._context.transport.stream(endpoint, "exchange", timeout_s=self._context.rules.stream_timeout_s) as stream:
                    await stream.send(pb.ExchangeHeader(plan_digest=self._plan.digest).SerializeToString())
                    async with alongside(self._send_parts(stream, reducer)):
                        await self._take_results(stream, reducer)
        except RemoteError as error:
            log.info("blocks of member %s are missing in epoch %d: %s", peer.short, self._plan.epoch, error)
            if isinstance(error, RemoteProtocolError):
                self._blame(peer, error.reason)
            if isinstance(error, RemoteGone):
                self._context.directory.suspect(peer)
            if isinstance(error, RemoteGone) or (isinstance(error, RemoteRefusal) and error.code == ABANDONED):
                self.ended.add(reducer)
                if reducer not in self._served:  # it ended before its parts were on their way: none will come
                    self._sender_gone(reducer, error.reason)
            elif isinstance(error, RemoteTimeout):
                self._ask_after(reducer)

    async def _send_parts(self, stream: Stream, reducer: int) -> None:
        if self._me in senders_of(self._plan):
            pace = Pace(self._context.rules.heartbeat_s, self._turns.get(reducer))
            for block in blocks_reduced_by(self._plan, reducer):
                data = await self._context.heavy(lambda b=block: self._encode_own(b))  # type: ignore[misc]
                await pace.send(stream, BlockBytes(FrameKind.PART, block, data))
                self._measuring.moved()
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
        reader = FrameReader(stream.peer, FrameKind.RESULT, self._expected_bytes(reducer), self._result.buffer_for)
        while not reader.complete:
            item = reader.feed(await next_frame(stream, self._context.rules.stall_timeout_s))
            if item:
                contributors = contributors_in(self._plan, item.contributors)
                if contributors is None or not self._plan.absent.isdisjoint(contributors):
                    raise RemoteProtocolError(stream.peer, f"block {item.block} names contributors that the plan does not have")
                await self._checked(stream, item, lambda i=item: self._keep(i))  # type: ignore[misc]
            self._measuring.moved()

    async def _contribute_to_self(self) -> None:
        if self._me in senders_of(self._plan):
            for block in tuple(self._parts):
                part_E = await self._context.heavy(lambda b=block: self._own_part(b))  # type: ignore[misc]
                self._part_arrived(self._me, block, part_E)

    def _own_part(self, block: BlockIndex) -> Part:
        """Our part as the others would see it: through the codec."""
        return self._codec.open(self._encode_own(block), self._blocks.elems(block))

    def _encode_own(self, block: BlockIndex) -> BytesLike:
        start, stop = self._blocks.span(block)
        return self._codec.encode(self._own_D[start:stop])

    # Both

    def _expected_bytes(self, reducer: int) -> dict[BlockIndex, int]:
        blocks = self._blocks
        return {block: self._codec.encoded_bytes(blocks.elems(block)) for block in blocks_reduced_by(self._plan, reducer)}
