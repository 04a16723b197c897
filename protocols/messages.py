"""Control messages of an averaging round as frozen values, with strict reading: what arrives is bounded and typed or refused.

Wire form: `proto/swarm/v1/control.proto`. Every `decode` raises RemoteProtocolError that names the sender.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median_low
from typing import TypeVar

from blake3 import blake3
from google.protobuf.message import DecodeError, Message

from protocols.errors import RemoteProtocolError
from protocols.frames import MAX_MEMBERS
from protocols.ids import MAX_EPOCH, PUBLIC_KEY_BYTES, Attempt, BlockIndex, Epoch, PeerId
from protocols.proto.swarm.v1 import control_pb2 as pb

MAX_BLOCKS = 2**16
MAX_ROUNDS = 16
"""Rounds of one epoch: a grid of 16 axes holds any swarm."""

MAX_FAILURES = 2**16
MAX_ELEMS = 2**40
MAX_WEIGHT = 1e9
"""Samples one member can claim for one epoch."""

MAX_CARRIED_WEIGHT = MAX_WEIGHT * 2**20
"""Samples in what a member brings from an earlier round: of everybody whose contribution is in it."""

MAX_BANDWIDTH_BYTES_PER_S = 10**12
MAX_MEMORY_BYTES = 2**50
MAX_PROVEN = 64
"""Members of whose links one join can speak."""

HASH_BYTES = 32
_M = TypeVar("_M", bound=Message)


def parse(kind: type[_M], data: bytes, sender: PeerId | None) -> _M:
    """Read one protobuf message.

    Raises:
        RemoteProtocolError: these are not its bytes.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise RemoteProtocolError(sender, f"these bytes are not a {kind.DESCRIPTOR.name}") from error


def require(condition: bool, sender: PeerId | None, sentence: str) -> None:
    """Refuse a message.

    Raises:
        RemoteProtocolError: `condition` does not hold.
    """
    if not condition:
        raise RemoteProtocolError(sender, sentence)


def require_hashes(hashes: Sequence[bytes], sender: PeerId | None, *, may_be_missing: bool) -> tuple[bytes, ...]:
    """Check a list of block hashes.

    Raises:
        RemoteProtocolError: one has another length than 32 (or 0, where missing blocks are allowed).
    """
    require(len(hashes) <= MAX_BLOCKS, sender, f"{len(hashes)} block hashes are too many")
    for value in hashes:
        require(len(value) == HASH_BYTES or (may_be_missing and not value), sender, f"a block hash has {len(value)} bytes")
    return tuple(hashes)


@dataclass(frozen=True, slots=True)
class Proven:
    """What a member's link has carried, each way, in a round with whoever says so; above 0."""

    peer: PeerId
    bytes_per_s: int


