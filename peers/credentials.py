"""A member's TLS key and membership certificate: made, kept on disk, checked, and turned into what the data plane needs.

<state_dir>/tls.key       P-256 private key, PEM, mode 0600; made once and certified anew when its certificate has run out
<state_dir>/tls.pem       the membership certificate, and the delegate's that issued it if one did
<state_dir>/run/ca.pem    the run's root
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key

from peers.identity import Identity
from peers.interfaces import Clock
from peers.private_files import PUBLIC_MODE, make_private_dir, read_bounded, write_atomic
from peers.transport.membership import MembershipProof
from peers.transport.tls import TlsCredentials
from protocols.certificate import MemberKey, Membership, binding_statement, membership_checker, read_leaf, read_membership, verify_run_ca
from protocols.certificate_chain import MAX_CERTIFICATE_BYTES, MAX_CHAIN, CertificateChain, ders_from_pem, pem_from_der
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId, RunId, SwarmTime
from protocols.signing import Sealer

log = logging.getLogger(__name__)

RENEW_BEFORE_S = 3600.0
"""A certificate that ends sooner than this is not worth starting with."""

_MAX_PEM_BYTES = 2 * MAX_CHAIN * MAX_CERTIFICATE_BYTES
_KEY_FILE = "tls.key"
_CHAIN_FILE = "tls.pem"
_CA_FILE = "run/ca.pem"


@dataclass(frozen=True, slots=True)
class TlsKey:
    """A P-256 key for TLS (gRPC refuses Ed25519 there)."""

    private_key: EllipticCurvePrivateKey = field(repr=False)

    @property
    def private_pem(self) -> bytes:
        """PKCS #8, unencrypted."""
        return self.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def public_der(self) -> bytes:
        """SubjectPublicKeyInfo."""
        return self.private_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def claimed_by(self, identity: Identity, run: RunId) -> MemberKey:
        """This key with the identity's signature that it is its own."""
        return MemberKey(identity.peer, self.public_der, identity.sign(binding_statement(run, self.public_der)))

    @classmethod
    def generate(cls) -> TlsKey:
        """A new one, kept nowhere."""
        return cls(generate_private_key(SECP256R1()))

    @classmethod
    def load_or_create(cls, state_dir: Path) -> TlsKey:
        """The TLS key of a state directory; made the first time, and again if the file is damaged: it only costs a new certificate.

        Raises:
            StateDirError: the directory is not writable, or others can read the key.
        """
        make_private_dir(state_dir)
        path = state_dir / _KEY_FILE
        pem = read_bounded(path, _MAX_PEM_BYTES, private=True)
        if pem is not None:
            try:
                private_key = load_pem_private_key(pem, password=None)
            except (ValueError, TypeError):
                log.warning("TLS key is damaged and will be replaced: path=%s", path)
            else:
                if isinstance(private_key, EllipticCurvePrivateKey) and isinstance(private_key.curve, SECP256R1):
                    return cls(private_key)
        key = cls.generate()
        write_atomic(path, key.private_pem)
        return key


