"""The run's own X.509 authority, and the membership certificates that bind a TLS key to a peer: what they look like and how to check them.

    run CA (Ed25519, self-signed; its key is the run authority)
    ├── member leaf (P-256)                               issued by the authority itself
    └── delegate CA (Ed25519, may issue leaves only)      how others admit; in an open run its key is inside the invite
        └── member leaf (P-256)

gRPC accepts an Ed25519-signed chain as long as the leaf's own key is P-256. The leaf's DNS name is `PeerId.tls_name`, and a private
extension holds the peer's Ed25519 signature over (run, leaf public key). So an issuer can refuse a peer but cannot impersonate it.
Certificates are made in `protocols.issuing`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.utils import CryptographyDeprecationWarning

from protocols.canonical import pack_fields
from protocols.certificate_chain import MAX_CERTIFICATE_BYTES, CertificateChain
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId, RunId, SwarmTime
from protocols.signing import CLOCK_SKEW_S, MembershipCheck, verify_signature

IDENTITY_EXTENSION = x509.ObjectIdentifier("2.25.248146917308911476043185203154318410113")
"""A UUID under the arc that needs no registration (X.667)."""

DER_OCTET_STRING_64 = b"\x04\x40"
"""What precedes 64 bytes in DER."""

MAX_VALIDITY_LEAD_S = 3600.0
"""How far before now certificates begin: TLS libraries check dates without any tolerance, and clocks are off at times."""

_TLS_SUFFIX = ".swarm"
# Whatever `cryptography` raises on certificates that are damaged or strange; tests change every byte.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    CryptographyDeprecationWarning,  # where warnings are errors: a serial number that is not positive
)

_ED25519_SIGNATURE_HEADER = bytes.fromhex("300506032b6570034100")
"""AlgorithmIdentifier Ed25519, then a bit string of 64 whole bytes: how an Ed25519-signed certificate goes on after its signed part."""


@dataclass(frozen=True, slots=True)
class MemberKey:
    """A TLS key that a peer claims as its own.

    Args:
        peer: who claims it.
        tls_public_key: SubjectPublicKeyInfo (DER) of a P-256 key.
        binding: the peer's Ed25519 signature over `binding_statement` of the run and that key.
    """

    peer: PeerId
    tls_public_key: bytes
    binding: bytes


def binding_statement(run: RunId, tls_public_key: bytes) -> bytes:
    """What a peer signs to say "this TLS key (DER) is mine in this run"."""
    return pack_fields(b"swarm.v1.tls-key", run.digest, tls_public_key)


def binding_holds(key: MemberKey, run: RunId) -> bool:
    """Whether the peer itself claims that key, and the key is P-256."""
    try:
        tls_key = load_der_public_key(key.tls_public_key)
    except _UNREADABLE:
        return False
    if not isinstance(tls_key, EllipticCurvePublicKey) or not isinstance(tls_key.curve, SECP256R1):
        return False
    # The one true encoding: otherwise the bytes that were signed would not be those that end up in the certificate.
    if tls_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != key.tls_public_key:
        return False
    return verify_signature(key.peer.public_key, key.binding, binding_statement(run, key.tls_public_key))


@dataclass(frozen=True, slots=True)
class Membership:
    """What a verified chain says.

    Args:
        peer: the member.
        tls_public_key: SubjectPublicKeyInfo (DER) of its leaf.
        not_before, not_after: when all of the chain is valid.
    """

    peer: PeerId
    tls_public_key: bytes
    not_before: SwarmTime
    not_after: SwarmTime

    def require_current(self, now: SwarmTime) -> None:
        """Check the dates, forgiving `CLOCK_SKEW_S`.

        Raises:
            RemoteProtocolError: not yet or no longer valid.
        """
        if now < self.not_before - CLOCK_SKEW_S:
            raise RemoteProtocolError(self.peer, "a membership certificate that is not valid yet")
        if now > self.not_after + CLOCK_SKEW_S:
            raise RemoteProtocolError(self.peer, "a membership certificate that has expired")


def read_membership(chain: CertificateChain, authority_key: bytes, run: RunId) -> Membership:
    """Check all of a chain but its dates.

    Raises:
        RemoteProtocolError: any signature, name, usage or constraint is wrong.
    """
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain.certificates]
        issuer_key = authority_key
        for delegate in reversed(certificates[1:]):
            _require_signed(delegate, issuer_key)
            if not may_sign(delegate, path_length=0):
                raise ValueError("its issuer may not issue certificates")
            issuer_key = _ed25519_key(delegate)
        _require_signed(certificates[0], issuer_key)
        bound = _bound_key(certificates[0], run)
        begins, ends = _dates(certificates)
    except _UNREADABLE as error:
        raise RemoteProtocolError(None, f"a certificate that does not prove membership: {error}") from error
    return Membership(bound.peer, bound.tls_public_key, begins, ends)


def verify_member_certificate(chain: CertificateChain, authority_key: bytes, run: RunId, now: SwarmTime) -> PeerId:
    """Who a certificate chain was issued to.

    Args:
        chain: leaf, and its delegate if there is one.
        authority_key: 32 raw bytes.
        run: the run it must belong to.
        now: our clock.

    Raises:
        RemoteProtocolError: it proves nothing.
    """
    membership = read_membership(chain, authority_key, run)
    membership.require_current(now)
    return membership.peer


def membership_checker(run: RunId, authority_key: bytes, cache_size: int = 1024) -> MembershipCheck:
    """`verify_member_certificate` for envelopes: remembers the last `cache_size` good chains, and checks dates every time."""

    @lru_cache(maxsize=cache_size)
    def verified(chain: bytes) -> Membership:
        try:
            certificates = CertificateChain.from_bytes(chain)
        except ValueError as error:
            raise RemoteProtocolError(None, f"a certificate chain that cannot be read: {error}") from error
        return read_membership(certificates, authority_key, run)

    def check(chain: bytes, now: SwarmTime) -> PeerId:
        membership = verified(chain)
        membership.require_current(now)
        return membership.peer

    return check


def read_leaf(leaf: bytes, run: RunId, run_ca: bytes) -> Membership:
    """Who a leaf names whose chain TLS has verified: all that is left to check is the peer's own signature in it.

    Args:
        leaf: DER.
        run: the run it must be bound to.
        run_ca: DER; where it issued the leaf directly, its signature is checked once more.

    Raises:
        RemoteProtocolError: the leaf is not bound to the peer that it names.
    """
    try:
        certificate = x509.load_der_x509_certificate(leaf)
        authority = x509.load_der_x509_certificate(run_ca)
        if certificate.issuer == authority.subject:
            _require_signed(certificate, _ed25519_key(authority))
        bound = _bound_key(certificate, run)
        begins, ends = _dates([certificate])
    except _UNREADABLE as error:
        raise RemoteProtocolError(None, f"a TLS certificate that is not bound to a peer: {error}") from error
    return Membership(bound.peer, bound.tls_public_key, begins, ends)


def verify_run_ca(run_ca: bytes, authority_key: bytes) -> None:
    """Check that a certificate (DER) is the root of the run with that authority.

    Raises:
        RemoteProtocolError: it is not.
    """
    try:
        if len(run_ca) > MAX_CERTIFICATE_BYTES:
            raise ValueError("it is too large")
        certificate = x509.load_der_x509_certificate(run_ca)
        _require_signed(certificate, authority_key)
        if (
            _ed25519_key(certificate) != authority_key
            or certificate.subject != certificate.issuer
            or not may_sign(certificate, path_length=1)
        ):
            raise ValueError("it is not a root")
    except _UNREADABLE as error:
        raise RemoteProtocolError(None, f"a run certificate that is not the authority's: {error}") from error


def verify_delegate(delegate: bytes, authority_key: bytes, now: SwarmTime) -> bytes:
    """Check a delegate's certificate (DER) and return its Ed25519 public key (32 bytes).

    Raises:
        RemoteProtocolError: the authority did not appoint it, or no longer.
    """
    try:
        if len(delegate) > MAX_CERTIFICATE_BYTES:
            raise ValueError("it is too large")
        certificate = x509.load_der_x509_certificate(delegate)
        _require_signed(certificate, authority_key)
        if not may_sign(certificate, path_length=0):
            raise ValueError("it may not issue certificates")
        begins, ends = _dates([certificate])
        if not begins - CLOCK_SKEW_S <= now <= ends + CLOCK_SKEW_S:
            raise ValueError("it is not valid at this time")
        return _ed25519_key(certificate)
    except _UNREADABLE as error:
        raise RemoteProtocolError(None, f"a delegate's certificate that does not hold: {error}") from error


def may_sign(certificate: x509.Certificate, path_length: int) -> bool:
    """Whether a certificate is a CA's that may have exactly so many CAs below it.

    Raises:
        ValueError, ExtensionNotFound: it does not say.
    """
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    return constraints.ca and constraints.path_length == path_length and usage.key_cert_sign


def _require_signed(certificate: x509.Certificate, issuer_key: bytes) -> None:
    signed, signature = certificate.tbs_certificate_bytes, certificate.signature
    # Nothing outside the signed part may vary: one certificate has one form.
    if not certificate.public_bytes(Encoding.DER).endswith(signed + _ED25519_SIGNATURE_HEADER + signature):
        raise ValueError("it is not signed with Ed25519")
    if not verify_signature(issuer_key, signature, signed):
        raise ValueError("its issuer did not sign it")
    if certificate.serial_number <= 0:
        raise ValueError("its serial number is not positive")


def _ed25519_key(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("its key is not Ed25519")
    return key.public_bytes_raw()


def _bound_key(leaf: x509.Certificate, run: RunId) -> MemberKey:
    """The key in a leaf and the peer that the leaf names, after checking that the peer itself signed the leaf's key for this run."""
    extensions = leaf.extensions
    if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise ValueError("it is an issuer's, not a member's")
    if not extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
        raise ValueError("its key may not sign")
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    dns_names = names.get_values_for_type(x509.DNSName)
    if len(names) != 1 or len(dns_names) != 1:
        raise ValueError("it does not name exactly one peer")
    peer = _peer_named(dns_names[0])
    identity = extensions.get_extension_for_oid(IDENTITY_EXTENSION).value
    value = identity.value if isinstance(identity, x509.UnrecognizedExtension) else b""
    spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key = MemberKey(peer, spki, value.removeprefix(DER_OCTET_STRING_64))
    if not value.startswith(DER_OCTET_STRING_64) or not binding_holds(key, run):
        raise ValueError("the peer it names has not signed its key for this run")
    return key


def _peer_named(dns_name: str) -> PeerId:
    """Inverse of `PeerId.tls_name`."""
    encoded = dns_name.removesuffix(_TLS_SUFFIX).upper()
    try:
        peer = PeerId(base64.b32decode(encoded + "=" * (-len(encoded) % 8)))
    except binascii.Error as error:
        raise ValueError("its name is not a peer's") from error
    if peer.tls_name != dns_name:
        raise ValueError("its name is not a peer's")
    return peer


def _dates(certificates: Sequence[x509.Certificate]) -> tuple[SwarmTime, SwarmTime]:
    begins = max(certificate.not_valid_before_utc.timestamp() for certificate in certificates)
    ends = min(certificate.not_valid_after_utc.timestamp() for certificate in certificates)
    return SwarmTime(begins), SwarmTime(ends)