@dataclass(frozen=True, slots=True)
class Join:
    """A member is ready for a round.

    Args:
        epoch: the epoch that closes.
        state_hash: of the state its contribution was computed on; covers the names, shapes and order of the tensors.
        weight: samples; 0 for a member that brings nothing and only reduces.
        bandwidth_bytes_per_s: how fast it says it can move data; 0 for a member that reduces nothing.
        round_index: which round of the epoch.
        input_hash: names the result that it brings from the round before (`input_hash`); empty in round 0.
        proven: what it saw other members' links carry, each at most once.
        part_memory_bytes: memory for the parts of the blocks that it reduces, decoded; 0 for no limit.
        coin_root: names its shares of the round's coin (`trust.coin`); empty where rounds are not verified.
    """

    epoch: Epoch
    state_hash: bytes
    weight: float
    bandwidth_bytes_per_s: int
    round_index: int = 0
    input_hash: bytes = b""
    proven: tuple[Proven, ...] = ()
    part_memory_bytes: int = 0
    coin_root: bytes = b""

    def encode(self) -> bytes:
        """Wire bytes, to be sealed."""
        return pb.Join(
            epoch=self.epoch,
            state_hash=self.state_hash,
            weight=self.weight,
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s,
            round_index=self.round_index,
            input_hash=self.input_hash,
            proven=[pb.Proven(peer=seen.peer.public_key, bytes_per_s=seen.bytes_per_s) for seen in self.proven],
            part_memory_bytes=self.part_memory_bytes,
            coin_root=self.coin_root,
        ).SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, data: bytes, sender: PeerId) -> Join:
        """Read and check."""
        m = parse(pb.Join, data, sender)
        require(m.epoch <= MAX_EPOCH, sender, f"an absurd epoch in its join: {m.epoch}")
        require(len(m.state_hash) == HASH_BYTES, sender, "a state hash in its join is not 32 bytes")
        most = MAX_CARRIED_WEIGHT if m.round_index else MAX_WEIGHT
        require(math.isfinite(m.weight) and 0 <= m.weight <= most, sender, f"an absurd weight in its join: {m.weight}")
        require(m.round_index < MAX_ROUNDS, sender, f"an absurd round in its join: {m.round_index}")
        require(len(m.input_hash) == (HASH_BYTES if m.round_index else 0), sender, "a join whose input does not fit its round")
        require(m.bandwidth_bytes_per_s <= MAX_BANDWIDTH_BYTES_PER_S, sender, f"an absurd bandwidth in its join: {m.bandwidth_bytes_per_s}")
        require(m.part_memory_bytes <= MAX_MEMORY_BYTES, sender, f"an absurd memory in its join: {m.part_memory_bytes}")
        require(len(m.coin_root) in (0, HASH_BYTES), sender, "a join whose shares of the coin have no name")
        proven = _read_proven(m.proven, sender)
        work = m.weight, m.bandwidth_bytes_per_s
        return cls(Epoch(m.epoch), m.state_hash, *work, m.round_index, m.input_hash, proven, m.part_memory_bytes, m.coin_root)


def _read_proven(items: Sequence[pb.Proven], sender: PeerId) -> tuple[Proven, ...]:
    require(len(items) <= MAX_PROVEN, sender, f"a join that speaks of {len(items)} links")
    require(all(len(item.peer) == PUBLIC_KEY_BYTES for item in items), sender, "a join that speaks of no member's link")
    require(len({item.peer for item in items}) == len(items), sender, "a join that speaks of one link twice")
    possible = all(0 < item.bytes_per_s <= MAX_BANDWIDTH_BYTES_PER_S for item in items)
    require(possible, sender, "a join that says of a link what no link can carry")
    return tuple(Proven(PeerId(item.peer), item.bytes_per_s) for item in items)


@dataclass(frozen=True, slots=True)
class SealedJoin:
    """A join with the signed envelope it came in."""

    peer: PeerId
    join: Join
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Closing:
    """A leader's call: this round begins, join me.

    Args:
        epoch, round_index: the round.
        stand_in: join beside your own group, with what a member that is gone would have brought; never in round 0, where nobody can.
        failures: how often a try of this round has failed under its sender; more than `MAX_FAILURES` are not counted.
    """

    epoch: Epoch
    round_index: int = 0
    stand_in: bool = False
    failures: int = 0

    def encode(self) -> bytes:
        """Wire bytes."""
        m = pb.Closing(epoch=self.epoch, round_index=self.round_index, stand_in=self.stand_in, failures=self.failures)
        return m.SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, data: bytes, sender: PeerId) -> Closing:
        """Read and check."""
        m = parse(pb.Closing, data, sender)
        require(m.epoch <= MAX_EPOCH, sender, f"an absurd epoch in its call: {m.epoch}")
        require(m.round_index < MAX_ROUNDS, sender, f"an absurd round in its call: {m.round_index}")
        require(m.round_index > 0 or not m.stand_in, sender, "a call to stand in where nobody can")
        require(m.failures <= MAX_FAILURES, sender, f"an absurd number of failures in its call: {m.failures}")
        return cls(Epoch(m.epoch), m.round_index, m.stand_in, m.failures)


@dataclass(frozen=True, slots=True)
class BlockTask:
    """One block and the member (index into the plan) that has to do with it."""

    block: BlockIndex
    member: int


