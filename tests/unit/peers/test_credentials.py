from __future__ import annotations

import stat
from pathlib import Path

import pytest

from peers.credentials import RENEW_BEFORE_S, MemberCredentials, TlsKey, member_authenticator
from protocols.certificate import membership_checker
from protocols.certificate_chain import CertificateChain, pem_from_der
from protocols.errors import RemoteProtocolError, StateDirError
from protocols.ids import SwarmTime
from protocols.issuing import Issuer
from protocols.signing import open_envelope
from tests.helpers.run_world import DAY_S, NOW, FixedClock, RunWorld, identity, tls_key

WORLD = RunWorld()
OTHER = RunWorld(number=2)


@pytest.mark.parametrize("issuer", [None, WORLD.delegate()])
def test_credentials_are_kept(tmp_path: Path, issuer: Issuer | None) -> None:
    made = WORLD.credentials(1, issuer)
    made.save(tmp_path)
    kept = MemberCredentials.load(tmp_path, WORLD.run, WORLD.authority_key)
    assert kept is not None
    assert (kept.peer, kept.chain, kept.run_ca, kept.membership) == (identity(1).peer, made.chain, made.run_ca, made.membership)
    assert kept.tls_key.private_pem == made.tls_key.private_pem
    assert stat.S_IMODE((tmp_path / "tls.key").stat().st_mode) == 0o600


def test_nothing_kept_is_nothing(tmp_path: Path) -> None:
    assert MemberCredentials.load(tmp_path, WORLD.run, WORLD.authority_key) is None


def test_what_does_not_hold_for_this_run_is_not_used(tmp_path: Path) -> None:
    WORLD.credentials(1).save(tmp_path)
    assert MemberCredentials.load(tmp_path, OTHER.run, OTHER.authority_key) is None
    assert MemberCredentials.load(tmp_path, OTHER.run, WORLD.authority_key) is None
    assert MemberCredentials.load(tmp_path, WORLD.run, WORLD.authority_key) is not None


@pytest.mark.parametrize("name", ["tls.pem", "tls.key", "run/ca.pem"])
@pytest.mark.parametrize("content", [b"", b"garbage", WORLD.chain(2).pem * 2])
def test_damaged_files_lead_to_a_new_admission(tmp_path: Path, name: str, content: bytes) -> None:
    WORLD.credentials(1).save(tmp_path)
    (tmp_path / name).write_bytes(content)
    assert MemberCredentials.load(tmp_path, WORLD.run, WORLD.authority_key) is None


def test_an_old_certificate_for_a_new_key_is_not_used(tmp_path: Path) -> None:
    WORLD.credentials(1).save(tmp_path)
    (tmp_path / "tls.key").write_bytes(tls_key(2).private_pem)
    assert MemberCredentials.load(tmp_path, WORLD.run, WORLD.authority_key) is None
    with pytest.raises(RemoteProtocolError, match="another TLS key"):
        MemberCredentials.verified(WORLD.run, WORLD.authority_key, tls_key(2), WORLD.chain(1), WORLD.run_ca)


def test_a_tls_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    WORLD.credentials(1).save(tmp_path)
    (tmp_path / "tls.key").chmod(0o644)
    with pytest.raises(StateDirError, match="chmod 600"):
        MemberCredentials.load(tmp_path, WORLD.run, WORLD.authority_key)


def test_a_tls_key_is_made_once(tmp_path: Path) -> None:
    first = TlsKey.load_or_create(tmp_path)
    assert TlsKey.load_or_create(tmp_path).private_pem == first.private_pem
    assert stat.S_IMODE((tmp_path / "tls.key").stat().st_mode) == 0o600
    assert "PRIVATE" not in repr(first)


def test_credentials_that_end_soon_or_are_anothers_are_not_worth_starting_with() -> None:
    chain = WORLD.chain(1, not_after=NOW + DAY_S)
    made = MemberCredentials.verified(WORLD.run, WORLD.authority_key, tls_key(1), chain, WORLD.run_ca)
    assert made.usable(identity(1), NOW)
    assert not made.usable(identity(2), NOW)
    assert not made.usable(identity(1), SwarmTime(NOW + DAY_S - RENEW_BEFORE_S + 1))
    assert not made.usable(identity(1), SwarmTime(NOW - 2 * DAY_S))


def test_another_runs_root_does_not_belong_to_them() -> None:
    with pytest.raises(RemoteProtocolError, match="not the authority's"):
        MemberCredentials.verified(WORLD.run, WORLD.authority_key, tls_key(1), WORLD.chain(1), OTHER.run_ca)


def test_what_we_seal_is_a_members() -> None:
    sealed = WORLD.credentials(1, WORLD.delegate()).sealer(identity(1)).seal("join", b"x", NOW, 10.0)
    check = membership_checker(WORLD.run, WORLD.authority_key)
    assert open_envelope(sealed, "join", WORLD.run, NOW, check) == (identity(1).peer, b"x")


def test_callers_are_authenticated_by_their_leaf() -> None:
    clock = FixedClock()
    tls = WORLD.credentials(1, WORLD.delegate()).tls(clock, lambda peer: False)
    assert tls.certificate_chain_pem.startswith(WORLD.chain(1, WORLD.delegate()).leaf_pem)
    for issuer in (None, WORLD.delegate()):
        assert tls.authenticate(WORLD.chain(2, issuer).leaf_pem) == identity(2).peer
    for pem in (b"", b"x", OTHER.chain(2).leaf_pem, pem_from_der(WORLD.run_ca), pem_from_der(WORLD.delegate().certificate)):
        with pytest.raises(RemoteProtocolError):
            tls.authenticate(pem)
    clock.time = SwarmTime(NOW + 400 * DAY_S)
    with pytest.raises(RemoteProtocolError, match="has expired"):
        tls.authenticate(WORLD.chain(2).leaf_pem)


def test_an_authenticator_needs_one_root() -> None:
    with pytest.raises(ValueError, match=r".+"):
        member_authenticator(CertificateChain((WORLD.run_ca, WORLD.run_ca)).pem, WORLD.run, FixedClock())
