"""Bans on disk, at the directory and at the admission desk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from peers.averaging.unbanned import Unbanned
from peers.ban_file import load_proofs, save_proofs
from peers.interfaces import Endpoint
from peers.testing import FixedDirectory
from protocols.admission import AdmissionDesk, Admitted, Refusal, make_request
from protocols.errors import StateDirError
from protocols.ids import Epoch
from protocols.trust.ledger import Ban, Ledger
from protocols.trust.offences import Offence
from tests.helpers.run_world import NOW, RunWorld, identity, tls_key
from tests.helpers.trust_values import PEERS

BANS = [Ban(PEERS[number], Offence.CHECK, Epoch(3), bytes([number]) * 70) for number in (1, 2)]


def test_proofs_outlive_the_process(tmp_path: Path) -> None:
    assert load_proofs(tmp_path) == ()
    save_proofs(tmp_path, BANS)
    assert load_proofs(tmp_path) == tuple(ban.proof for ban in BANS)
    save_proofs(tmp_path, BANS[:1])
    assert load_proofs(tmp_path) == (BANS[0].proof,)


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\xff\x01", b"\x0a"])
def test_a_damaged_file_says_what_to_do(tmp_path: Path, data: bytes) -> None:
    save_proofs(tmp_path, BANS)
    (tmp_path / "bans").write_bytes(data)
    with pytest.raises(StateDirError, match="remove it"):
        load_proofs(tmp_path)


def test_an_unwritable_directory_is_the_users(tmp_path: Path) -> None:
    with pytest.raises(StateDirError):
        save_proofs(tmp_path / "nowhere", BANS)


def test_a_directory_leaves_out_who_is_banned_from_now_on() -> None:
    ledger = Ledger()
    inner = FixedDirectory(PEERS[0], {peer: Endpoint(peer, str(peer)) for peer in PEERS[:5]}, frozenset({PEERS[4]}))
    directory = Unbanned(inner, ledger)
    assert directory.placed(Epoch(0)) == (frozenset(PEERS[1:4]), frozenset(PEERS[4:5]))
    for number in (1, 4):
        ledger.add(Ban(PEERS[number], Offence.CHECK, Epoch(3), b"proof"))
    assert directory.placed(Epoch(0)) == (frozenset(PEERS[2:4]), frozenset())
    assert directory.live(Epoch(0)) == frozenset(PEERS[2:4])
    assert directory.endpoint(PEERS[1]) is None
    assert directory.endpoint(PEERS[2]) == Endpoint(PEERS[2], str(PEERS[2]))
    directory.suspect(PEERS[2])
    asyncio.run(directory.refresh())
    assert inner.suspects == {PEERS[2]}
    assert directory.live(Epoch(0)) == frozenset({PEERS[3]})


# The admission desk

WORLD = RunWorld()


def asked(desk: AdmissionDesk, number: int, **invite: object) -> Admitted | Refusal:
    received = WORLD.received(WORLD.invite(**invite))
    return desk.handle(make_request(identity(number), tls_key(number), received, NOW), NOW)


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
