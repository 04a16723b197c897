"""A reducer's half of an exchange: takes the parts of its blocks, averages each block as soon as it is complete, and gives it to everybody.

Whoever is silent for `stall_timeout_s`, heartbeats included, is gone: what it has sent counts, the rest goes on without it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from peers.averaging.evidence import Evidence
from peers.averaging.liveness import beat_until, has_ended, next_frame, plain_remote_errors
from peers.averaging.result import RoundResult
from peers.averaging.terms import Terms
from peers.interfaces import Stream
from protocols.aggregation.mean import weighted_mean
from protocols.butterfly import BlockReducer, ReduceBlock, blocks_reduced_by, fold_order, senders_of
from protocols.errors import RemoteError, RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.frames import BlockBytes, FrameKind, FrameReader
from protocols.ids import BlockIndex, PeerId
from protocols.parts import Part
from protocols.trust.statements import REDUCTION, Reduction

log = logging.getLogger(__name__)

ABANDONED = "abandoned"
"""Code of the refusal of a member that has left a round under way."""

_LEAST_RADIUS = 1e-30
"""Stands for a radius of 0, where most parts are equal."""


class Reducing:
    """What one member does for the blocks that it reduces.

    Args:
        terms: of the exchange.
        result: where reduced blocks go.

    Attributes:
        ended: members whose process has surely ended, or that have stopped averaging.
        served: members that have opened their stream to us.
    """

    def __init__(self, terms: Terms, result: RoundResult) -> None:
        self._terms = terms
        self._result = result
        self._machine = BlockReducer(terms.plan, terms.me)
        self._parts: dict[BlockIndex, dict[int, Part]] = {block: {} for block in blocks_reduced_by(terms.plan, terms.me)}
        self._reduced: list[BlockBytes] = []
        self._radii: dict[BlockIndex, float] = {}
        self._statement: bytes = b""
        self._said: Reduction | None = None
        self._orders: asyncio.Queue[ReduceBlock] = asyncio.Queue()
        self._news = asyncio.Event()
        self._finished = not self._parts
        self._abandoned = False
        now = asyncio.get_running_loop().time()
        self._heard_at_s = {i: now for i in senders_of(terms.plan) if i != terms.me}
        self._left_out: set[int] = set()
        self._asked_after: set[int] = set()
        self._asking: asyncio.TaskGroup | None = None
        self.served: set[int] = set()
        self.ended: set[int] = set()

    @property
    def blocks(self) -> tuple[BlockIndex, ...]:
        """What is left to reduce."""
        return tuple(self._parts)

    # Averaging

    async def reduce_all(self) -> None:
        """Average block after block until all are done; one that nobody has sent is left out."""
        self._order(self._machine.start())
        for _ in range(len(self._parts)):
            order = await self._orders.get()
            parts = self._parts.pop(order.block)
            if order.contributors:
                folded = fold_order(self._terms.plan, order.contributors)
                parts_GE = [parts[i] for i in folded]
                weights_G = [self._terms.plan.weights[i] for i in folded]
                item = await self._terms.context.heavy(lambda o=order, p=parts_GE, w=weights_G: self._reduce(o, p, w))  # type: ignore[misc]
                self._reduced.append(item)
                self._tell()
        if self._terms.evidence and self._reduced:
            self._statement = await self._terms.context.heavy(lambda: self._sign(self._terms.evidence))
        self._finished = True
        self._tell()

    def _reduce(self, order: ReduceBlock, parts_GE: list[Part], weights_G: list[float]) -> BlockBytes:
        """Average, encode once, and keep what everyone else will decode. Runs in the pool."""
        start, stop = self._terms.blocks.span(order.block)
        out_E, trust = self._result.averaged_D[start:stop], self._terms.rules.trust
        if trust and not self._terms.plan.round_index:  # what is brought to later rounds is certified
            aggregator = trust.aggregator_of(len(parts_GE), self._terms.evidence.digest if self._terms.evidence else b"")
            aggregated = aggregator.aggregate(parts_GE, weights_G, out_E)
            mean_E, self._radii[order.block] = aggregated.value_E, aggregated.radius
        else:
            mean_E = weighted_mean(parts_GE, weights_G, out_E=out_E)
        mean_E = self._terms.context.conduct.reduced(order.block, mean_E, self._radii.get(order.block, math.inf))
        item = BlockBytes(FrameKind.RESULT, order.block, self._terms.result_codec.encode(mean_E), order.mask)
        self._result.put(item, self._terms.open_result(item))
        return item

    def _sign(self, evidence: Evidence | None) -> bytes:
        """Our statement of the blocks that we have reduced. Runs in the pool."""
        if evidence is None:
            return b""
        blocks = tuple(sorted(item.block for item in self._reduced))
        hashes = tuple(self._result.hashes[block] for block in blocks)
        radii = tuple(max(self._radii.get(block, math.inf), _LEAST_RADIUS) for block in blocks)
        reduction = Reduction(evidence.digest, self._terms.plan.attempt, blocks, hashes, radii)
        self._said = reduction
        sealed = self._terms.context.notary.seal(REDUCTION, reduction.encode())
        evidence.note_reduction(evidence.me, sealed)
        return sealed

    def cut(self, after_s: float) -> None:
        """Go on without whoever has not sent everything by now."""
        for sender in sorted(self._machine.missing_senders()):
            self.leave_out(sender, f"its blocks had not come {after_s:.1f} s into the exchange")

    def abandon(self) -> None:
        """The exchange was broken off: nobody shall wait for blocks of ours."""
        self._abandoned = self._finished = True
        self._tell()

    def forget(self) -> None:
        """Let go of all blocks."""
        self._parts.clear()
        self._reduced.clear()
        self._result = self._result.without_vector()

    def _order(self, orders: list[ReduceBlock]) -> None:
        for order in orders:
            self._orders.put_nowait(order)

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # Senders

    def part_arrived(self, sender: int, block: BlockIndex, part_E: Part) -> None:
        """A part has come and is sound."""
        if sender not in self._left_out and block in self._parts:  # or we have let go of everything
            self._parts[block][sender] = part_E
            self._order(self._machine.part_arrived(sender, block))

    def leave_out(self, sender: int, reason: str) -> None:
        """Nothing more comes from this one."""
        if sender not in self._left_out:
            log.info("member %s is left out of the rest of epoch %d: %s", self._terms.peer(sender).short, self._terms.plan.epoch, reason)
            self._left_out.add(sender)
            self._order(self._machine.sender_gone(sender))

    async def watch_senders(self) -> None:
        """A sender that never opens its stream, or whose link swallows everything, is noticed here."""
        rules = self._terms.rules
        async with asyncio.TaskGroup() as asking:
            self._asking = asking
            try:
                while True:
                    await asyncio.sleep(rules.heartbeat_s)
                    now = asyncio.get_running_loop().time()
                    for sender in self._machine.missing_senders() & self._heard_at_s.keys():
                        if now - self._heard_at_s[sender] > rules.stall_timeout_s:
                            self.leave_out(sender, f"silent for {rules.stall_timeout_s:.1f} s")
                        else:
                            self.ask_after(sender)
            finally:
                self._asking = None

    def ask_after(self, sender: int) -> None:
        """Find out, once, whether a sender that has not opened its stream to us still exists."""
        if self._asking and sender in self._machine.missing_senders() - self.served - self._asked_after:
            self._asked_after.add(sender)
            self._asking.create_task(self._learn_its_end(sender))

    async def _learn_its_end(self, sender: int) -> None:
        if await has_ended(self._terms.context, self._terms.peer(sender)):
            self.ended.add(sender)
            self.leave_out(sender, "its process has ended")

    # Streams of members

    async def serve(self, stream: Stream, committed: bytes) -> None:
        """Take a member's parts, give it every block we reduce.

        Args:
            stream: of the member.
            committed: what it says that it brings, in a verified round.

        Raises:
            RemoteProtocolError: it broke the protocol; its later parts are ignored.
            RemoteRefusal: we have stopped averaging.
        """
        sender = self._terms.plan.index_of(stream.peer)
        if sender is None or sender in self._terms.plan.absent:
            raise RemoteProtocolError(stream.peer, "it opened an exchange of a plan that it is not in")
        if sender in self.served:
            raise RemoteProtocolError(stream.peer, "it opened a second stream for one exchange")
        self.served.add(sender)
        if evidence := self._terms.evidence:
            try:
                await self._terms.context.heavy(lambda: evidence.note_committed(sender, committed))
            except RemoteError as error:
                self.leave_out(sender, error.reason)
                self._note_breach(error, stream.peer)
                raise
        with plain_remote_errors():
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(stream, sender))
                group.create_task(self._give_results(stream, sender))

    async def _listen(self, stream: Stream, sender: int) -> None:
        """Take the member's parts, then wait until it leaves: ending the stream under a member that still sends heartbeats would cost it
        the results that are on their way.
        """
        if sender in senders_of(self._terms.plan):
            await self._take_parts(stream, sender)
        try:
            while True:
                await next_frame(stream, self._terms.rules.stall_timeout_s)
        except RemoteError as error:
            log.debug("a member has left: %s", error)

    async def _take_parts(self, stream: Stream, sender: int) -> None:
        terms = self._terms
        evidence = terms.evidence
        reader = FrameReader(stream.peer, FrameKind.PART, terms.part_lengths(), terms.buffer, hashed=evidence is not None)
        try:
            while not reader.complete:
                item = reader.feed(await next_frame(stream, terms.rules.stall_timeout_s))
                self._heard_at_s[sender] = asyncio.get_running_loop().time()
                if item and not terms.context.conduct.takes_part_of(stream.peer):
                    continue
                if item:
                    if evidence:
                        evidence.note_part(sender, item.block, item.data, item.content)
                    part_E = await terms.checked(stream, item, lambda i=item: terms.open_part(i))  # type: ignore[misc]
                    self.part_arrived(sender, item.block, part_E)
                terms.measuring.moved()
            terms.measuring.parts_in(sender)
        except RemoteProtocolError as error:
            self.leave_out(sender, error.reason)
            self._note_breach(error, stream.peer)
            raise
        except (RemoteTimeout, RemoteRefusal) as error:
            self.leave_out(sender, error.reason)

    def _note_breach(self, error: RemoteError, sender: PeerId) -> None:
        """Whoever sent it is guilty, whomever the error names: anybody can pass on what somebody else has signed for another purpose."""
        if self._terms.evidence and isinstance(error, RemoteProtocolError):
            self._terms.evidence.breach(sender)

    async def _give_results(self, stream: Stream, member: int) -> None:
        heartbeat_s = self._terms.rules.heartbeat_s
        sent, pace = 0, self._terms.pace(member)
        while sent < len(self._reduced) or not self._finished:
            if sent == len(self._reduced):
                await beat_until(stream, heartbeat_s, self._news_after(sent))
            else:
                await pace.send(stream, self._terms.context.conduct.result(self._reduced[sent], stream.peer))
                self._terms.measuring.moved()
                sent += 1
        if self._abandoned:
            raise RemoteRefusal(stream.peer, ABANDONED, "this member has stopped averaging")
        if self._said:
            await stream.send(self._statement_to(self._said, stream.peer))

    def _statement_to(self, own: Reduction, member: PeerId) -> bytes:
        """What we have signed of our blocks, for one member."""
        context = self._terms.context
        said = context.conduct.reduction(own, member)
        sealed = self._statement if said is own else context.notary.seal(REDUCTION, said.encode())
        return context.conduct.sealed(REDUCTION, sealed)

    def _news_after(self, sent: int) -> Callable[[], Awaitable[None]]:
        """Waits until there is more than `sent` blocks to give, or all that there will be."""

        async def wait() -> None:
            while sent == len(self._reduced) and not self._finished:
                await self._news.wait()

        return wait
