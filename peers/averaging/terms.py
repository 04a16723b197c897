"""What both halves of an exchange go by: the plan, how blocks are encoded, and how fast they may go."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from peers.averaging.context import MemberContext
from peers.averaging.evidence import Evidence
from peers.averaging.measuring import Measuring
from peers.averaging.pace import Pace, Turns
from peers.interfaces import Stream
from protocols.bandwidth import stream_rates
from protocols.butterfly import blocks_reduced_by
from protocols.errors import RemoteProtocolError
from protocols.frames import BlockBytes, BytesLike
from protocols.ids import BlockIndex, PeerId
from protocols.messages import Plan
from protocols.parts import Part

T = TypeVar("T")


class Terms:
    """One attempt of a round, seen by one member.

    Args:
        context: who we are.
        plan: who averages what.
        evidence: of the round, if it is verified.

    Raises:
        ValueError: we are not in the plan.
    """

    def __init__(self, context: MemberContext, plan: Plan, evidence: Evidence | None = None) -> None:
        index = plan.index_of(context.me)
        if index is None:
            raise ValueError("an exchange of a plan that we are not in")
        self.context = context
        self.evidence = evidence
        self.rules = context.rules
        self.plan = plan
        self.me = index
        self.blocks = context.blocks_of(plan.size_elems)
        self.part_codec = context.rules.part_codec(plan.round_index)
        self.result_codec = context.rules.result_codec
        self.measuring = Measuring(context, plan, index)
        self._turns = {other: Turns(rate) for other, rate in stream_rates(plan, index).items()}

    def peer(self, member: int) -> PeerId:
        """Who that is."""
        return self.plan.members[member].peer

    def pace(self, member: int) -> Pace:
        """For one stream to a member; all of them together keep to what the links carry."""
        return Pace(self.rules.heartbeat_s, self._turns.get(member))

    def part_lengths(self) -> dict[BlockIndex, range]:
        """Lengths that others' parts of every block that we reduce may have."""
        return {block: self.part_codec.lengths(self.blocks.elems(block)) for block in blocks_reduced_by(self.plan, self.me)}

    def result_lengths(self, reducer: int) -> dict[BlockIndex, range]:
        """Lengths that every block that a member reduces may have when it returns it."""
        return {block: self.result_codec.lengths(self.blocks.elems(block)) for block in blocks_reduced_by(self.plan, reducer)}

    def buffer(self, _block: BlockIndex, total_bytes: int) -> BytesLike:
        """Where an encoded block is received that is not kept for long."""
        return self.context.memory.array(total_bytes).data

    def open_part(self, item: BlockBytes) -> Part:
        """Check an encoding of a part; it is decoded tile by tile where it is needed.

        Raises:
            ValueError: it is none of such a block.
        """
        return self.part_codec.open(item.data, self.blocks.elems(item.block))

    def open_result(self, item: BlockBytes) -> Part:
        """As `open_part`, of a result."""
        return self.result_codec.open(item.data, self.blocks.elems(item.block))

    async def checked(self, stream: Stream, item: BlockBytes, work: Callable[[], T]) -> T:
        """Run work on what a member sent in the pool; what it cannot decode is that member's fault.

        Raises:
            RemoteProtocolError: the work found it wrong.
        """
        try:
            return await self.context.heavy(work)
        except ValueError as error:
            raise RemoteProtocolError(stream.peer, f"block {item.block}: {error}") from error
