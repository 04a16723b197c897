"""Peers, joins and plans for tests of the pure machines of a round."""

from __future__ import annotations

from collections.abc import Sequence

from protocols.ids import Attempt, BlockIndex, Epoch, PeerId, RoundId, RunId
from protocols.messages import BlockTask, Join, Plan, SealedJoin
from protocols.partition import assign_blocks

ROUND = RoundId(RunId(bytes(32)), Epoch(5))
STATE, OTHER_STATE = b"s" * 32, b"o" * 32


def peer(number: int) -> PeerId:
    return PeerId(bytes([number + 1]) * 32)


def join_of(who: PeerId, weight: float = 1.0, bandwidth: int = 1000, state: bytes = STATE) -> SealedJoin:
    return SealedJoin(who, Join(ROUND.epoch, state, weight, bandwidth), b"sealed by " + who.public_key)


def plan_of(weights: Sequence[float], bandwidths: Sequence[int] | None = None, num_blocks: int = 6, block_elems: int = 10) -> Plan:
    """Attempt 0 of members 0, 1, ...; its last block is half as long as the others."""
    speeds = list(bandwidths) if bandwidths else [1000] * len(weights)
    joins = tuple(join_of(peer(number), weight, speeds[number]) for number, weight in enumerate(weights))
    reduce = tuple(BlockTask(BlockIndex(block), owner) for block, owner in enumerate(assign_blocks(num_blocks, speeds)))
    return Plan(ROUND.epoch, Attempt(0), joins, num_blocks * block_elems - block_elems // 2, block_elems, "fp32", reduce)