@dataclass(frozen=True)
class Plan:
    """Who averages what with whom.

    Args:
        epoch, round_index: the round.
        attempt: 0 for the first exchange, then one more per repair.
        members: the joins, in member order; everything indexes into this.
        size_elems, block_elems, codec: shape of the vector and its encoding.
        reduce: block -> reducer.
        fetch: blocks that a member already holds, and who.
        fetch_hashes: hash of each block in `fetch`.
        absent: members that did not report on the attempt before and take no further part.
        counted: live members of the group as its leader counted them, those in the plan included; more than half of them must report.
        number: groups that its leader had gathered for this round before: a group that forms again is not taken for the one that broke up.
        weight_cap: nobody counts for more than so many times the median of what members brought; 0 for no limit.
        probation: newcomers: their work is audited and counts nothing.
    """

    epoch: Epoch
    attempt: Attempt
    members: tuple[SealedJoin, ...]
    size_elems: int
    block_elems: int
    codec: str
    reduce: tuple[BlockTask, ...]
    fetch: tuple[BlockTask, ...] = ()
    fetch_hashes: tuple[bytes, ...] = ()
    absent: frozenset[int] = field(default_factory=frozenset)
    round_index: int = 0
    counted: int = 0
    number: int = 0
    weight_cap: float = 0.0
    probation: frozenset[int] = field(default_factory=frozenset)

    @property
    def electorate(self) -> int:
        """How many members there are to agree, whatever the leader says: never fewer than are in the plan."""
        return max(self.counted, len(self.members))

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that name this plan."""
        return blake3(b"swarm.v1.plan" + self.encode()).digest()

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """What each member counts for; see `weight_cap`. What comes from an earlier round was limited there.

        The plain median over members, and not one by weight: fewer than half of them cannot move it out of the range of the others' claims.
        The lower one, so that of two members neither lifts the other's cap. Where G members claim the same and f of them lie, the liars'
        share is at most f c / (f c + G - f), c being the cap.
        """
        weights = tuple(0.0 if i in self.probation else member.join.weight for i, member in enumerate(self.members))
        brought = [weight for weight in weights if weight > 0]
        if not self.weight_cap or self.round_index or not brought:
            return weights
        most = self.weight_cap * median_low(brought)
        return tuple(min(weight, most) for weight in weights)

    def index_of(self, peer: PeerId) -> int | None:
        """Position of a member, None for a stranger."""
        return next((i for i, member in enumerate(self.members) if member.peer == peer), None)

    def _message(self) -> pb.Plan:
        return pb.Plan(
            epoch=self.epoch,
            attempt=self.attempt,
            sealed_joins=[member.sealed for member in self.members],
            size_elems=self.size_elems,
            block_elems=self.block_elems,
            codec=self.codec,
            reduce=[pb.BlockTask(block=t.block, member=t.member) for t in self.reduce],
            fetch=[pb.BlockTask(block=t.block, member=t.member) for t in self.fetch],
            block_hashes=self.fetch_hashes,
            absent=sorted(self.absent),
            round_index=self.round_index,
            counted=self.counted,
            number=self.number,
            weight_cap=self.weight_cap,
            probation=sorted(self.probation),
        )

    def encode(self) -> bytes:
        """Wire bytes."""
        return self._message().SerializeToString(deterministic=True)


def plan_from_message(m: pb.Plan, members: tuple[SealedJoin, ...], sender: PeerId) -> Plan:
    """Check a plan's numbers; `members` are its joins, opened by the caller (who can verify signatures).

    Raises:
        RemoteProtocolError: out of bounds or inconsistent.
    """
    require(0 < len(members) <= MAX_MEMBERS, sender, f"a plan of {len(members)} members")
    require(len({member.peer for member in members}) == len(members), sender, "a plan that names a member twice")
    require(0 < m.size_elems <= MAX_ELEMS and m.block_elems > 0, sender, "a plan with an absurd size")
    num_blocks = -(-m.size_elems // m.block_elems)
    require(num_blocks <= MAX_BLOCKS, sender, f"a plan of {num_blocks} blocks")
    require(len(m.block_hashes) == len(m.fetch), sender, "a plan whose fetch list and hashes differ in length")
    # Counted before they are read: 2 MiB hold a million tasks.
    require(len(m.reduce) + len(m.fetch) <= num_blocks and len(m.absent) <= len(members), sender, "a plan of too many tasks or absences")
    tasks = [*m.reduce, *m.fetch]
    inside = all(t.block < num_blocks and t.member < len(members) for t in tasks)
    require(inside, sender, "a plan that names a block or member beyond its own")
    require(len({t.block for t in tasks}) == len(tasks), sender, "a plan that assigns a block twice")
    require(m.weight_cap == 0 or 1 <= m.weight_cap <= MAX_WEIGHT, sender, f"a plan with an absurd limit of weights: {m.weight_cap}")
    probation = frozenset(m.probation)
    require(all(i < len(members) for i in probation), sender, "a plan with a newcomer that it does not have")
    require(not (m.round_index and probation), sender, "a plan of a later round with newcomers")
    absent = frozenset(m.absent)
    require(all(i < len(members) for i in absent), sender, "a plan that excludes a member it does not have")
    require(absent.isdisjoint(t.member for t in tasks), sender, "a plan that gives work to a member it excludes")
    return Plan(
        Epoch(m.epoch),
        Attempt(m.attempt),
        members,
        m.size_elems,
        m.block_elems,
        m.codec,
        tuple(BlockTask(BlockIndex(t.block), t.member) for t in m.reduce),
        tuple(BlockTask(BlockIndex(t.block), t.member) for t in m.fetch),
        require_hashes(m.block_hashes, sender, may_be_missing=False),
        absent,
        m.round_index,
        m.counted,
        m.number,
        m.weight_cap,
        probation,
    )


@dataclass(frozen=True, slots=True)
class Report:
    """What a member holds after an exchange: a hash for each block, b"" for a missing one."""

    plan_digest: bytes
    block_hashes: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Wire bytes."""
        return pb.Report(plan_digest=self.plan_digest, block_hashes=self.block_hashes).SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, data: bytes, sender: PeerId) -> Report:
        """Read and check."""
        m = parse(pb.Report, data, sender)
        require(len(m.plan_digest) == HASH_BYTES, sender, "a report on a plan digest that is not 32 bytes")
        return cls(m.plan_digest, require_hashes(m.block_hashes, sender, may_be_missing=True))


