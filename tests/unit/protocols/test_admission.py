from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.admission import (
    MAX_REQUEST_BYTES,
    PROTOCOL_VERSION,
    REQUEST_TRAVEL_S,
    AdmissionDesk,
    AdmissionRequest,
    Admitted,
    Refusal,
    make_request,
)
from protocols.certificate import MemberKey, binding_statement, read_membership, verify_member_certificate
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import SwarmTime
from protocols.invite import Invite, seal_invite
from protocols.issuing import Issuer
from protocols.run_document import RunDocument
from protocols.signing import CLOCK_SKEW_S
from tests.helpers.run_world import DAY_S, NOW, RunWorld, identity, tls_key

WORLD = RunWorld()
OTHER = RunWorld(number=2)


def desk(issuer: Issuer | None = None) -> AdmissionDesk:
    return AdmissionDesk(WORLD.run, WORLD.authority_key, WORLD.run_ca, issuer or WORLD.authority)


def sealed(**changes: object) -> bytes:
    return seal_invite(WORLD.invite(**changes), WORLD.authority)


def ask(number: int = 1, invite: bytes | None = None, now: float = NOW) -> AdmissionRequest:
    key = tls_key(number).claimed_by(identity(number), WORLD.run)
    return make_request(identity(number), key, sealed() if invite is None else invite, SwarmTime(now))


def refused(answer: Admitted | Refusal, code: str, words: str = "") -> None:
    assert isinstance(answer, Refusal)
    assert answer.code == code
    assert words in answer.sentence
    assert answer.sentence.endswith(".")


@pytest.mark.parametrize("issuer", [WORLD.authority, WORLD.delegate()])
def test_a_good_request_gets_a_certificate_for_its_own_key(issuer: Issuer) -> None:
    answer = desk(issuer).handle(ask(), NOW)
    assert isinstance(answer, Admitted)
    assert answer.run_ca == WORLD.run_ca
    membership = read_membership(answer.chain, WORLD.authority_key, WORLD.run)
    assert membership.peer == identity(1).peer
    assert membership.tls_public_key == tls_key(1).public_der
    assert membership.not_before < NOW < membership.not_after
    assert verify_member_certificate(answer.chain, WORLD.authority_key, WORLD.run, NOW) == identity(1).peer


def test_the_reply_travels() -> None:
    answer = desk().handle(ask(), NOW)
    assert isinstance(answer, Admitted)
    assert Admitted.decode(answer.encode(), None) == answer
    request = ask()
    assert AdmissionRequest.decode(request.encode(), None) == request


@pytest.mark.parametrize("name", ["peer", "tls_public_key", "binding", "invite", "time", "proof", "protocol_version"])
def test_every_field_of_a_request_is_protected(name: str) -> None:
    good, other = ask(), ask(2, sealed(token=b"u" * 16), NOW + 1)
    if name in ("peer", "tls_public_key", "binding"):
        tampered = replace(good, key=replace(good.key, **{name: getattr(other.key, name)}))
    elif name == "protocol_version":
        tampered = replace(good, protocol_version=PROTOCOL_VERSION - 1)
    else:
        tampered = replace(good, **{name: getattr(other, name)})
    refused(desk().handle(tampered, NOW), "protocol-version" if name == "protocol_version" else "bad-identity")


def test_a_key_that_the_identity_did_not_sign_for_this_run_is_refused() -> None:
    me, key = identity(1), tls_key(1)
    for binding in (
        me.sign(binding_statement(OTHER.run, key.public_der)),
        identity(2).sign(binding_statement(WORLD.run, key.public_der)),
        b"",
    ):
        request = make_request(me, MemberKey(me.peer, key.public_der, binding), sealed(), NOW)
        refused(desk().handle(request, NOW), "bad-identity", "signed for this run")


