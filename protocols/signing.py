"""Signed envelopes: who says what, in which run, from when until when.

An envelope is its signed part followed by a 64-byte Ed25519 signature over exactly those bytes, so nothing in it can be changed, added or
read in two ways. The signed part is length-prefixed fields (`protocols.canonical`):

    domain | kind | run fingerprint | signer's public key | issued at | expires at | signer's certificate chain | payload

The certificate chain travels along because a reader may never have heard of the signer; what it must prove is up to the reader
(`MembershipCheck`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protocols.canonical import pack_fields, pack_time, unpack_fields, unpack_time
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import PUBLIC_KEY_BYTES, PeerId, RunId, SwarmTime

CLOCK_SKEW_S = 3.0
"""How far two members' clocks may differ: NTP keeps them within 0.1 s, and what is older than this is not live."""

MAX_ENVELOPE_BYTES = 4 * 2**20
MAX_KIND_BYTES = 64
SIGNATURE_BYTES = 64

_DOMAIN = b"swarm.v1.envelope"
_FIELDS = 8


class Signer(Protocol):
    """Holds an Ed25519 private key."""

    @property
    def public_key(self) -> bytes:
        """32 raw bytes."""

    def sign(self, message: bytes) -> bytes:
        """64-byte Ed25519 signature."""


MembershipCheck = Callable[[bytes, SwarmTime], PeerId]
"""(certificate chain bytes, now) -> the member it was issued to. Raises RemoteProtocolError. See `protocols.certificate`."""


def verify_signature(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether this is the Ed25519 signature of that key over that message. Malformed keys and signatures are simply wrong."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Envelope:
    """A verified statement.

    Args:
        kind: what the payload is, e.g. "join"; at most 64 bytes.
        run: the run it was made in.
        signer: whose statement it is.
        issued_at, expires_at: when it may be believed, to the millisecond.
        certificate: the signer's certificate chain, as `CertificateChain.to_bytes` writes it.
        payload: the statement.
    """

    kind: str
    run: RunId
    signer: PeerId
    issued_at: SwarmTime
    expires_at: SwarmTime
    certificate: bytes
    payload: bytes

    def signed_part(self) -> bytes:
        """The exact bytes that the signature covers."""
        return pack_fields(
            _DOMAIN,
            self.kind.encode(),
            self.run.digest,
            self.signer.public_key,
            pack_time(self.issued_at),
            pack_time(self.expires_at),
            self.certificate,
            self.payload,
        )


@dataclass(frozen=True, slots=True)
class Sealer:
    """Signs as one member of one run.

    Args:
        signer: the member's identity key.
        certificate: its certificate chain, as `CertificateChain.to_bytes` writes it.
        run: the run it speaks in.
    """

    signer: Signer
    certificate: bytes
    run: RunId

    def seal(self, kind: str, payload: bytes, issued_at: SwarmTime, lifetime_s: float) -> bytes:
        """Sign a payload.

        Args:
            kind: what the payload is.
            payload: any bytes.
            issued_at: now.
            lifetime_s: seconds until nobody believes it any more.

        Raises:
            LocalProtocolError: what we were about to sign would be refused.
        """
        expires_at = SwarmTime(issued_at + lifetime_s)
        try:
            envelope = Envelope(kind, self.run, PeerId(self.signer.public_key), issued_at, expires_at, self.certificate, payload)
            body = envelope.signed_part()
        except ValueError as error:
            raise LocalProtocolError(f"cannot seal: {error}") from error
        if not 0 < len(kind.encode()) <= MAX_KIND_BYTES or lifetime_s <= 0 or len(body) + SIGNATURE_BYTES > MAX_ENVELOPE_BYTES:
            raise LocalProtocolError(f"cannot seal {len(payload)} bytes of kind {kind!r} for {lifetime_s} s")
        return body + self.signer.sign(body)


def verify_envelope(data: bytes, kind: str, run: RunId, now: SwarmTime, membership: MembershipCheck) -> Envelope:
    """Read and check an envelope.

    Args:
        data: as received.
        kind, run: what it must be and belong to.
        now: our clock; `CLOCK_SKEW_S` is forgiven at both ends.
        membership: names the member that a certificate was issued to.

    Raises:
        RemoteProtocolError: anything is wrong; names the signer only once its signature has been verified.
    """
    envelope, signed = _read(data)
    if not verify_signature(envelope.signer.public_key, data[-SIGNATURE_BYTES:], signed):
        raise RemoteProtocolError(None, f"a signature that is not {envelope.signer.short}'s")
    signer = envelope.signer
    if envelope.kind != kind:
        raise RemoteProtocolError(signer, f"an envelope of kind {envelope.kind!r} where {kind!r} was expected")
    if envelope.run != run:
        raise RemoteProtocolError(signer, f"an envelope of run {envelope.run.short}, not of {run.short}")
    if envelope.issued_at > now + CLOCK_SKEW_S:
        raise RemoteProtocolError(signer, f"an envelope issued {envelope.issued_at - now:.1f} s in the future")
    if envelope.expires_at < now - CLOCK_SKEW_S:
        raise RemoteProtocolError(signer, f"an envelope that expired {now - envelope.expires_at:.1f} s ago")
    member = membership(envelope.certificate, now)
    if member != signer:
        raise RemoteProtocolError(signer, f"an envelope with the certificate of {member.short}")
    return envelope


def open_envelope(data: bytes, kind: str, run: RunId, now: SwarmTime, membership: MembershipCheck) -> tuple[PeerId, bytes]:
    """As `verify_envelope`, for those who want only (who, what)."""
    envelope = verify_envelope(data, kind, run, now, membership)
    return envelope.signer, envelope.payload


def open_old_envelope(data: bytes, kind: str, run: RunId, now: SwarmTime, membership: MembershipCheck) -> tuple[PeerId, bytes]:
    """As `open_envelope` for evidence, which is believed however old it is: everything must have been in order when it was signed.

    Raises:
        RemoteProtocolError: as `verify_envelope`; an envelope from the future is none of old.
    """
    envelope, _ = _read(data)
    then = min(envelope.issued_at, SwarmTime(now + CLOCK_SKEW_S))
    envelope = verify_envelope(data, kind, run, then, membership)
    return envelope.signer, envelope.payload


def _read(data: bytes) -> tuple[Envelope, bytes]:
    """Parse without believing; returns the envelope and its signed part."""
    if len(data) > MAX_ENVELOPE_BYTES:
        raise RemoteProtocolError(None, f"an envelope of {len(data)} bytes is too large")
    signed = data[:-SIGNATURE_BYTES]
    try:
        fields = unpack_fields(signed, _FIELDS)
        if len(fields) != _FIELDS or fields[0] != _DOMAIN:
            raise ValueError("not the fields of an envelope")
        _, kind, run, signer, issued, expires, certificate, payload = fields
        if not 0 < len(kind) <= MAX_KIND_BYTES or len(signer) != PUBLIC_KEY_BYTES:
            raise ValueError("a field of the wrong length")
        envelope = Envelope(
            kind.decode("ascii"), RunId(run), PeerId(signer), unpack_time(issued), unpack_time(expires), certificate, payload
        )
        if envelope.expires_at <= envelope.issued_at:
            raise ValueError("it expires before it was issued")
    except ValueError as error:
        raise RemoteProtocolError(None, f"these bytes are not an envelope: {error}") from error
    return envelope, signed
