from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, derive_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.certificate import (
    MemberKey,
    binding_holds,
    binding_statement,
    membership_checker,
    read_leaf,
    verify_delegate,
    verify_member_certificate,
    verify_run_ca,
)
from protocols.certificate_chain import CertificateChain, ders_from_pem, pem_from_der
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import PeerId, SwarmTime
from protocols.issuing import Issuer, issue_delegate, issue_member_certificate, make_run_ca, serial_for
from tests.helpers.run_world import DAY_S, NOW, RunWorld, ed25519, identity, tls_key

WORLD = RunWorld()
OTHER = RunWorld(number=2)
DIRECT = WORLD.chain(1)
DELEGATED = WORLD.chain(1, WORLD.delegate())


def verified(chain: CertificateChain, world: RunWorld = WORLD, now: float = NOW) -> PeerId:
    return verify_member_certificate(chain, world.authority_key, world.run, SwarmTime(now))


@pytest.mark.parametrize("chain", [DIRECT, DELEGATED])
def test_a_members_certificate_names_it(chain: CertificateChain) -> None:
    assert verified(chain) == identity(1).peer


def test_the_chain_holds_the_delegate_only_if_one_issued_it() -> None:
    assert len(DIRECT.certificates) == 1
    assert DELEGATED.certificates[1] == WORLD.delegate().certificate


def test_certificates_follow_from_their_arguments() -> None:
    assert WORLD.chain(1) == DIRECT
    assert RunWorld().run_ca == WORLD.run_ca
    assert serial_for(b"a", b"b") != serial_for(b"ab")
    assert 0 < serial_for(b"a") < 2**159


@pytest.mark.parametrize("chain", [DIRECT, DELEGATED])
def test_another_runs_authority_does_not_accept_it(chain: CertificateChain) -> None:
    with pytest.raises(RemoteProtocolError, match="did not sign"):
        verify_member_certificate(chain, OTHER.authority_key, WORLD.run, NOW)


@pytest.mark.parametrize("chain", [DIRECT, DELEGATED])
def test_a_certificate_is_bound_to_its_run_even_under_the_same_authority(chain: CertificateChain) -> None:
    with pytest.raises(RemoteProtocolError, match="has not signed its key for this run"):
        verify_member_certificate(chain, WORLD.authority_key, OTHER.run, NOW)


@pytest.mark.parametrize(
    ("ends", "delegate_ends", "now", "fault"),
    [
        (100, 1000, 50, None),
        (100, 1000, 102, None),
        (100, 1000, 104, "has expired"),
        (1000, 100, 104, "has expired"),
        (1000, 1000, -DAY_S - 10, "not valid yet"),
    ],
)
def test_dates_of_the_whole_chain_count(ends: float, delegate_ends: float, now: float, fault: str | None) -> None:
    chain = WORLD.chain(1, WORLD.delegate(not_after=NOW + delegate_ends), not_after=NOW + ends)
    if fault is None:
        assert verified(chain, now=NOW + now) == identity(1).peer
    else:
        with pytest.raises(RemoteProtocolError, match=fault):
            verified(chain, now=NOW + now)


def test_a_leaf_never_outlives_its_issuer() -> None:
    chain = WORLD.chain(1, WORLD.delegate(not_after=NOW + 100), not_after=NOW + 900)
    assert x509.load_der_x509_certificate(chain.certificates[0]).not_valid_after_utc.timestamp() == NOW + 100


def test_a_delegate_may_not_create_delegates() -> None:
    delegate = WORLD.delegate()
    with pytest.raises(LocalProtocolError, match="only the run authority"):
        issue_delegate(delegate, ed25519(77).public_key().public_bytes_raw(), 1, NOW, SwarmTime(NOW + 10))


def test_a_delegate_that_a_delegate_created_anyway_is_refused() -> None:
    delegate = WORLD.delegate()
    # What a dishonest delegate would do: pretend that its certificate is a root, and issue a sub-delegate with it.
    pretended = Issuer(delegate.private_key, make_run_ca(delegate.private_key, "test-run", 1, WORLD.not_before, WORLD.not_after))
    key = ed25519(77)
    sub_certificate = issue_delegate(pretended, key.public_key().public_bytes_raw(), 5, WORLD.not_before, WORLD.not_after)
    leaf = WORLD.chain(1, Issuer(key, sub_certificate)).certificates[0]
    with pytest.raises(RemoteProtocolError):
        verified(CertificateChain((leaf, sub_certificate)))
    with pytest.raises(ValueError, match="3 certificates"):
        CertificateChain((leaf, sub_certificate, delegate.certificate))


def test_a_member_may_not_issue_certificates() -> None:
    """The leaf of one member, put where a delegate's certificate belongs."""
    leaf_of_another = WORLD.chain(2).certificates[0]
    with pytest.raises(RemoteProtocolError):
        verified(CertificateChain((DELEGATED.certificates[0], leaf_of_another)))


