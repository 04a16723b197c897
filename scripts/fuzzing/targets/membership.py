"""Who belongs to a run: specs, certificates, envelopes, invites, admission. Where a signature guards a reader, the signer means harm."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from protocols.admission import AdmissionDesk, AdmissionRequest, Admitted, Refusal, make_request
from protocols.canonical import pack_fields
from protocols.certificate import MemberKey, binding_holds, membership_checker, read_leaf, read_membership, verify_delegate, verify_run_ca
from protocols.certificate_chain import CertificateChain
from protocols.errors import InviteError, LocalProtocolError
from protocols.ids import Epoch, SwarmTime
from protocols.invite import TOKEN_BYTES, Invite, invite_link, open_invite, read_invite, seal_invite
from protocols.record_keeping import RecordReader, seal_presence, seal_progress
from protocols.records import Presence, Progress
from protocols.run_document import RunDocument
from protocols.runspec import RunSpec, SignedRunSpec
from protocols.signing import Envelope, verify_envelope
from scripts.fuzzing.formats import DER, FIELDS, JSON, PROTOBUF
from scripts.fuzzing.target import SENDER, Target, message
from scripts.fuzzing.world import NOW, certificate, tbs_of, world

_ADDRESS = f"/ip4/192.0.2.1/tcp/4001/p2p/{SENDER}"


# Certificates


def _read_signed(tbs: bytes) -> Any:
    """A leaf by the authority, in whatever form it likes."""
    w = world()
    return read_membership(CertificateChain((certificate(tbs, w.authority),)), w.authority.public_key, w.run)


def _read_delegated(tbs: bytes) -> Any:
    """A leaf by a delegate: in an open run that is anybody."""
    w = world()
    return read_membership(CertificateChain((certificate(tbs, w.delegate), w.delegate.certificate)), w.authority.public_key, w.run)


def _read_under_tls(tbs: bytes) -> Any:
    w = world()
    return read_leaf(certificate(tbs, w.delegate), w.run, w.authority.certificate)


def _read_delegate(tbs: bytes) -> bytes:
    w = world()
    return verify_delegate(certificate(tbs, w.authority), w.authority.public_key, NOW)


def _read_root(tbs: bytes) -> None:
    w = world()
    verify_run_ca(certificate(tbs, w.authority), w.authority.public_key)


def _leaf_seeds() -> list[bytes]:
    return [tbs_of(world().chain(number, delegated=number > 0).certificates[0]) for number in range(2)]


def _chains() -> list[bytes]:
    return [world().chain(number, delegated=number > 0).to_bytes() for number in range(2)]


def _claim(data: bytes) -> bool:
    identity = world().identity(0)
    key = MemberKey(identity.peer, data, identity.sign(pack_fields(b"swarm.v1.tls-key", world().run.digest, data)))
    return binding_holds(key, world().run)


# Envelopes and records

_FIELD = {"presence": 7, "progress": 7}


@lru_cache(maxsize=1)
def _reader() -> RecordReader:
    return RecordReader(world().run, world().authority.public_key)


def _check_member() -> Any:
    return membership_checker(world().run, world().authority.public_key)


def _presence() -> Presence:
    w = world()
    texts = ("10.0.0.1:4001", w.chain(0).leaf_pem, (_ADDRESS,), "trainer", "cpu")
    return Presence(w.peer(0), *texts, 1000, NOW, "agent 1")  # type: ignore[arg-type]


def _progress() -> Progress:
    return Progress(world().peer(0), Epoch(4), 10, 2.5, 400, b"s" * 32, "training", 2.25, 10**6, 10**7, NOW)


def _record_seeds() -> list[bytes]:
    sealer = world().sealer(0)
    return [seal_presence(_presence(), sealer, NOW).value, seal_progress(_progress(), sealer).value]


def _signed_envelope(body: bytes) -> Envelope:
    """Whatever a member signs."""
    sealed = body + world().identity(0).sign(body)
    return verify_envelope(sealed, "presence", world().run, NOW, _check_member())


def _read_presence(payload: bytes) -> Presence:
    return _reader().presence(world().sealer(0).seal("presence", payload, NOW, 100.0), NOW)


def _read_progress(payload: bytes) -> Progress:
    return _reader().progress(world().sealer(0).seal("progress", payload, NOW, 50.0), NOW)


def _judge(data: bytes) -> str | None:
    run = world().run
    verdicts = [_reader().validate(f"{run}/{kind}", str(world().peer(0)), data, SwarmTime(NOW + 10), NOW) for kind in _FIELD]
    return ", ".join(map(str, verdicts))


# Specs


def _spec_seeds() -> list[bytes]:
    return [signed.spec.canonical_bytes() for signed in (world().signed_spec, world().open_spec)]


def _signed_spec(canonical: bytes) -> SignedRunSpec:
    """Whatever an authority signs."""
    authority = world().authority
    signature = authority.sign(pack_fields(b"swarm.v1.run-spec", canonical))
    return SignedRunSpec.from_bytes(pack_fields(b"swarm.v1.run-spec", canonical, authority.public_key, signature))


def _documents() -> tuple[RunDocument, ...]:
    w = world()
    return tuple(RunDocument(signed, w.authority.certificate, NOW) for signed in (w.signed_spec, w.open_spec))


# Invites and admission


def _invites() -> list[bytes]:
    w = world()
    plain = Invite(w.run, "fuzz", w.authority.public_key, (_ADDRESS,), b"t" * TOKEN_BYTES, SwarmTime(NOW + 3600), 3)
    given = replace(plain, delegate_certificate=w.delegate.certificate, delegate_seed=w.delegate.private_key.private_bytes_raw())
    signed = replace(given, delegate_seed=b"", signed_by_delegate=True)
    return [seal_invite(plain, w.authority), seal_invite(given, w.authority), seal_invite(signed, w.delegate)]


def _signed_invite(body: bytes) -> Invite:
    """Whatever an authority signs."""
    return open_invite(body + world().authority.sign(pack_fields(b"swarm.v1.invite", body)), NOW)


def _unsealed(value: Invite) -> Invite:
    return replace(value, sealed=b"")


def _requests() -> Any:
    w, invite = world(), _invites()[0]
    return make_request(w.identity(0), w.tls_key(0).claimed_by(w.identity(0), w.run), invite, NOW)


def _ask(data: bytes) -> str:
    """The whole way of a stranger's request."""
    w = world()
    desk = AdmissionDesk(w.run, w.authority.public_key, w.authority.certificate, w.authority)
    answer = desk.handle(AdmissionRequest.decode(data, SENDER), NOW)
    return answer.sentence if isinstance(answer, Refusal) else "admitted"


