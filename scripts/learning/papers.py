"""The papers of a simulated run: an authority, and certificates for members made from small numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key

from peers.clock import SIMULATION_START
from peers.credentials import TlsKey
from peers.identity import Identity
from peers.testing import make_key
from protocols.certificate_chain import CertificateChain
from protocols.ids import RunId, SwarmTime
from protocols.issuing import Issuer, issue_member_certificate, make_run_ca
from protocols.runspec import RunSpec, SignedRunSpec
from protocols.signing import Sealer

_DAY_S = 86_400.0
_AUTHORITY = 0
_SERIAL = 1


@dataclass(frozen=True)
class Papers:
    """What members of one run need to know each other.

    Args:
        name: of the run.
    """

    name: str

    @cached_property
    def _authority(self) -> Issuer:
        key = make_key(_AUTHORITY)
        return Issuer(key, make_run_ca(key, self.name, _SERIAL, SwarmTime(SIMULATION_START - _DAY_S), self._ends))

    @property
    def _ends(self) -> SwarmTime:
        return SwarmTime(SIMULATION_START + 365 * _DAY_S)

    @cached_property
    def run(self) -> RunId:
        """The run."""
        spec = RunSpec.from_settings({"run": {"name": self.name}, "model": {"preset": "tiny"}})
        return SignedRunSpec.sign(spec, self._authority).run_id

    @property
    def authority_key(self) -> bytes:
        """Whose word counts."""
        return self._authority.public_key

    def identity(self, number: int) -> Identity:
        """Of a member, by its number from 0."""
        return Identity(make_key(number + 1))

    def sealer(self, number: int) -> Sealer:
        """What signs for it."""
        return Sealer(self.identity(number), self.chain(number).to_bytes(), self.run)

    def chain(self, number: int) -> CertificateChain:
        """Its certificate."""
        key = TlsKey(derive_private_key(number + 1, SECP256R1())).claimed_by(self.identity(number), self.run)
        begins = SwarmTime(SIMULATION_START - _DAY_S)
        return issue_member_certificate(self._authority, key, self.run, number + 1, begins, self._ends)