@pytest.mark.parametrize(
    ("ahead_s", "words"),
    [
        (CLOCK_SKEW_S, None),
        (-CLOCK_SKEW_S - REQUEST_TRAVEL_S, None),
        (10, "10 s ahead of"),
        (-60, "60 s behind"),
        (-DAY_S, "86400 s behind"),
    ],
)
def test_a_clock_that_is_off_is_told_how_far(ahead_s: float, words: str | None) -> None:
    answer = desk().handle(ask(now=NOW + ahead_s), NOW)
    if words is None:
        assert isinstance(answer, Admitted)
    else:
        refused(answer, "clock-off", words)


def test_other_protocol_versions_are_told_ours() -> None:
    refused(desk().handle(replace(ask(), protocol_version=PROTOCOL_VERSION + 1), NOW), "protocol-version", f"speaks {PROTOCOL_VERSION}")


def test_the_banned_stay_out() -> None:
    banning = desk()
    banning.ban(identity(1).peer)
    refused(banning.handle(ask(1), NOW), "banned")
    assert isinstance(banning.handle(ask(2), NOW), Admitted)


def test_invites_of_other_runs_are_refused() -> None:
    refused(desk().handle(ask(invite=seal_invite(OTHER.invite(), OTHER.authority)), NOW), "wrong-run")
    # Under our authority, another run; and our run, under a made-up authority that signs for itself.
    refused(desk().handle(ask(invite=seal_invite(WORLD.invite(run=OTHER.run), WORLD.authority)), NOW), "wrong-run")
    forged = WORLD.invite(authority_key=OTHER.authority_key)
    refused(desk().handle(ask(invite=seal_invite(forged, OTHER.authority)), NOW), "wrong-run")


def test_invites_that_do_not_hold_are_refused() -> None:
    refused(desk().handle(ask(invite=sealed(expires_at=SwarmTime(NOW - 100))), NOW), "bad-invite", "expired")
    refused(desk().handle(ask(invite=seal_invite(WORLD.invite(), OTHER.authority)), NOW), "bad-invite", "altered")
    refused(desk().handle(ask(invite=b""), NOW), "bad-invite")
    refused(desk().handle(ask(invite=b"\xff" * 100), NOW), "bad-invite")


def test_a_delegates_invite_is_as_good() -> None:
    delegate = WORLD.delegate()
    invite = WORLD.invite(delegate_certificate=delegate.certificate, signed_by_delegate=True)
    assert isinstance(desk().handle(ask(invite=seal_invite(invite, delegate)), NOW), Admitted)


def test_uses_are_counted_by_peer_and_token() -> None:
    counting = desk()
    two = sealed(max_uses=2)
    for number in (1, 2, 1, 2, 1):
        assert isinstance(counting.handle(ask(number, two), NOW), Admitted), "the same peer again costs nothing"
    refused(counting.handle(ask(3, two), NOW), "invite-used-up", "2 peers")
    assert isinstance(counting.handle(ask(1, two), NOW), Admitted)
    assert isinstance(counting.handle(ask(3, sealed(max_uses=2, token=b"u" * 16)), NOW), Admitted)


def test_refused_requests_cost_nothing() -> None:
    counting = desk()
    one = sealed(max_uses=1)
    refused(counting.handle(replace(ask(1, one), proof=b""), NOW), "bad-identity")
    refused(counting.handle(ask(2, one, NOW + 999), NOW), "clock-off")
    assert isinstance(counting.handle(ask(3, one), NOW), Admitted)


def test_without_a_limit_nobody_is_counted() -> None:
    counting = desk()
    empty = counting.export_ledger()
    for number in range(5):
        assert isinstance(counting.handle(ask(number), NOW), Admitted)
    assert counting.export_ledger() == empty


def test_the_ledger_outlives_the_process() -> None:
    before = desk()
    one = sealed(max_uses=1)
    assert isinstance(before.handle(ask(1, one), NOW), Admitted)
    after = desk()
    after.import_ledger(before.export_ledger())
    assert after.export_ledger() == before.export_ledger()
    refused(after.handle(ask(2, one), NOW), "invite-used-up")
    assert isinstance(after.handle(ask(1, one), NOW), Admitted)


