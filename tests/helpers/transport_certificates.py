"""Run authorities and member certificates for transport tests: what `peers.credentials` does, reduced to what TLS looks at."""

from __future__ import annotations

import base64
import datetime
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from peers.transport.membership import MembershipProof
from peers.transport.tls import TlsCredentials
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId

BINDING_OID = x509.ObjectIdentifier("1.3.6.1.4.1.99999.7")
_START = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_END = datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC)


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def spki(certificate_key: ec.EllipticCurvePublicKey) -> bytes:
    return certificate_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def authenticate(leaf_pem: bytes) -> PeerId:
    """The identity named by the leaf's DNS name, if it signed the leaf's key."""
    try:
        leaf = x509.load_pem_x509_certificate(leaf_pem)
        name = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)[0]
        label = name.removesuffix(".swarm").upper()
        peer = PeerId(base64.b32decode(label + "=" * (-len(label) % 8)))
        binding = leaf.extensions.get_extension_for_oid(BINDING_OID).value
        key = leaf.public_key()
        if not isinstance(binding, x509.UnrecognizedExtension) or not isinstance(key, ec.EllipticCurvePublicKey):
            raise TypeError("wrong kind of extension or key")
        Ed25519PublicKey.from_public_bytes(peer.public_key).verify(binding.value, spki(key))
    except (ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature) as error:
        raise RemoteProtocolError(None, f"bad certificate: {error!r}") from None
    return peer


@dataclass
class Member:
    """A peer with its credentials."""

    peer: PeerId
    credentials: TlsCredentials
    leaf_pem: bytes
    proof: MembershipProof


@dataclass
class RunAuthority:
    """Ed25519 CA of one run; certifies members."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    banned: set[PeerId] = field(default_factory=set)

    @property
    def name(self) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "run " + public_bytes(self.key).hex()[:12])])

    def ca_pem(self) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.name)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(_START)
            .not_valid_after(_END)
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        )
        return builder.sign(self.key, None).public_bytes(serialization.Encoding.PEM)

    def certify(self, identity: Ed25519PrivateKey | None = None, *, claims: PeerId | None = None) -> Member:
        """A new certificate, of a new member unless `identity` is given. With `claims` it names somebody else, as a forger's would."""
        identity = identity or Ed25519PrivateKey.generate()
        peer = claims or PeerId(public_bytes(identity))
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_START)
            .not_valid_after(_END)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(peer.tls_name)]), critical=True)
            .add_extension(x509.UnrecognizedExtension(BINDING_OID, identity.sign(spki(key.public_key()))), critical=False)
        )
        leaf_pem = builder.sign(self.key, None).public_bytes(serialization.Encoding.PEM)
        key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        credentials = TlsCredentials(key_pem, leaf_pem, self.ca_pem(), authenticate, lambda other: other in self.banned)
        return Member(peer, credentials, leaf_pem, MembershipProof(leaf_pem, self.authenticate_chain, lambda other: other in self.banned))

    def authenticate_chain(self, leaf_pem: bytes) -> PeerId:
        """As `authenticate`, and TLS's part too: that this run issued the leaf."""
        try:
            leaf = x509.load_pem_x509_certificate(leaf_pem)
            leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(self.ca_pem()))
        except (ValueError, TypeError, InvalidSignature) as error:
            raise RemoteProtocolError(None, f"not a certificate of this run: {error!r}") from None
        return authenticate(leaf_pem)
