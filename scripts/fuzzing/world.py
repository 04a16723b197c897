"""One run with an authority, a delegate and members, made from small numbers: seeds are the same in every process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key

from peers.credentials import TlsKey
from peers.identity import Identity
from peers.testing import make_key
from protocols.canonical import pack_fields, unpack_fields
from protocols.certificate_chain import CertificateChain
from protocols.ids import PeerId, RunId, SwarmTime
from protocols.issuing import Issuer, issue_delegate, issue_member_certificate, make_run_ca
from protocols.runspec import RunSpec, SignedRunSpec
from protocols.signing import Sealer
from scripts.fuzzing.formats import DER
from scripts.fuzzing.target import NotAnInput

NOW = SwarmTime(1_800_000_000.0)
_BEGINS, _ENDS = SwarmTime(NOW - 86_400.0), SwarmTime(NOW + 30 * 86_400.0)
_DELEGATE, _MEMBERS = 500, 1000
_MAX_ITEMS = 4096
_ED25519 = bytes.fromhex("300506032b6570")
_SIGNATURE_BYTES = 3 + 64  # a bit string

_SMALL = '[run]\nname = "fuzz"\n[model]\npreset = "tiny"\n[admission]\nmode = "private"\n'
_LARGE = """
[run]
name = "fuzz.run-2"
seed = 7
[model.config]
model_type = "bloom"
n_layer = 2
layer_norm_epsilon = 1e-5
architectures = ["BloomForCausalLM"]
[data]
source = "files"
files = ["a.txt", "b/c.txt"]
sequence_length = 64
[admission]
mode = "open"
"""


@dataclass(frozen=True)
class World:
    """A run."""

    authority: Issuer
    delegate: Issuer
    signed_spec: SignedRunSpec
    open_spec: SignedRunSpec

    @property
    def run(self) -> RunId:
        """Its fingerprint."""
        return self.signed_spec.run_id

    def identity(self, number: int) -> Identity:
        """A member's."""
        return Identity(make_key(_MEMBERS + number))

    def peer(self, number: int) -> PeerId:
        """A member."""
        return self.identity(number).peer

    def tls_key(self, number: int) -> TlsKey:
        """A member's."""
        return TlsKey(derive_private_key(7000 + number, SECP256R1()))

    def chain(self, number: int, *, delegated: bool = False) -> CertificateChain:
        """A member's certificates, from the authority or the delegate."""
        key = self.tls_key(number).claimed_by(self.identity(number), self.run)
        return issue_member_certificate(self.delegate if delegated else self.authority, key, self.run, 100 + number, _BEGINS, _ENDS)

    def sealer(self, number: int) -> Sealer:
        """Signs for a member."""
        return Sealer(self.identity(number), self.chain(number).to_bytes(), self.run)


@lru_cache(maxsize=1)
def world() -> World:
    """The run of all seeds."""
    key, delegate_key = make_key(1), make_key(_DELEGATE)
    authority = Issuer(key, make_run_ca(key, "fuzz", 1, _BEGINS, _ENDS))
    delegate = Issuer(delegate_key, issue_delegate(authority, delegate_key.public_key().public_bytes_raw(), 2, _BEGINS, _ENDS))
    specs = [SignedRunSpec.sign(RunSpec.from_toml(text), authority) for text in (_SMALL, _LARGE)]
    return World(authority, delegate, *specs)


def certificate(tbs: bytes, issuer: Issuer) -> bytes:
    """A certificate (DER) around any bytes as its signed part: what an issuer that means harm can make."""
    return DER.join([(b"\x30", tbs + _ED25519 + b"\x03\x41\x00" + issuer.sign(tbs))])


def tbs_of(der: bytes) -> bytes:
    """The signed part of a certificate that was signed with Ed25519."""
    ((_, body),) = DER.split(der) or [(b"", b"")]
    return body[: -len(_ED25519) - _SIGNATURE_BYTES]


def listed(*items: bytes) -> bytes:
    """Several messages as one input: each with its length in front."""
    return pack_fields(*items)


def unlisted(data: bytes) -> tuple[bytes, ...]:
    """Undo `listed`.

    Raises:
        NotAnInput: not messages with their lengths.
    """
    try:
        return unpack_fields(data, _MAX_ITEMS)
    except ValueError as error:
        raise NotAnInput(str(error)) from error