def test_the_ledger_has_one_form() -> None:
    forwards, backwards = desk(), desk()
    invites = [sealed(max_uses=9, token=bytes([i]) * 16) for i in range(3)]
    wishes = [(number, invite) for number in (1, 2, 3) for invite in invites]
    for number, invite in wishes:
        forwards.handle(ask(number, invite), NOW)
    for number, invite in reversed(wishes):
        backwards.handle(ask(number, invite), NOW)
    assert forwards.export_ledger() == backwards.export_ledger() != desk().export_ledger()


def test_expired_tokens_are_forgotten_and_still_let_nobody_in() -> None:
    counting = desk()
    brief = sealed(max_uses=1, expires_at=SwarmTime(NOW + 100))
    assert isinstance(counting.handle(ask(1, brief), NOW), Admitted)
    later = NOW + 200
    assert isinstance(counting.handle(ask(2, sealed(token=b"u" * 16), later), SwarmTime(later)), Admitted)
    assert counting.export_ledger() == desk().export_ledger()
    refused(counting.handle(ask(3, brief, later), SwarmTime(later)), "bad-invite", "expired")


def a_ledger() -> bytes:
    counting = desk()
    counting.handle(ask(1, sealed(max_uses=1)), NOW)
    return counting.export_ledger()


FOREIGN = AdmissionDesk(OTHER.run, OTHER.authority_key, OTHER.run_ca, OTHER.authority).export_ledger()


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xff", FOREIGN, a_ledger()[:-1], a_ledger() + a_ledger(), a_ledger().replace(b"\x10t", b"\x0ft")]
)
def test_another_runs_or_a_damaged_ledger_is_refused_and_changes_nothing(data: bytes) -> None:
    counting = desk()
    counting.import_ledger(a_ledger())
    with pytest.raises(LocalProtocolError, match="ledger"):
        counting.import_ledger(data)
    refused(counting.handle(ask(2, sealed(max_uses=1)), NOW), "invite-used-up")


@given(st.binary(max_size=300))
def test_garbage_is_refused_as_garbage(data: bytes) -> None:
    for decode in (AdmissionRequest.decode, Admitted.decode, RunDocument.decode):
        with pytest.raises(RemoteProtocolError) as caught:
            decode(data, identity(1).peer)
        assert caught.value.reason


@given(st.data())
def test_mutated_requests_are_refused(data: st.DataObject) -> None:
    encoded = bytearray(ask().encode())
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    try:
        request = AdmissionRequest.decode(bytes(encoded), None)
    except RemoteProtocolError:
        return
    answer = desk().handle(request, NOW)
    assert isinstance(answer, Refusal) or request == ask()


def test_oversized_requests_are_not_read() -> None:
    for decode in (AdmissionRequest.decode, Admitted.decode):
        with pytest.raises(RemoteProtocolError, match="too large"):
            decode(bytes(MAX_REQUEST_BYTES + 1), None)
    with pytest.raises(RemoteProtocolError, match="too large"):
        RunDocument.decode(bytes(2**20), None)


def test_a_run_document_is_verified_when_it_is_read() -> None:
    document = RunDocument(WORLD.signed_spec, WORLD.run_ca, NOW)
    assert RunDocument.decode(document.encode(), None) == document
    with pytest.raises(RemoteProtocolError, match="not the authority's"):
        RunDocument.decode(RunDocument(WORLD.signed_spec, OTHER.run_ca, NOW).encode(), None)
    with pytest.raises(RemoteProtocolError, match="did not sign"):
        RunDocument.decode(RunDocument(replace(WORLD.signed_spec, signature=bytes(64)), WORLD.run_ca, NOW).encode(), None)


def test_an_invite_with_more_uses_is_another_signature() -> None:
    """A joiner cannot raise its own limit."""
    generous = seal_invite(WORLD.invite(max_uses=1), WORLD.authority)
    tampered = generous.replace(b"\x38\x01", b"\x38\x02")
    assert tampered != generous
    refused(desk().handle(ask(1, tampered), NOW), "bad-invite", "altered")
    assert isinstance(WORLD.received(WORLD.invite(max_uses=1)), Invite)