@pytest.mark.parametrize(
    "chain",
    [
        CertificateChain((WORLD.run_ca,)),
        CertificateChain((WORLD.delegate().certificate,)),
        CertificateChain((DELEGATED.certificates[0],)),
        CertificateChain((DIRECT.certificates[0], WORLD.delegate().certificate)),
        CertificateChain((DELEGATED.certificates[0], WORLD.run_ca)),
        CertificateChain((DELEGATED.certificates[0], WORLD.delegate(2).certificate)),
        CertificateChain((DELEGATED.certificates[0], OTHER.delegate().certificate)),
        CertificateChain(DELEGATED.certificates[::-1]),
    ],
)
def test_wrong_chains_are_refused(chain: CertificateChain) -> None:
    with pytest.raises(RemoteProtocolError):
        verified(chain)


@pytest.mark.parametrize("chain", [DIRECT, DELEGATED])
def test_every_byte_of_a_chain_is_protected(chain: CertificateChain) -> None:
    for which, der in enumerate(chain.certificates):
        for position in range(len(der)):
            tampered = bytearray(der)
            tampered[position] ^= 1
            certificates = list(chain.certificates)
            certificates[which] = bytes(tampered)
            with pytest.raises(RemoteProtocolError):
                verified(CertificateChain(tuple(certificates)))


def test_an_issuer_cannot_impersonate_a_peer() -> None:
    """The authority itself, dishonest, certifies its own TLS key under a peer's name: the peer's signature is missing."""
    mine = tls_key(5)
    stolen_name = MemberKey(identity(1).peer, mine.public_der, identity(5).sign(binding_statement(WORLD.run, mine.public_der)))
    assert not binding_holds(stolen_name, WORLD.run)
    with pytest.raises(LocalProtocolError, match="has not signed"):
        issue_member_certificate(WORLD.authority, stolen_name, WORLD.run, 1, NOW, SwarmTime(NOW + 10))
    forged = _forge(WORLD.authority, identity(1).peer, identity(5).sign(binding_statement(WORLD.run, mine.public_der)))
    with pytest.raises(RemoteProtocolError, match="has not signed its key"):
        verified(forged)


def _forge(
    issuer: Issuer, peer: PeerId, binding: bytes, change: Callable[[x509.CertificateBuilder], x509.CertificateBuilder] | None = None
) -> CertificateChain:
    """Take an honest certificate of member 5 apart and sign it anew with another name and binding."""
    honest = x509.load_der_x509_certificate(WORLD.chain(5).certificates[0])
    builder = x509.CertificateBuilder().subject_name(honest.subject).issuer_name(honest.issuer).serial_number(9)
    builder = (
        builder.not_valid_before(honest.not_valid_before_utc)
        .not_valid_after(honest.not_valid_after_utc)
        .public_key(tls_key(5).private_key.public_key())
    )
    for extension in honest.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            value = x509.SubjectAlternativeName([x509.DNSName(peer.tls_name)])
        if isinstance(value, x509.UnrecognizedExtension):
            value = x509.UnrecognizedExtension(value.oid, b"\x04\x40" + binding)
        builder = builder.add_extension(value, extension.critical)
    return CertificateChain((builder.sign(issuer.private_key, None).public_bytes(Encoding.DER),))


def test_the_forging_tool_makes_good_certificates_from_good_parts() -> None:
    """Otherwise the refusal of its forgeries would prove nothing."""
    binding = identity(5).sign(binding_statement(WORLD.run, tls_key(5).public_der))
    assert verified(_forge(WORLD.authority, identity(5).peer, binding)) == identity(5).peer


