"""Members with keys, plans whose joins they have signed, and statements of theirs, for tests of verification and bans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from peers.testing import KeyNotary, make_key
from protocols.ids import Attempt, BlockIndex, Epoch, PeerId
from protocols.messages import BlockTask, Join, Plan, SealedJoin
from protocols.trust.coin import CoinSecret
from protocols.trust.offences import Offence
from protocols.trust.statements import COMMITMENT, JUDGEMENT, Charge, Commitment

STATE = b"s" * 32
EPOCH = Epoch(5)
NOTARIES = [KeyNotary(make_key(number)) for number in range(12)]
PEERS = [notary.peer for notary in NOTARIES]


def opener(kind: str, sealed: bytes) -> tuple[PeerId, bytes]:
    """Opens what any of them has signed."""
    return NOTARIES[0].open_old(kind, sealed)


def secret_of(number: int) -> CoinSecret:
    """A member's shares of every coin here."""
    return CoinSecret(PEERS[number], bytes([number + 1]) * 32)


def signed_join(number: int, epoch: Epoch = EPOCH, weight: float = 1.0, round_index: int = 0, state: bytes = STATE) -> SealedJoin:
    """A join that its member has signed."""
    join = Join(epoch, state, weight, 1000, round_index, b"i" * 32 if round_index else b"", coin_root=secret_of(number).root)
    return SealedJoin(PEERS[number], join, NOTARIES[number].seal("join", join.encode()))


def signed_plan(members: Iterable[int], *, counted: int = 0, blocks: int = 4, epoch: Epoch = EPOCH, **changes: object) -> Plan:
    """A plan of these members; block i is reduced by the i-th of them, and so on around."""
    joins = tuple(signed_join(number, epoch) for number in members)
    reduce = tuple(BlockTask(BlockIndex(block), block % len(joins)) for block in range(blocks))
    plan = Plan(epoch, Attempt(0), joins, 10 * blocks, 10, "fp32", reduce, counted=counted or len(joins))
    return replace(plan, **changes)  # type: ignore[arg-type]


def commitment_to(plan: Plan, number: int, secret: CoinSecret | None = None, **changes: object) -> Commitment:
    """What a member commits to."""
    coin = (secret or secret_of(number)).commitments()
    said = Commitment(plan.digest, plan.epoch, plan.round_index, b"h" * 32, coin, 3, 8)
    return replace(said, **changes)  # type: ignore[arg-type]


def sealed_commitment(plan: Plan, number: int) -> bytes:
    """As `commitment_to`, signed."""
    return NOTARIES[number].seal(COMMITMENT, commitment_to(plan, number).encode())


def judgements_of(plan: Plan, accused: int, jurors: Sequence[int], offence: Offence = Offence.REDUCTION) -> list[bytes]:
    """Signed judgements of one member."""
    charge = Charge(plan.digest, plan.epoch, PEERS[accused], offence)
    return [NOTARIES[juror].seal(JUDGEMENT, charge.encode_judgement()) for juror in jurors]
