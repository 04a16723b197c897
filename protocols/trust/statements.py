"""What members sign and say while they verify a round, as frozen values with strict reading.

Wire form: `proto/swarm/v1/trust.proto`. Every `decode` raises RemoteProtocolError that names the sender.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from protocols.errors import RemoteProtocolError
from protocols.frames import MAX_MEMBERS
from protocols.ids import MAX_EPOCH, PUBLIC_KEY_BYTES, BlockIndex, Epoch, PeerId
from protocols.messages import HASH_BYTES, MAX_BLOCKS, MAX_CARRIED_WEIGHT, MAX_ROUNDS, MAX_WEIGHT, parse, require, require_hashes
from protocols.proto.swarm.v1 import trust_pb2 as pb
from protocols.trust.offences import Offence
from protocols.trust.traced import UNTRACED, Traced

COIN_TRIES = 8
"""A coin is tried again without whoever keeps back a share; every member commits to so many shares beforehand."""

MAX_STATEMENT_BYTES = 4 * 2**20
COMMITMENT, REDUCTION, CHECK, ACCUSATION, JUDGEMENT = "commitment", "reduction", "check", "accusation", "judgement"
"""Kinds of sealed statements."""

_ROOT_DOMAIN = b"swarm.v1.block-hashes"
_FIRST_BLOCK = BlockIndex(0)


def hashes_root(contents: Sequence[bytes]) -> bytes:
    """32 bytes that name a list of content hashes; empty for an empty list."""
    return blake3(_ROOT_DOMAIN + b"".join(contents)).digest() if contents else b""


def _require_round(m: pb.Commitment | pb.Check, sender: PeerId) -> None:
    require(len(m.first_plan_digest) == HASH_BYTES, sender, "a statement whose plan digest is not 32 bytes")
    require(m.epoch <= MAX_EPOCH, sender, f"a statement of an absurd epoch: {m.epoch}")
    require(m.round_index < MAX_ROUNDS, sender, f"a statement of an absurd round: {m.round_index}")


@dataclass(frozen=True, slots=True)
class Commitment:
    """What a member brings to a round, in hashes (papers.md B.3, step 2).

    Args:
        first_plan_digest: names the round.
        epoch, round_index: which.
        hashes_root: `hashes_root` of its blocks' content hashes; empty if it brings nothing.
        coin: hashes of its shares, one a try.
        first_sample, samples: which of its samples of the epoch its contribution is the mean gradient over; none in later rounds.
        previous_plan_digest: of the round whose result it brings; empty in round 0.
        traced: how its contribution came about, beyond its samples; in round 0.
    """

    first_plan_digest: bytes
    epoch: Epoch
    round_index: int
    hashes_root: bytes
    coin: tuple[bytes, ...]
    first_sample: int = 0
    samples: int = 0
    previous_plan_digest: bytes = b""
    traced: Traced = UNTRACED

    def encode(self) -> bytes:
        """Wire bytes, to be sealed."""
        return pb.Commitment(
            first_plan_digest=self.first_plan_digest,
            epoch=self.epoch,
            round_index=self.round_index,
            hashes_root=self.hashes_root,
            coin=self.coin,
            first_sample=self.first_sample,
            samples=self.samples,
            previous_plan_digest=self.previous_plan_digest,
            late_samples=self.traced.late_samples,
            inner_start=self.traced.inner_start,
            inner_start_epoch=self.traced.inner_start_epoch,
            inner_end=self.traced.inner_end,
            cuts=self.traced.cuts,
            inner_start_plan=self.traced.inner_start_plan,
        ).SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, data: bytes, sender: PeerId) -> Commitment:
        """Read and check."""
        m = parse(pb.Commitment, data, sender)
        _require_round(m, sender)
        require(len(m.hashes_root) in (0, HASH_BYTES), sender, "a commitment to no list of hashes")
        right = len(m.coin) == COIN_TRIES and all(len(value) == HASH_BYTES for value in m.coin)
        require(right, sender, f"a commitment to {len(m.coin)} shares of the coin")
        require(
            m.samples <= MAX_WEIGHT and m.first_sample <= 2**40, sender, f"a commitment to absurd samples: {m.first_sample}, {m.samples}"
        )
        later = HASH_BYTES if m.round_index else 0
        require(len(m.previous_plan_digest) == later, sender, "a commitment whose origin does not fit its round")
        traced = Traced(m.late_samples, m.inner_start, Epoch(m.inner_start_epoch), m.inner_end, tuple(m.cuts), m.inner_start_plan)
        require(traced == UNTRACED or not m.round_index, sender, "a commitment of a later round with an inner state")
        traced.check(Epoch(m.epoch), m.samples, sender)
        return cls(
            m.first_plan_digest,
            Epoch(m.epoch),
            m.round_index,
            m.hashes_root,
            tuple(m.coin),
            m.first_sample,
            m.samples,
            m.previous_plan_digest,
            traced,
        )


def breaks_chain(one: Commitment, other: Commitment) -> bool:
    """Whether one begins with an inner state that it says the other ended with, and that did not: no honest member signs both.

    Epochs do not count: a run that goes back to an older state has the same ones again.
    """
    return _begins_with_another(one, other) or _begins_with_another(other, one)


def _begins_with_another(later: Commitment, earlier: Commitment) -> bool:
    named = bool(later.traced.inner_start) and later.traced.inner_start_plan == earlier.first_plan_digest
    return named and later.traced.inner_start != earlier.traced.inner_end


def begins_elsewhere(said: Commitment, known: Sequence[Commitment]) -> bool:
    """Whether a member says that it begins with the end of a round in which nobody saw it, though it was seen elsewhere then, or later.

    That is no proof for others: a reason for whoever saw it to find it guilty.

    Args:
        said: its commitment.
        known: those that we have seen of it before, in the order in which they came, of epochs that do not fall.
    """
    traced, last = said.traced, known[-1] if known else None
    if last is None or not traced.inner_start or any(each.first_plan_digest == traced.inner_start_plan for each in known):
        return False
    return traced.inner_start_epoch <= last.epoch < said.epoch and last.traced.inner_end != traced.inner_start


@dataclass(frozen=True, slots=True)
class Reduction:
    """The blocks that a reducer made in one attempt (papers.md B.3, step 4).

    Args:
        first_plan_digest, attempt: when.
        blocks: which, ascending.
        block_hashes: of each, contributors included (`content.block_hash`).
        radii: of clipping in each; infinite where nothing was clipped.
    """

    first_plan_digest: bytes
    attempt: int
    blocks: tuple[BlockIndex, ...]
    block_hashes: tuple[bytes, ...]
    radii: tuple[float, ...]

    def encode(self) -> bytes:
        """Wire bytes, to be sealed."""
        return pb.Reduction(
            first_plan_digest=self.first_plan_digest,
            attempt=self.attempt,
            blocks=self.blocks,
            block_hashes=self.block_hashes,
            radii=self.radii,
        ).SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, data: bytes, sender: PeerId) -> Reduction:
        """Read and check."""
        m = parse(pb.Reduction, data, sender)
        require(len(m.first_plan_digest) == HASH_BYTES, sender, "a reduction whose plan digest is not 32 bytes")
        count = len(m.blocks)
        require(count <= MAX_BLOCKS and count == len(m.block_hashes) == len(m.radii), sender, "a reduction with lists of other lengths")
        require(all(a < b for a, b in zip(m.blocks, m.blocks[1:], strict=False)), sender, "a reduction with blocks out of order")
        require(all(radius > 0 for radius in m.radii), sender, "a reduction with a radius that is not positive")
        hashes = require_hashes(m.block_hashes, sender, may_be_missing=False)
        return cls(m.first_plan_digest, m.attempt, tuple(BlockIndex(b) for b in m.blocks), hashes, tuple(m.radii))


@dataclass(frozen=True, slots=True)
class Check:
    """What a member says of its own part and of the result (papers.md B.3, step 6), and its word for the result.

    Args:
        first_plan_digest, epoch, round_index: which round.
        coin: of the round: the figures are in its direction.
        electorate: members who were to agree (`Plan.electorate`).
        result_hash: `input_hash` of the round's result: what its members bring to the next round.
        weight: of the result.
        projections: of its part on the direction, one a block; 0 where its part is not in the result.
        distances: of its part from the result, one a block; as projections.
        doubted: blocks of the result that are far from its part (`checks.doubts`), ascending.
    """

    first_plan_digest: bytes
    epoch: Epoch
    round_index: int
    coin: bytes
    electorate: int
    result_hash: bytes
    weight: float
    projections: tuple[float, ...]
    distances: tuple[float, ...]
    doubted: tuple[BlockIndex, ...] = ()

    def encode(self) -> bytes:
        """Wire bytes, to be sealed."""
        return pb.Check(
            first_plan_digest=self.first_plan_digest,
            epoch=self.epoch,
            round_index=self.round_index,
            coin=self.coin,
            electorate=self.electorate,
            result_hash=self.result_hash,
            weight=self.weight,
            projections=self.projections,
            distances=self.distances,
            doubted=self.doubted,
        ).SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, data: bytes, sender: PeerId) -> Check:
        """Read and check."""
        m = parse(pb.Check, data, sender)
        _require_round(m, sender)
        require(len(m.coin) == HASH_BYTES and len(m.result_hash) == HASH_BYTES, sender, "a check whose hashes are not 32 bytes")
        require(0 < m.electorate <= 2 * MAX_MEMBERS, sender, f"a check of an absurd electorate: {m.electorate}")
        require(len(m.projections) == len(m.distances) <= MAX_BLOCKS, sender, "a check with lists of other lengths")
        ascending = all(a < b for a, b in zip(m.doubted, m.doubted[1:], strict=False))
        require(ascending and len(m.doubted) <= len(m.distances), sender, "a check that doubts blocks out of order")
        finite = all(math.isfinite(value) for value in (*m.projections, *m.distances))
        require(finite and all(value >= 0 for value in m.distances), sender, "a check with absurd figures")
        fair = math.isfinite(m.weight) and 0 < m.weight <= MAX_CARRIED_WEIGHT * MAX_MEMBERS
        require(fair, sender, f"an absurd weight in its check: {m.weight}")
        return cls(
            m.first_plan_digest,
            Epoch(m.epoch),
            m.round_index,
            m.coin,
            m.electorate,
            m.result_hash,
            m.weight,
            tuple(m.projections),
            tuple(m.distances),
            tuple(BlockIndex(b) for b in m.doubted),
        )


@dataclass(frozen=True, slots=True)
class Charge:
    """A word against a member of a round's plan: an accusation, which asks others to look, or a juror's judgement after it has looked.

    Args:
        first_plan_digest, epoch: the round.
        accused: whom.
        offence: of what.
        block: where to look, in an accusation.
    """

    first_plan_digest: bytes
    epoch: Epoch
    accused: PeerId
    offence: Offence
    block: BlockIndex = _FIRST_BLOCK

    def encode_accusation(self) -> bytes:
        """Wire bytes of an accusation, to be sealed."""
        return pb.Accusation(
            first_plan_digest=self.first_plan_digest,
            epoch=self.epoch,
            accused=self.accused.public_key,
            offence=self.offence.value,
            block=self.block,
        ).SerializeToString(deterministic=True)

    def encode_judgement(self) -> bytes:
        """Wire bytes of a judgement, to be sealed."""
        return pb.Judgement(
            first_plan_digest=self.first_plan_digest, epoch=self.epoch, accused=self.accused.public_key, offence=self.offence.value
        ).SerializeToString(deterministic=True)

    @classmethod
    def decode_accusation(cls, data: bytes, sender: PeerId) -> Charge:
        """Read and check."""
        m = parse(pb.Accusation, data, sender)
        require(m.block < MAX_BLOCKS, sender, f"an accusation about block {m.block}")
        return cls._checked(m, BlockIndex(m.block), sender)

    @classmethod
    def decode_judgement(cls, data: bytes, sender: PeerId) -> Charge:
        """Read and check."""
        return cls._checked(parse(pb.Judgement, data, sender), BlockIndex(0), sender)

    @classmethod
    def _checked(cls, m: pb.Accusation | pb.Judgement, block: BlockIndex, sender: PeerId) -> Charge:
        require(len(m.first_plan_digest) == HASH_BYTES, sender, "a charge whose plan digest is not 32 bytes")
        require(len(m.accused) == PUBLIC_KEY_BYTES, sender, "a charge against no member")
        require(m.epoch <= MAX_EPOCH, sender, f"a charge of an absurd epoch: {m.epoch}")
        return cls(m.first_plan_digest, Epoch(m.epoch), PeerId(m.accused), read_offence(m.offence, sender), block)


def read_offence(name: str, sender: PeerId | None) -> Offence:
    """Which offence that is.

    Raises:
        RemoteProtocolError: none that we know.
    """
    try:
        return Offence(name)
    except ValueError as error:
        raise RemoteProtocolError(sender, f"an offence that nobody knows: {name[:40]!r}") from error