@dataclass(frozen=True, slots=True)
class Commit:
    """The result of a round.

    Args:
        first_plan_digest: names the round (the plan of attempt 0).
        epoch, round_index: which round.
        block_hashes: hash of every block of the averaged vector, contributors included.
        weight: samples that went in, each block counted by its share of the vector; above 0.
        state_hash: of the state that the result is a step from.
        certificate: in a verified round, sealed checks of members that hold it (`trust.certifying`).
    """

    first_plan_digest: bytes
    epoch: Epoch
    block_hashes: tuple[bytes, ...]
    weight: float
    state_hash: bytes
    round_index: int = 0
    certificate: tuple[bytes, ...] = ()

    def to_message(self) -> pb.Commit:
        """As protobuf."""
        return pb.Commit(
            first_plan_digest=self.first_plan_digest,
            epoch=self.epoch,
            block_hashes=self.block_hashes,
            weight=self.weight,
            state_hash=self.state_hash,
            round_index=self.round_index,
            certificate=self.certificate,
        )

    @classmethod
    def from_message(cls, m: pb.Commit, sender: PeerId) -> Commit:
        """Read and check."""
        require(len(m.first_plan_digest) == HASH_BYTES, sender, "a commit whose plan digest is not 32 bytes")
        require(len(m.state_hash) == HASH_BYTES, sender, "a commit whose state hash is not 32 bytes")
        require(0 < m.weight <= MAX_CARRIED_WEIGHT * MAX_MEMBERS, sender, f"an absurd weight in its commit: {m.weight}")
        require(m.round_index < MAX_ROUNDS, sender, f"an absurd round in its commit: {m.round_index}")
        require(len(m.certificate) <= MAX_MEMBERS, sender, f"a commit that {len(m.certificate)} members vouch for")
        hashes = require_hashes(m.block_hashes, sender, may_be_missing=False)
        return cls(m.first_plan_digest, Epoch(m.epoch), hashes, m.weight, m.state_hash, m.round_index, tuple(m.certificate))