@dataclass(frozen=True, slots=True)
class MemberCredentials:
    """What makes us a member of a run. Verified when made by `verified`.

    Args:
        membership: who we are and how long it holds.
        run: the run.
        authority_key: its authority, 32 raw bytes.
        tls_key: our TLS key.
        chain: our certificate.
        run_ca: the run's root, DER.
    """

    membership: Membership
    run: RunId
    authority_key: bytes
    tls_key: TlsKey
    chain: CertificateChain
    run_ca: bytes

    @classmethod
    def verified(cls, run: RunId, authority_key: bytes, tls_key: TlsKey, chain: CertificateChain, run_ca: bytes) -> MemberCredentials:
        """Put credentials together after checking that they belong together.

        Raises:
            RemoteProtocolError: a certificate does not hold, or certifies another key.
        """
        verify_run_ca(run_ca, authority_key)
        membership = read_membership(chain, authority_key, run)
        if membership.tls_public_key != tls_key.public_der:
            raise RemoteProtocolError(membership.peer, "a membership certificate for another TLS key")
        return cls(membership, run, authority_key, tls_key, chain, run_ca)

    @property
    def peer(self) -> PeerId:
        """Who we are."""
        return self.membership.peer

    @property
    def run_ca_pem(self) -> bytes:
        """The run's root."""
        return pem_from_der(self.run_ca)

    def usable(self, identity: Identity, now: SwarmTime) -> bool:
        """Whether they are this identity's and last for a while yet."""
        dates = self.membership
        return dates.peer == identity.peer and dates.not_before <= now <= dates.not_after - RENEW_BEFORE_S

    def sealer(self, identity: Identity) -> Sealer:
        """What signs our records and messages."""
        return Sealer(identity, self.chain.to_bytes(), self.run)

    def tls(self, clock: Clock, is_banned: Callable[[PeerId], bool]) -> TlsCredentials:
        """What the data plane needs."""
        authenticate = member_authenticator(self.run_ca_pem, self.run, clock)
        return TlsCredentials(self.tls_key.private_pem, self.chain.pem, self.run_ca_pem, authenticate, is_banned)

    def proof(self, clock: Clock, is_banned: Callable[[PeerId], bool]) -> MembershipProof:
        """The same for connections that prove only who we are."""
        check = membership_checker(self.run, self.authority_key)
        return MembershipProof(self.chain.to_bytes(), lambda chain: check(chain, clock.now()), is_banned)

    def save(self, state_dir: Path) -> None:
        """Keep them for the next start.

        Raises:
            StateDirError: not writable.
        """
        make_private_dir(state_dir / "run")
        write_atomic(state_dir / _KEY_FILE, self.tls_key.private_pem)
        write_atomic(state_dir / _CA_FILE, self.run_ca_pem, PUBLIC_MODE)
        write_atomic(state_dir / _CHAIN_FILE, self.chain.pem, PUBLIC_MODE)

    @classmethod
    def load(cls, state_dir: Path, run: RunId, authority_key: bytes) -> MemberCredentials | None:
        """What `save` kept; None if there is nothing that holds for this run, since the remedy is the same: ask for admission.

        Raises:
            StateDirError: a file cannot be read, or others can read the private key.
        """
        chain_pem = read_bounded(state_dir / _CHAIN_FILE, _MAX_PEM_BYTES, private=False)
        ca_pem = read_bounded(state_dir / _CA_FILE, _MAX_PEM_BYTES, private=False)
        if chain_pem is None or ca_pem is None:
            return None
        tls_key = TlsKey.load_or_create(state_dir)
        try:
            (run_ca,) = ders_from_pem(ca_pem)
            return cls.verified(run, authority_key, tls_key, CertificateChain.from_pem(chain_pem), run_ca)
        except (ValueError, RemoteProtocolError) as error:
            log.warning("kept credentials do not hold and are not used: state_dir=%s reason=%s", state_dir, error)
            return None


def member_authenticator(run_ca_pem: bytes, run: RunId, clock: Clock, cache_size: int = 1024) -> Callable[[bytes], PeerId]:
    """What a gRPC server asks about a caller whose chain TLS has verified up to the run's root.

    Args:
        run_ca_pem: the run's root.
        run: the run.
        clock: for dates; a connection may outlive its certificate.
        cache_size: good certificates to remember.

    Returns:
        Leaf certificate (PEM) -> peer; raises RemoteProtocolError if the leaf is not bound to the peer that it names, or has expired.

    Raises:
        ValueError: `run_ca_pem` is not one certificate.
    """
    (run_ca,) = ders_from_pem(run_ca_pem)

    @lru_cache(maxsize=cache_size)
    def verified(leaf_pem: bytes) -> Membership:
        try:
            leaf, *_ = ders_from_pem(leaf_pem)
        except ValueError as error:
            raise RemoteProtocolError(None, f"a TLS certificate that cannot be read: {error}") from error
        return read_leaf(leaf, run, run_ca)

    def authenticate(leaf_pem: bytes) -> PeerId:
        membership = verified(leaf_pem)
        membership.require_current(clock.now())
        return membership.peer

    return authenticate
