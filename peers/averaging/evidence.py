"""What a member keeps of a verified round: what everybody committed to, and the bytes that stand for it, as long as it can be audited.

Nothing here is believed before it is checked: parts are kept with the hash that their sender has signed. Statements name their round, so
none is too old to count: a round may take longer than a signed message is believed otherwise.

Statements are checked, and taken in, in the pool while the event loop reads here. Entries are added and never replaced, so looking one up
needs no lock; whoever goes through all of them goes through a copy (`commitments`, `statements`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from peers.averaging.context import MemberContext
from protocols.content import content_hash, input_hash
from protocols.errors import RemoteProtocolError, RoundError
from protocols.frames import BytesLike
from protocols.ids import BlockIndex, PeerId
from protocols.layout import Blocks
from protocols.messages import Join, Plan, parse, require, require_hashes
from protocols.proto.swarm.v1 import trust_pb2 as pb
from protocols.trust.coin import CoinSecret, coin_root
from protocols.trust.statements import COMMITMENT, MAX_STATEMENT_BYTES, REDUCTION, Commitment, Reduction, hashes_root
from protocols.trust.traced import UNTRACED, Traced


@dataclass(frozen=True, slots=True)
class Committed:
    """What a member has signed before the first block was sent.

    Args:
        sealed: the signed commitment.
        commitment: what it says.
        contents: content hash of each of its blocks; empty if it brings nothing.
    """

    sealed: bytes
    commitment: Commitment
    contents: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Brought:
    """What our contribution to a round is made of, beside the vector.

    Args:
        first_sample, samples, traced: of round 0.
        previous_plan_digest, certificate: of later rounds: where it comes from, and sealed checks of those who vouch for it.
        coin_seed: 32 random bytes of this try: our shares of the coin follow from them, and our join names these.
    """

    first_sample: int = 0
    samples: int = 0
    previous_plan_digest: bytes = b""
    certificate: tuple[bytes, ...] = ()
    coin_seed: bytes = b""
    traced: Traced = UNTRACED


def with_coin(context: MemberContext, join: Join, brought: Brought) -> tuple[Join, Brought]:
    """A join that names fresh shares of a coin, and what they follow from: for one try of one round, in runs that verify."""
    if context.rules.trust is None:
        return join, brought
    secret = CoinSecret(context.me, context.random_bytes(32))
    return replace(join, coin_root=secret.root), replace(brought, coin_seed=secret.seed)


Vouched = Callable[[PeerId, Commitment, Sequence[bytes]], None]
"""Checks that a certificate vouches for what a member brings to a later round; raises RemoteProtocolError."""


class Evidence:
    """Of one round.

    Args:
        context: who we are.
        plan: attempt 0.
        own_D: what we bring.
        brought: where it comes from.
        vouched: checks others' inputs in later rounds.
        breach: called with a member that sent us what no honest member sends.
    """

    def __init__(
        self,
        context: MemberContext,
        plan: Plan,
        own_D: torch.Tensor,
        brought: Brought,
        vouched: Vouched,
        breach: Callable[[PeerId], None],
    ) -> None:
        self.breach = breach
        self.forgotten = False
        self._context = context
        self._brought = brought
        self._vouched = vouched
        self.plan = plan
        self.digest = plan.digest
        self.blocks: Blocks = context.blocks_of(plan.size_elems)
        me = plan.index_of(context.me)
        if me is None:
            raise ValueError("evidence of a round that we are not in")
        self.me = me
        self.secret = CoinSecret(context.me, brought.coin_seed)
        self.parts: dict[tuple[int, BlockIndex], BytesLike] = {}
        self.committed: dict[int, Committed] = {}
        self.certificates: dict[int, tuple[bytes, ...]] = {}
        self.reductions: dict[int, dict[int, tuple[bytes, Reduction]]] = {}
        self._reducers: dict[tuple[int, BlockIndex], int] = {}
        self.note_attempt(plan)
        self.coin = b""
        self._own_D = own_D

    def note_attempt(self, plan: Plan) -> None:
        """Who reduces what in an attempt that we take part in."""
        self._reducers.update({(plan.attempt, task.block): task.member for task in plan.reduce})

    async def commit(self) -> None:
        """Encode and hash what we bring, and sign for it."""
        # of those that bring one result the next one sends it when the first is gone: all of them commit to it
        brings = self.plan.weights[self.me] > 0 or self._brought.samples > 0
        contents = await self._context.heavy(self._encode_all) if brings else ()
        self._own_D = torch.empty(0)
        commitment = Commitment(
            self.digest,
            self.plan.epoch,
            self.plan.round_index,
            hashes_root(contents),
            self.secret.commitments(),
            self._brought.first_sample,
            self._brought.samples,
            self._brought.previous_plan_digest,
            self._traced(),
        )
        if commitment.traced.inner_end:
            self._context.inner.note_commitment(commitment.traced.inner_end, self.digest)
        sealed = self._context.notary.seal(COMMITMENT, commitment.encode())
        self.committed[self.me] = Committed(sealed, commitment, contents)
        self.certificates[self.me] = self._brought.certificate

    def _traced(self) -> Traced:
        """With the round in which we committed to the inner state that we begin with.

        Raises:
            RoundError: there is none. Whoever was left out of a round begins anew, so this cannot be; nobody would believe us.
        """
        traced = self._brought.traced
        if not traced.inner_start:
            return traced
        plan_digest = self._context.inner.plan_of(traced.inner_start)
        if not plan_digest:
            raise RoundError("we begin with an inner state that we have never committed to")
        return replace(traced, inner_start_plan=plan_digest)

    def _encode_all(self) -> tuple[bytes, ...]:
        codec, contents = self._context.rules.part_codec(self.plan.round_index), []
        for block in map(BlockIndex, range(self.blocks.count)):
            start, stop = self.blocks.span(block)
            data = codec.encode(self._own_D[start:stop])
            self.parts[self.me, block] = data
            contents.append(content_hash(data))
        return tuple(contents)

    def opening(self, to: PeerId) -> bytes:
        """What a reducer gets of our commitment before our blocks."""
        own = self.committed[self.me]
        said = self._context.conduct.commitment(own.commitment, to)
        sealed = own.sealed if said is own.commitment else self._context.notary.seal(COMMITMENT, said.encode())
        m = pb.Committed(
            sealed_commitment=self._context.conduct.sealed(COMMITMENT, sealed),
            block_hashes=own.contents,
            certificate=self._brought.certificate,
        )
        return m.SerializeToString()

    # What others say

    def note_committed(self, member: int, data: bytes) -> None:
        """Take in a member's commitment. Runs in the pool.

        Raises:
            RemoteProtocolError: it is not its commitment to this round, or another one than before.
        """
        peer = self.plan.members[member].peer
        committed = read_committed(self._context, self.plan, peer, data)
        if self.plan.round_index and committed.contents:
            join = self.plan.members[member].join
            named = input_hash(committed.contents, committed.commitment.previous_plan_digest)
            require(named == join.input_hash, peer, "it brings something else than it joined with")
            certificate = tuple(parse(pb.Committed, data, peer).certificate)
            self._vouched(peer, committed.commitment, certificate)
            self.certificates[member] = certificate
        known = self.committed.setdefault(member, committed)
        require(known.commitment == committed.commitment, peer, "two different commitments")

    def is_vouched(self, member: int) -> bool:
        """Whether what a member brings may be in the result, as far as we have seen: in later rounds it takes a certificate."""
        return not self.plan.round_index or member in self.certificates

    def content_of(self, member: int, block: BlockIndex) -> bytes:
        """Content hash that a member has committed to.

        Raises:
            RemoteProtocolError: it has committed to nothing.
        """
        committed = self.committed.get(member)
        if committed is None or not committed.contents:
            raise RemoteProtocolError(self.plan.members[member].peer, "blocks that it has not committed to")
        return committed.contents[block]

    def note_part(self, member: int, block: BlockIndex, data: BytesLike, content: bytes) -> None:
        """Take in a part that has come; its hash is known.

        Raises:
            RemoteProtocolError: it is another one than its sender committed to.
        """
        right = content == self.content_of(member, block)
        require(right, self.plan.members[member].peer, f"block {block} is not the one that it committed to")
        self.parts[member, block] = data

    def part(self, member: int, block: BlockIndex) -> BytesLike:
        """An encoded block that we hold.

        Raises:
            RoundError: we have let go of it: the round is too long ago.
        """
        data = self.parts.get((member, block))
        if data is None:
            raise RoundError("what that round was made of is no longer held")
        return data

    def note_reduction(self, member: int, sealed: bytes) -> Reduction:
        """Take in a reducer's statement.

        Raises:
            RemoteProtocolError: it is none of this round, or of blocks that were somebody else's to reduce.
        """
        peer = self.plan.members[member].peer
        reduction = read_reduction(self._context, self.digest, peer, sealed)
        require(self.was_to_make(member, reduction), peer, "a reduction of blocks that it was not to reduce")
        self.reductions.setdefault(member, {}).setdefault(reduction.attempt, (sealed, reduction))
        return reduction

    def was_to_make(self, member: int, reduction: Reduction) -> bool:
        """Whether the blocks of a reduction were a member's to reduce: nobody can take the blame for what another has reduced."""
        return all(self._reducers.get((reduction.attempt, block)) == member for block in reduction.blocks)

    @property
    def commitments(self) -> dict[int, Committed]:
        """What members have signed so far, by index."""
        return self.committed.copy()

    @property
    def statements(self) -> tuple[tuple[int, bytes, Reduction], ...]:
        """What reducers have signed so far: (member, sealed, what it says)."""
        return tuple((member, *said) for member, attempts in self.reductions.copy().items() for said in attempts.copy().values())

    def stated_radii(self) -> dict[BlockIndex, tuple[int, float]]:
        """Of each block that somebody has signed for, of its last attempt: who reduced it, and the radius that it stated."""
        in_order = sorted(self.statements, key=lambda statement: (statement[2].attempt, statement[0]))
        return {
            block: (member, radius)
            for member, _, reduction in in_order
            for block, radius in zip(reduction.blocks, reduction.radii, strict=True)
        }

    def forget(self) -> None:
        """Let go of all blocks."""
        self.forgotten = True
        self.parts.clear()
        self._own_D = torch.empty(0)


