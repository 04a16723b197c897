"""Requests for blocks that somebody holds: of a round's result, or as a member brought them.

Wire form: `proto/swarm/v1`. Every `decode` raises RemoteProtocolError that names the sender.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols.frames import MAX_MEMBERS
from protocols.ids import BlockIndex, PeerId
from protocols.messages import HASH_BYTES, MAX_BLOCKS, parse, require
from protocols.proto.swarm.v1 import control_pb2 as pb
from protocols.proto.swarm.v1 import trust_pb2


@dataclass(frozen=True, slots=True)
class BlocksRequest:
    """A member wants these result blocks of the round that began with this plan."""

    first_plan_digest: bytes
    blocks: tuple[BlockIndex, ...]

    def encode(self) -> bytes:
        """Wire bytes."""
        return pb.BlocksRequest(first_plan_digest=self.first_plan_digest, blocks=self.blocks).SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, data: bytes, sender: PeerId) -> BlocksRequest:
        """Read and check."""
        m = parse(pb.BlocksRequest, data, sender)
        once = len(m.blocks) <= MAX_BLOCKS and len(set(m.blocks)) == len(m.blocks)
        require(once, sender, "too many blocks, or one twice, in its request")
        require(len(m.first_plan_digest) == HASH_BYTES, sender, "a request for blocks whose plan digest is not 32 bytes")
        return cls(m.first_plan_digest, tuple(BlockIndex(b) for b in m.blocks))


@dataclass(frozen=True, slots=True)
class PartsRequest:
    """A member wants these blocks as a member of that plan committed to them.

    Args:
        first_plan_digest: names the round.
        member: index into its plan.
        blocks: which; none for the commitment alone.
    """

    first_plan_digest: bytes
    member: int
    blocks: tuple[BlockIndex, ...]

    def encode(self) -> bytes:
        """Wire bytes."""
        m = trust_pb2.PartsRequest(first_plan_digest=self.first_plan_digest, member=self.member, blocks=self.blocks)
        return m.SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, data: bytes, sender: PeerId) -> PartsRequest:
        """Read and check."""
        m = parse(trust_pb2.PartsRequest, data, sender)
        once = len(m.blocks) <= MAX_BLOCKS and len(set(m.blocks)) == len(m.blocks)
        require(once, sender, "too many blocks, or one twice, in its request")
        require(len(m.first_plan_digest) == HASH_BYTES, sender, "a request for parts whose plan digest is not 32 bytes")
        require(m.member < MAX_MEMBERS, sender, f"a request for the parts of member {m.member}")
        return cls(m.first_plan_digest, m.member, tuple(BlockIndex(b) for b in m.blocks))