def test_only_p256_keys_in_their_one_encoding_are_bound() -> None:
    me = identity(1)

    def claim(der: bytes) -> MemberKey:
        return MemberKey(me.peer, der, me.sign(binding_statement(WORLD.run, der)))

    good = tls_key(1).public_der
    point = tls_key(1).private_key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    compressed = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    p384 = derive_private_key(5, SECP384R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ed = ed25519(1).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert binding_holds(claim(good), WORLD.run)
    for der in (compressed, p384, ed, b"", good + b"\0", good[:-1]):
        assert not binding_holds(claim(der), WORLD.run)
    assert not binding_holds(claim(good), OTHER.run)
    assert not binding_holds(replace(claim(good), binding=b""), WORLD.run)


def test_run_root_is_the_authoritys() -> None:
    verify_run_ca(WORLD.run_ca, WORLD.authority_key)
    for certificate, key in (
        (WORLD.run_ca, OTHER.authority_key),
        (WORLD.delegate().certificate, WORLD.authority_key),
        (WORLD.delegate().certificate, WORLD.delegate().public_key),
        (DIRECT.certificates[0], WORLD.authority_key),
        (WORLD.run_ca + b"\0", WORLD.authority_key),
        (bytes(10_000), WORLD.authority_key),
        (b"", WORLD.authority_key),
    ):
        with pytest.raises(RemoteProtocolError):
            verify_run_ca(certificate, key)


def test_delegates_are_appointed_by_the_authority() -> None:
    delegate = WORLD.delegate()
    assert verify_delegate(delegate.certificate, WORLD.authority_key, NOW) == delegate.public_key
    for certificate, key, now in (
        (delegate.certificate, OTHER.authority_key, NOW),
        (WORLD.run_ca, WORLD.authority_key, NOW),
        (DIRECT.certificates[0], WORLD.authority_key, NOW),
        (delegate.certificate, WORLD.authority_key, NOW + 400 * DAY_S),
        (delegate.certificate, WORLD.authority_key, NOW - 2 * DAY_S),
        (b"x", WORLD.authority_key, NOW),
    ):
        with pytest.raises(RemoteProtocolError):
            verify_delegate(certificate, key, SwarmTime(now))


def test_a_leaf_that_tls_has_verified_still_must_be_bound_to_its_peer() -> None:
    for chain in (DIRECT, DELEGATED):
        assert read_leaf(chain.certificates[0], WORLD.run, WORLD.run_ca).peer == identity(1).peer
        with pytest.raises(RemoteProtocolError):
            read_leaf(chain.certificates[0], OTHER.run, WORLD.run_ca)
    with pytest.raises(RemoteProtocolError):
        read_leaf(WORLD.delegate().certificate, WORLD.run, WORLD.run_ca)
    with pytest.raises(RemoteProtocolError, match="did not sign"):
        read_leaf(DIRECT.certificates[0], WORLD.run, OTHER.run_ca)  # both roots have the same name


def test_the_checker_remembers_good_chains_and_still_looks_at_the_date() -> None:
    check = membership_checker(WORLD.run, WORLD.authority_key, cache_size=2)
    chain = WORLD.chain(1, not_after=NOW + 10).to_bytes()
    assert check(chain, NOW) == identity(1).peer
    assert check(chain, NOW) == identity(1).peer
    with pytest.raises(RemoteProtocolError, match="has expired"):
        check(chain, SwarmTime(NOW + 20))
    with pytest.raises(RemoteProtocolError, match="cannot be read"):
        check(b"\x01\x02", NOW)


def test_pem_and_bytes_read_back() -> None:
    for chain in (DIRECT, DELEGATED):
        assert CertificateChain.from_pem(chain.pem) == chain
        assert CertificateChain.from_bytes(chain.to_bytes()) == chain
        assert chain.pem.startswith(chain.leaf_pem)
        loaded = x509.load_pem_x509_certificate(chain.leaf_pem)
        assert loaded.public_bytes(Encoding.DER) == chain.certificates[0]
        assert loaded.public_bytes(Encoding.PEM) == chain.leaf_pem


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"x",
        DIRECT.pem[:-5],
        b"x" + DIRECT.pem,
        DIRECT.pem + b"x",
        DIRECT.pem * 3,
        DIRECT.pem.replace(b"CERT", b"CORT"),
        DIRECT.pem.replace(b"=", b"=="),
        bytes(99_999),
    ],
)
def test_other_text_is_not_a_chain(pem: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        CertificateChain.from_pem(pem)


def test_one_certificate_as_text() -> None:
    assert ders_from_pem(pem_from_der(WORLD.run_ca)) == (WORLD.run_ca,)
    with pytest.raises(ValueError, match="too large"):
        CertificateChain((bytes(5000),))


@given(st.binary(max_size=200))
def test_garbage_is_refused_as_garbage(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        verified(CertificateChain((data or b"\0",)))
    with pytest.raises(RemoteProtocolError):
        membership_checker(WORLD.run, WORLD.authority_key)(data, NOW)


@settings(max_examples=60)
@given(st.data())
def test_nothing_a_dishonest_issuer_signs_breaks_the_reader(data: st.DataObject) -> None:
    """A delegate can sign any bytes it likes as a certificate: whatever parses must be refused or be sound, never raise otherwise."""
    delegate = WORLD.delegate()
    der = bytearray(DELEGATED.certificates[0])
    # The signed part begins after the outer header and its own 4-byte header; the signature is the last 64 bytes.
    tbs_end = 4 + 4 + int.from_bytes(der[6:8], "big")
    position = data.draw(st.integers(8, tbs_end - 1))
    der[position] = data.draw(st.integers(0, 255))
    der[-64:] = delegate.private_key.sign(bytes(der[4:tbs_end]))
    try:
        peer = verified(CertificateChain((bytes(der), delegate.certificate)))
    except RemoteProtocolError:
        return
    assert peer == identity(1).peer