def _ledger(data: bytes) -> bytes:
    w = world()
    desk = AdmissionDesk(w.run, w.authority.public_key, w.authority.certificate, w.authority)
    desk.import_ledger(data)
    return desk.export_ledger()


def _ledger_seeds() -> list[bytes]:
    w = world()
    desk = AdmissionDesk(w.run, w.authority.public_key, w.authority.certificate, w.authority)
    desk.handle(_requests(), NOW)
    return [desk.export_ledger()]


MEMBERSHIP: tuple[Target, ...] = (
    Target(
        "certificate-chain", CertificateChain.from_bytes, _chains, (ValueError,), CertificateChain.to_bytes, canonical=True, form=FIELDS
    ),
    Target("certificate-pem", CertificateChain.from_pem, lambda: [world().chain(1).pem], (ValueError,), lambda chain: chain.pem),
    Target("certificate-of-authority", _read_signed, _leaf_seeds, form=DER, input_bytes=3900),
    Target("certificate-of-delegate", _read_delegated, _leaf_seeds, form=DER, input_bytes=3900),
    Target("certificate-under-tls", _read_under_tls, lambda: _leaf_seeds()[1:], form=DER, input_bytes=3900),
    Target("delegate", _read_delegate, lambda: [tbs_of(world().delegate.certificate)], form=DER, input_bytes=3900),
    Target("run-ca", _read_root, lambda: [tbs_of(world().authority.certificate)], form=DER, input_bytes=3900),
    Target("tls-key", _claim, lambda: [world().tls_key(0).public_der], (), form=DER, input_bytes=3900),
    Target("record", _judge, _record_seeds, (), form=FIELDS),
    Target(
        "envelope",
        _signed_envelope,
        lambda: [sealed[:-64] for sealed in _record_seeds()[:1]],
        encode=Envelope.signed_part,
        canonical=True,
        form=FIELDS,
    ),
    Target("presence", _read_presence, lambda: [_presence().encode()], encode=Presence.encode, form=PROTOBUF, input_bytes=6000),
    Target("progress", _read_progress, lambda: [_progress().encode()], encode=Progress.encode, form=PROTOBUF, input_bytes=6000),
    Target(
        "run-spec", RunSpec.from_canonical_bytes, _spec_seeds, encode=RunSpec.canonical_bytes, canonical=True, form=JSON, memory_factor=200
    ),
    Target("signed-run-spec", _signed_spec, _spec_seeds, form=JSON, memory_factor=200),
    message("run-document", *_documents(), memory_factor=200),
    Target("invite", _signed_invite, lambda: [sealed[:-64] for sealed in _invites()[:2]], (InviteError,), form=PROTOBUF),
    Target(
        "invite-link",
        lambda data: read_invite(data.decode(errors="replace"), NOW),
        lambda: [invite_link(sealed).encode() for sealed in _invites()],
        (InviteError,),
        lambda invite: invite_link(invite.sealed).encode(),
    ),
    message("admission-request", _requests()),
    Target("admission", _ask, lambda: [_requests().encode()], form=PROTOBUF),
    message(
        "admission-reply",
        Admitted(world().chain(0), world().authority.certificate, NOW),
        Admitted(world().chain(1, delegated=True), b"x", NOW),
    ),
    Target("admission-ledger", _ledger, _ledger_seeds, (LocalProtocolError,), form=PROTOBUF),
)