def read_committed(context: MemberContext, plan: Plan, peer: PeerId, data: bytes) -> Committed:
    """Read a member's commitment to a round with its hashes.

    Raises:
        RemoteProtocolError: not signed by it, of another round, or hashes that it did not sign.
    """
    require(len(data) <= MAX_STATEMENT_BYTES, peer, f"a commitment of {len(data)} bytes")
    m = parse(pb.Committed, data, peer)
    signer, payload = context.notary.open_old(COMMITMENT, m.sealed_commitment)
    require(signer == peer, peer, "a commitment that somebody else has signed")
    commitment = Commitment.decode(payload, peer)
    named = (commitment.first_plan_digest, commitment.epoch, commitment.round_index)
    require(named == (plan.digest, plan.epoch, plan.round_index), peer, "a commitment to another round")
    member = plan.index_of(peer)
    joined = member is not None and coin_root(commitment.coin) == plan.members[member].join.coin_root
    require(joined, peer, "shares of the coin that it did not join with")
    contents = require_hashes(m.block_hashes, peer, may_be_missing=False)
    count = context.blocks_of(plan.size_elems).count
    require(len(contents) in (0, count) and hashes_root(contents) == commitment.hashes_root, peer, "hashes that it has not committed to")
    return Committed(m.sealed_commitment, commitment, contents)


def read_reduction(context: MemberContext, first_plan_digest: bytes, peer: PeerId, sealed: bytes) -> Reduction:
    """Read a reducer's statement.

    Raises:
        RemoteProtocolError: not signed by it, or of another round.
    """
    require(len(sealed) <= MAX_STATEMENT_BYTES, peer, f"a reduction of {len(sealed)} bytes")
    signer, payload = context.notary.open_old(REDUCTION, sealed)
    require(signer == peer, peer, "a reduction that somebody else has signed")
    reduction = Reduction.decode(payload, peer)
    require(reduction.first_plan_digest == first_plan_digest, peer, "a reduction of another round")
    return reduction
