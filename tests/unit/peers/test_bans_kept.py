"""Bans on disk, at the directory and at the admission desk."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from peers.averaging.unbanned import Unbanned
from peers.ban_file import load_ledger, save_proofs
from peers.interfaces import Endpoint
from peers.testing import FixedDirectory
from protocols.admission import AdmissionDesk, Admitted, Refusal, make_request
from protocols.errors import StateDirError
from protocols.ids import BlockIndex, Epoch, PeerId
from protocols.invite import seal_invite
from protocols.trust.ledger import Ban, Ledger, ban_by_statements
from protocols.trust.offences import Offence
from protocols.trust.statements import COIN_TRIES, COMMITMENT, REDUCTION, Commitment, Reduction
from tests.helpers.run_world import NOW, FixedClock, RunWorld, identity, tls_key
from tests.helpers.trust_values import PEERS

WORLD, OTHER = RunWorld(), RunWorld(number=2)
COMMITTED = Commitment(b"p" * 32, Epoch(3), 0, b"h" * 32, (b"c" * 32,) * COIN_TRIES, 0, 8)


def ban(number: int, world: RunWorld = WORLD) -> Ban:
    """Of a member that has committed to two things."""
    sealer = world.sealer(number)
    payloads = [replace(COMMITTED, samples=samples).encode() for samples in (8, 9)]
    sealed = [(COMMITMENT, sealer.seal(COMMITMENT, payload, NOW, 10.0)) for payload in payloads]
    peer = identity(number).peer
    return Ban(peer, Offence.EQUIVOCATION, Epoch(3), ban_by_statements(peer, Offence.EQUIVOCATION, sealed))


def remembered(state_dir: Path) -> tuple[PeerId, ...]:
    ledger = load_ledger(state_dir, WORLD.run, WORLD.authority_key, FixedClock())
    return tuple(found.accused for found in ledger.bans)


def test_bans_outlive_the_process(tmp_path: Path) -> None:
    assert remembered(tmp_path) == ()
    save_proofs(tmp_path, [ban(1), ban(2)])
    assert set(remembered(tmp_path)) == {identity(1).peer, identity(2).peer}
    save_proofs(tmp_path, [ban(1)])
    assert remembered(tmp_path) == (identity(1).peer,)


def test_a_ban_keeps_its_epoch(tmp_path: Path) -> None:
    """That of reductions is not in their proof, and whoever reads a file has seen no epoch yet."""
    sealer, peer = WORLD.sealer(3), identity(3).peer
    reductions = [Reduction(b"p" * 32, 0, (BlockIndex(0),), (b"h" * 32,), (radius,)).encode() for radius in (1.0, 2.0)]
    proof = ban_by_statements(peer, Offence.EQUIVOCATION, [(REDUCTION, sealer.seal(REDUCTION, said, NOW, 10.0)) for said in reductions])
    known = {ban(1), Ban(peer, Offence.EQUIVOCATION, Epoch(57), proof)}
    save_proofs(tmp_path, known)
    assert set(load_ledger(tmp_path, WORLD.run, WORLD.authority_key, FixedClock()).bans) == known


def test_what_proves_nothing_is_forgotten_and_hides_no_other(tmp_path: Path) -> None:
    damaged = replace(ban(1), proof=ban(1).proof[:-1] + b"x")
    save_proofs(tmp_path, [damaged, replace(ban(1), proof=b""), ban(3, OTHER), ban(2)])
    assert remembered(tmp_path) == (identity(2).peer,)


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\xff\x01", b"\x0a", b"\x0a\x00"])  # the last: a ban without its epoch
def test_a_damaged_file_says_what_to_do(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bans").write_bytes(data)
    with pytest.raises(StateDirError, match="remove it"):
        remembered(tmp_path)


def test_an_unwritable_directory_is_the_users(tmp_path: Path) -> None:
    with pytest.raises(StateDirError):
        save_proofs(tmp_path / "nowhere", [ban(1)])


def test_a_directory_leaves_out_who_is_banned_from_now_on() -> None:
    ledger = Ledger()
    inner = FixedDirectory(PEERS[0], {peer: Endpoint(peer, str(peer)) for peer in PEERS[:5]}, frozenset({PEERS[4]}))
    directory = Unbanned(inner, ledger)
    assert directory.placed(Epoch(0)) == (frozenset(PEERS[1:4]), frozenset(PEERS[4:5]))
    for number in (1, 4):
        ledger.add(Ban(PEERS[number], Offence.CHECK, Epoch(3), b"proof"))
    assert directory.placed(Epoch(4)) == (frozenset(PEERS[1:4]), frozenset(PEERS[4:5]))  # until everybody knows
    assert directory.placed(Epoch(5)) == (frozenset(PEERS[2:4]), frozenset())
    assert directory.live(Epoch(0)) == frozenset(PEERS[2:4])
    assert directory.endpoint(PEERS[1]) is None
    assert directory.endpoint(PEERS[2]) == Endpoint(PEERS[2], str(PEERS[2]))
    directory.suspect(PEERS[2])
    asyncio.run(directory.refresh())
    assert inner.suspects == {PEERS[2]}
    assert directory.live(Epoch(0)) == frozenset({PEERS[3]})


# The admission desk


def asked(desk: AdmissionDesk, number: int, **invite: object) -> Admitted | Refusal:
    sealed = seal_invite(WORLD.invite(**invite), WORLD.authority)
    key = tls_key(number).claimed_by(identity(number), WORLD.run)
    return desk.handle(make_request(identity(number), key, sealed, NOW), NOW)


def desk() -> AdmissionDesk:
    return AdmissionDesk(WORLD.run, WORLD.authority_key, WORLD.run_ca, WORLD.authority)


def code(answer: Admitted | Refusal) -> str:
    return answer.code if isinstance(answer, Refusal) else "admitted"


def test_a_banned_key_is_let_in_no_more_and_its_invite_lets_in_nobody_new() -> None:
    one = desk()
    assert [code(asked(one, number, max_uses=3)) for number in (1, 2)] == ["admitted", "admitted"]
    one.ban(identity(1).peer)
    assert code(asked(one, 1, max_uses=3)) == "banned"
    assert code(asked(one, 3, max_uses=3)) == "invite-used-up"
    assert code(asked(one, 2, max_uses=3)) == "admitted"  # it has done nothing
    again = desk()
    again.import_ledger(one.export_ledger())
    again.ban(identity(1).peer)
    assert code(asked(again, 3, max_uses=3)) == "invite-used-up"
