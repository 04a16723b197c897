"""Statements of verified rounds, and bans."""

from __future__ import annotations

import math
from functools import lru_cache

from peers.averaging.evidence import Committed, read_committed
from protocols.errors import RemoteProtocolError, RemoteRefusal
from protocols.ids import BlockIndex, Epoch, PeerId
from protocols.messages import Plan
from protocols.messages_blocks import PartsRequest
from protocols.proto.swarm.v1 import trust_pb2 as pb
from protocols.trust.ledger import Ban, ban_by_judgements, ban_by_statements, check_ban, read_plan
from protocols.trust.offences import Offence
from protocols.trust.statements import COMMITMENT, JUDGEMENT, Charge, Check, Commitment, Reduction, hashes_root
from scripts.fuzzing.formats import PROTOBUF
from scripts.fuzzing.target import SENDER, Target, message
from scripts.fuzzing.targets.rounds import COIN, NOTARIES, context, plan_of_three

_DIGEST, _HASHES = b"d" * 32, (b"a" * 32, b"b" * 32, b"c" * 32, b"e" * 32)
_FIRST = Commitment(_DIGEST, Epoch(5), 0, b"r" * 32, COIN, 7, 64)
_LATER = Commitment(_DIGEST, Epoch(5), 1, b"r" * 32, COIN, previous_plan_digest=b"p" * 32)
_REDUCTION = Reduction(_DIGEST, 1, (BlockIndex(0), BlockIndex(3)), _HASHES[:2], (2.5, math.inf))
_CHECK = Check(_DIGEST, Epoch(5), 0, b"n" * 32, 3, b"r" * 32, 12.5, (0.5, -1.0), (2.0, 0.0), (BlockIndex(1),))
_CHARGE = Charge(_DIGEST, Epoch(5), SENDER, Offence.CONTRIBUTION, BlockIndex(3))


@lru_cache(maxsize=1)
def _commitment() -> Commitment:
    return Commitment(plan_of_three().digest, Epoch(5), 0, hashes_root(_HASHES), COIN, 0, 64)


def _committed_seeds() -> list[bytes]:
    sealed = NOTARIES[0].seal(COMMITMENT, _commitment().encode())
    return [pb.Committed(sealed_commitment=sealed, block_hashes=_HASHES, certificate=[b"x" * 40]).SerializeToString()]


def _read_committed(data: bytes) -> Committed:
    return read_committed(context(), plan_of_three(), NOTARIES[0].peer, data)


def _judgements(accused: PeerId) -> list[bytes]:
    charge = Charge(plan_of_three().digest, Epoch(5), accused, Offence.REDUCTION)
    return [notary.seal(JUDGEMENT, charge.encode_judgement()) for notary in NOTARIES[:2]]


def _ban_seeds() -> list[bytes]:
    accused = NOTARIES[2]
    one, other = (Commitment(_DIGEST, Epoch(5), 0, root, COIN, 0, 64) for root in (b"r" * 32, b"s" * 32))
    statements = [(COMMITMENT, accused.seal(COMMITMENT, said.encode())) for said in (one, other)]
    return [
        ban_by_judgements(accused.peer, Offence.REDUCTION, plan_of_three(), _judgements(accused.peer)),
        ban_by_statements(accused.peer, Offence.EQUIVOCATION, statements),
    ]


def _read_ban(data: bytes) -> Ban:
    return check_ban(data, NOTARIES[0].open, Epoch(5), lambda *_: 3, SENDER)


def _read_plan_of_ban(data: bytes) -> Plan:
    return read_plan(data, NOTARIES[0].open, SENDER)


TRUST = [
    message("commitment", _FIRST, _LATER),
    message("reduction", _REDUCTION),
    message("check", _CHECK),
    message("parts-request", PartsRequest(_DIGEST, 3, (BlockIndex(0), BlockIndex(7)))),
    Target(
        "accusation",
        lambda data: Charge.decode_accusation(data, SENDER),
        lambda: [_CHARGE.encode_accusation()],
        encode=Charge.encode_accusation,
        form=PROTOBUF,
    ),
    Target("judgement", lambda data: Charge.decode_judgement(data, SENDER), lambda: [_CHARGE.encode_judgement()], form=PROTOBUF),
    Target("committed", _read_committed, _committed_seeds, form=PROTOBUF),
    Target("ban", _read_ban, _ban_seeds, (RemoteProtocolError, RemoteRefusal), form=PROTOBUF),
    Target("plan-of-ban", _read_plan_of_ban, lambda: [plan_of_three().encode()], form=PROTOBUF),
]
