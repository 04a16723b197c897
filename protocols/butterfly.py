"""Butterfly all-reduce, one reducer's side: which blocks are complete, and who goes into each.

A member that reduces has one `BlockReducer` for a plan attempt. It is told what arrives and who is gone, and says which blocks can be
reduced now. It holds no numbers: the driver keeps the parts, and averages them in member order with `aggregation.mean`, so the bytes of a
result depend on its contributors alone, not on the order of arrival.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from protocols.ids import BlockIndex
from protocols.messages import Plan, SealedJoin


@dataclass(frozen=True, slots=True)
class ReduceBlock:
    """Reduce this block now from these members (plan indices, ascending). Empty: nobody's part came and the block stays missing."""

    block: BlockIndex
    contributors: tuple[int, ...]

    @property
    def mask(self) -> int:
        """Contributors as a bit mask."""
        return sum(1 << i for i in self.contributors)


def senders_of(plan: Plan) -> frozenset[int]:
    """Members that bring a contribution: positive weight, still present, and of those that bring one and the same result from the round
    before only the first: what several hold counts once, so the mean stays exact however a swarm fits its grid.
    """
    first: dict[bytes, int] = {}
    weights = plan.weights
    for i, member in enumerate(plan.members):
        if weights[i] > 0 and i not in plan.absent:
            first.setdefault(_brought(member), i)
    return frozenset(first.values())


def _brought(member: SealedJoin) -> bytes:
    """Names what a member brings."""
    return member.join.input_hash or member.peer.public_key


def fold_order(plan: Plan, contributors: Iterable[int]) -> tuple[int, ...]:
    """The order in which contributions are added up: by what they are, then by place in the plan.

    Groups of a later round average the same set of earlier results, each brought by other members; added in this order, they end with
    the same bytes.
    """
    return tuple(sorted(contributors, key=lambda i: (plan.members[i].join.input_hash, i)))


def reducers_of(plan: Plan) -> frozenset[int]:
    """Members that reduce at least one block of this attempt."""
    return frozenset(task.member for task in plan.reduce)


def blocks_reduced_by(plan: Plan, member: int) -> tuple[BlockIndex, ...]:
    """The blocks one member reduces, in sending order."""
    return tuple(task.block for task in plan.reduce if task.member == member)


def contributors_in(plan: Plan, mask: int) -> tuple[int, ...] | None:
    """Read a contributor mask; None if it names nobody, somebody who brings nothing, or one contribution twice."""
    indices = tuple(i for i in range(mask.bit_length()) if mask >> i & 1)
    if not indices or indices[-1] >= len(plan.members):
        return None
    members = [plan.members[i] for i in indices]
    once = len({_brought(member) for member in members}) == len(members)
    return indices if once and all(plan.weights[i] > 0 for i in indices) else None


class BlockReducer:
    """Bookkeeping of one reducer for one plan attempt."""

    def __init__(self, plan: Plan, me: int) -> None:
        senders = senders_of(plan)
        self._senders = senders
        self._gone: set[int] = set()
        self._arrived: dict[BlockIndex, set[int]] = {block: set() for block in blocks_reduced_by(plan, me)}
        self._open = set(self._arrived)

    def start(self) -> list[ReduceBlock]:
        """Blocks that need no waiting at all (a plan in which nobody sends)."""
        return self._ready(tuple(self._arrived))

    def part_arrived(self, sender: int, block: BlockIndex) -> list[ReduceBlock]:
        """A part is here.

        Raises:
            KeyError: this member does not reduce that block.
        """
        self._arrived[block].add(sender)
        return self._ready((block,))

    def sender_gone(self, sender: int) -> list[ReduceBlock]:
        """Nothing more comes from this member; the parts it has delivered count."""
        self._gone.add(sender)
        return self._ready(tuple(self._arrived))

    def missing_senders(self) -> frozenset[int]:
        """Members that some open block still waits for."""
        return frozenset().union(*(self._senders - self._arrived[block] - self._gone for block in self._open))

    def _ready(self, blocks: Iterable[BlockIndex]) -> list[ReduceBlock]:
        orders = []
        for block in blocks:
            if block in self._open and self._senders <= self._arrived[block] | self._gone:
                self._open.discard(block)
                orders.append(ReduceBlock(block, tuple(sorted(self._arrived[block]))))
        return orders


def accepted_weight(plan: Plan, masks: dict[BlockIndex, int]) -> float:
    """Samples in a result: each block's contributors' weights, counted by the block's share of the vector."""
    weighted_elems = 0.0
    for block in sorted(masks):
        start = block * plan.block_elems
        elems = min(start + plan.block_elems, plan.size_elems) - start
        contributors = (i for i in range(len(plan.members)) if masks[block] >> i & 1)
        weighted_elems += elems * sum(plan.weights[i] for i in fold_order(plan, contributors))
    return weighted_elems / plan.size_elems
