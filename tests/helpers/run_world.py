"""A run with an authority, delegates and members, all made from small numbers: the same in every test."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peers.credentials import MemberCredentials, TlsKey
from peers.identity import Identity
from protocols.certificate_chain import CertificateChain
from protocols.ids import RunId, SwarmTime
from protocols.invite import TOKEN_BYTES, Invite, open_invite, seal_invite
from protocols.issuing import Issuer, issue_delegate, issue_member_certificate, make_run_ca
from protocols.runspec import RunSpec, SignedRunSpec
from protocols.signing import Sealer

NOW = SwarmTime(1_800_000_000.0)
DAY_S = 86_400.0
ADDRESS = "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWAAAA"


@dataclass
class FixedClock:
    """A `Clock` that tests set."""

    time: SwarmTime = NOW

    def now(self) -> SwarmTime:
        return self.time


def ed25519(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


def identity(number: int) -> Identity:
    return Identity(ed25519(1000 + number))


def tls_key(number: int) -> TlsKey:
    return TlsKey(derive_private_key(7000 + number, SECP256R1()))


def toml(mode: str = "private", name: str = "test-run") -> str:
    return f'[run]\nname = "{name}"\n[model]\npreset = "tiny"\n[admission]\nmode = "{mode}"\n'


class RunWorld:
    """One run: its authority (number), root certificate, and whatever it issues."""

    def __init__(
        self, number: int = 1, mode: str = "private", not_before: float = NOW - DAY_S, not_after: float = NOW + 365 * DAY_S
    ) -> None:
        self.key = ed25519(number)
        self.not_before, self.not_after = SwarmTime(not_before), SwarmTime(not_after)
        run_ca = make_run_ca(self.key, "test-run", number, self.not_before, self.not_after)
        self.authority = Issuer(self.key, run_ca)
        self.signed_spec = SignedRunSpec.sign(RunSpec.from_toml(toml(mode)), self.authority)

    @property
    def run(self) -> RunId:
        return self.signed_spec.run_id

    @property
    def authority_key(self) -> bytes:
        return self.authority.public_key

    @property
    def run_ca(self) -> bytes:
        return self.authority.certificate

    def delegate(self, number: int = 1, not_after: float | None = None) -> Issuer:
        key = ed25519(500 + number)
        ends = self.not_after if not_after is None else SwarmTime(not_after)
        public_key = key.public_key().public_bytes_raw()
        return Issuer(key, issue_delegate(self.authority, public_key, 500 + number, self.not_before, ends))

    def chain(self, number: int, issuer: Issuer | None = None, not_after: float | None = None) -> CertificateChain:
        key = tls_key(number).claimed_by(identity(number), self.run)
        ends = self.not_after if not_after is None else SwarmTime(not_after)
        return issue_member_certificate(issuer or self.authority, key, self.run, 100 + number, self.not_before, ends)

    def credentials(self, number: int, issuer: Issuer | None = None) -> MemberCredentials:
        return MemberCredentials.verified(self.run, self.authority_key, tls_key(number), self.chain(number, issuer), self.run_ca)

    def sealer(self, number: int, issuer: Issuer | None = None) -> Sealer:
        return Sealer(identity(number), self.chain(number, issuer).to_bytes(), self.run)

    def invite(self, **changes: object) -> Invite:
        """An invite as it was written, without a delegate unless `changes` say so."""
        plain = Invite(self.run, "test-run", self.authority_key, (ADDRESS,), b"t" * TOKEN_BYTES, SwarmTime(NOW + DAY_S))
        return replace(plain, **changes)  # type: ignore[arg-type]

    def open_run_invite(self, **changes: object) -> Invite:
        delegate = self.delegate()
        seed = delegate.private_key.private_bytes_raw()
        return self.invite(delegate_certificate=delegate.certificate, delegate_seed=seed, **changes)

    def received(self, invite: Invite, signer: Issuer | None = None) -> Invite:
        """The invite as a joiner reads it."""
        return open_invite(seal_invite(invite, signer or self.authority), NOW)
