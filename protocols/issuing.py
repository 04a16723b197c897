"""Making the certificates that `protocols.certificate` describes: the run's root, its delegates, its members."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocols.canonical import digest
from protocols.certificate import DER_OCTET_STRING_64, IDENTITY_EXTENSION, MemberKey, binding_holds, may_sign
from protocols.certificate_chain import CertificateChain
from protocols.errors import LocalProtocolError
from protocols.ids import RunId, SwarmTime


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whoever may issue membership certificates: the run authority, or a delegate it certified.

    Args:
        private_key: of the authority or the delegate.
        certificate: DER of the run CA, or of the delegate.
    """

    private_key: Ed25519PrivateKey
    certificate: bytes

    def __repr__(self) -> str:
        return f"Issuer({self.public_key.hex()[:12]})"

    @property
    def public_key(self) -> bytes:
        """32 raw bytes."""
        return self.private_key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """64-byte Ed25519 signature: an issuer is a `Signer` too, for specs and invites."""
        return self.private_key.sign(message)


def serial_for(*fields: bytes) -> int:
    """A positive serial number below 2^159 that follows from the fields: unique without a random source."""
    return int.from_bytes(digest(b"swarm.v1.serial", *fields)[:19], "big") + 1


def make_run_ca(authority: Ed25519PrivateKey, run_name: str, serial: int, not_before: SwarmTime, not_after: SwarmTime) -> bytes:
    """The run's root certificate (DER), signed by the authority itself.

    Args:
        authority: the run authority's key.
        run_name: at most 64 characters; for people who look at the certificate.
        serial: positive, below 2^159.
        not_before, not_after: validity, cut to whole seconds.
    """
    name = _name(run_name)
    builder = _builder(name, name, serial, not_before, not_after).public_key(authority.public_key())
    return _with_ca_extensions(builder, path_length=1).sign(authority, None).public_bytes(Encoding.DER)


def issue_delegate(authority: Issuer, delegate: bytes, serial: int, not_before: SwarmTime, not_after: SwarmTime) -> bytes:
    """Certificate (DER) that lets another key admit members, but not appoint delegates of its own.

    Args:
        authority: the run authority; a delegate's certificates would be refused by everybody.
        delegate: 32 raw bytes of its Ed25519 public key.
        serial, not_before, not_after: as for `make_run_ca`.

    Raises:
        LocalProtocolError: the issuer is a delegate itself.
    """
    parent = x509.load_der_x509_certificate(authority.certificate)
    if not may_sign(parent, path_length=1):
        raise LocalProtocolError("only the run authority can appoint delegates")
    subject = _name(f"delegate {delegate.hex()[:16]}")
    builder = _builder(subject, parent.subject, serial, not_before, not_after).public_key(Ed25519PublicKey.from_public_bytes(delegate))
    return _with_ca_extensions(builder, path_length=0).sign(authority.private_key, None).public_bytes(Encoding.DER)


def issue_member_certificate(
    issuer: Issuer, key: MemberKey, run: RunId, serial: int, not_before: SwarmTime, not_after: SwarmTime
) -> CertificateChain:
    """Certify that a peer is a member of a run.

    Args:
        issuer: the authority or a delegate.
        key: the peer's TLS key and its claim to it.
        run: the run.
        serial, not_before, not_after: as for `make_run_ca`; validity is cut to the issuer's own.

    Returns:
        The leaf, and the delegate's certificate if a delegate issued it.

    Raises:
        LocalProtocolError: the peer's claim does not hold; callers check that before.
    """
    if not binding_holds(key, run):
        raise LocalProtocolError(f"{key.peer.short} has not signed the TLS key to be certified")
    parent = x509.load_der_x509_certificate(issuer.certificate)
    ends_at = SwarmTime(min(not_after, parent.not_valid_after_utc.timestamp()))
    tls_key = load_der_public_key(key.tls_public_key)
    if not isinstance(tls_key, EllipticCurvePublicKey):
        raise LocalProtocolError("a TLS key must be P-256")
    builder = _builder(_name(str(key.peer)), parent.subject, serial, not_before, ends_at).public_key(tls_key)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(ca=False), critical=True)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(key.peer.tls_name)]), critical=False)
    identity = x509.UnrecognizedExtension(IDENTITY_EXTENSION, DER_OCTET_STRING_64 + key.binding)
    leaf = builder.add_extension(identity, critical=False).sign(issuer.private_key, None).public_bytes(Encoding.DER)
    delegated = not may_sign(parent, path_length=1)
    return CertificateChain((leaf, issuer.certificate) if delegated else (leaf,))


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, serial: int, not_before: SwarmTime, not_after: SwarmTime) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).serial_number(serial)
    return builder.not_valid_before(_date(not_before)).not_valid_after(_date(not_after))


def _date(time: SwarmTime) -> datetime:
    return datetime.fromtimestamp(int(time), UTC)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _with_ca_extensions(builder: x509.CertificateBuilder, path_length: int) -> x509.CertificateBuilder:
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    return builder.add_extension(_key_usage(ca=True), critical=True)
