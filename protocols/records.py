"""What members announce in the shared dictionary: who they are (`Presence`) and how far they are (`Progress`).

Each travels as the payload of a signed envelope. The peer, its certificate and the time of a record are those of its envelope, so they
cannot contradict it. `protocols.record_keeping` says where records live, for how long, and who may store them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from protocols.certificate_chain import CertificateChain
from protocols.errors import RemoteProtocolError
from protocols.ids import MAX_EPOCH, Epoch, PeerId, SwarmTime
from protocols.messages import MAX_BANDWIDTH_BYTES_PER_S, parse, require
from protocols.proto.swarm.v1 import records_pb2 as pb
from protocols.signing import CLOCK_SKEW_S, Envelope

MAX_ADDRESSES = 16
MAX_TEXT_CHARS = 256

Role = Literal["trainer", "helper", "client"]
Phase = Literal["joining", "syncing", "training", "auditing", "averaging", "leaving"]

_ROLES: tuple[Role, ...] = get_args(Role)
_PHASES: tuple[Phase, ...] = get_args(Phase)
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})")

MAX_SAMPLES = 10**9
"""In one epoch, by one member."""

MAX_ACCEPTED_SAMPLES = 2**53
MAX_SAMPLES_PER_S = 1e7
MAX_LOSS = 1e9
MAX_TRAFFIC_BYTES = 2**60


@dataclass(frozen=True, slots=True)
class Presence:
    """Who a member is and how to reach it. Nothing in it is trusted beyond what others observe.

    Args:
        peer: whose.
        address: "host:port" of its gRPC server; empty for a member that nobody can dial.
        certificate_pem: its TLS leaf, to be pinned when dialling it.
        libp2p_addresses: each ending in /p2p/<id>.
        role: "trainer" computes and reduces, "helper" only reduces, "client" cannot be dialled.
        device: e.g. "cpu" or "NVIDIA H200"; for people.
        bandwidth_bytes_per_s: as it measured itself.
        started_at: when its process began.
        agent: program and version; for people.
    """

    peer: PeerId
    address: str
    certificate_pem: bytes
    libp2p_addresses: tuple[str, ...]
    role: Role
    device: str
    bandwidth_bytes_per_s: int
    started_at: SwarmTime
    agent: str

    def encode(self) -> bytes:
        """Payload bytes, to be sealed."""
        return pb.Presence(
            address=self.address,
            libp2p_addresses=self.libp2p_addresses,
            role=self.role,
            device=self.device,
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s,
            started_at=self.started_at,
            agent=self.agent,
        ).SerializeToString(deterministic=True)

    @classmethod
    def from_envelope(cls, envelope: Envelope) -> Presence:
        """Read and check a verified envelope's payload.

        Raises:
            RemoteProtocolError: something in it is absurd.
        """
        peer = envelope.signer
        m = parse(pb.Presence, envelope.payload, peer)
        role = next((role for role in _ROLES if role == m.role), None)
        if role is None:
            raise RemoteProtocolError(peer, "a presence with an unknown role")
        require(bool(m.address) == (role != "client"), peer, "a presence whose address does not fit its role")
        require(not m.address or _is_host_port(m.address), peer, "a presence whose address is not host:port")
        require(len(m.libp2p_addresses) <= MAX_ADDRESSES, peer, f"a presence with {len(m.libp2p_addresses)} libp2p addresses")
        require(all(text.startswith("/") for text in m.libp2p_addresses), peer, "a presence with a malformed libp2p address")
        texts = (*m.libp2p_addresses, m.device, m.agent)
        require(
            all(len(text) <= MAX_TEXT_CHARS and text.isprintable() for text in texts), peer, "a presence with overlong or unprintable text"
        )
        require(m.bandwidth_bytes_per_s <= MAX_BANDWIDTH_BYTES_PER_S, peer, "a presence with an absurd bandwidth")
        require(
            math.isfinite(m.started_at) and 0 <= m.started_at <= envelope.issued_at + CLOCK_SKEW_S,
            peer,
            "a presence that started in the future",
        )
        return cls(
            peer,
            m.address,
            _chain(envelope).leaf_pem,
            tuple(m.libp2p_addresses),
            role,
            m.device,
            m.bandwidth_bytes_per_s,
            SwarmTime(m.started_at),
            m.agent,
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a member is.

    Args:
        peer: whose.
        epoch: updates applied to the state it holds.
        samples: computed since then, towards the next epoch.
        samples_per_s: recent speed.
        accepted_samples: in all updates that led to its state.
        state_hash: 32 bytes that name its state; empty while it holds none.
        phase: what it is doing.
        loss: recent training loss in nats per token; None before the first step.
        sent_bytes, received_bytes: since its process began.
        time: when this was true, to the millisecond.
    """

    peer: PeerId
    epoch: Epoch
    samples: int
    samples_per_s: float
    accepted_samples: int
    state_hash: bytes
    phase: Phase
    loss: float | None
    sent_bytes: int
    received_bytes: int
    time: SwarmTime

    def encode(self) -> bytes:
        """Payload bytes, to be sealed."""
        loss = self.loss if self.loss is not None and math.isfinite(self.loss) else None  # a diverged loss is no number to share
        return pb.Progress(
            epoch=self.epoch,
            samples=self.samples,
            samples_per_s=self.samples_per_s,
            accepted_samples=self.accepted_samples,
            state_hash=self.state_hash,
            phase=self.phase,
            loss=loss,
            sent_bytes=self.sent_bytes,
            received_bytes=self.received_bytes,
        ).SerializeToString(deterministic=True)

    @classmethod
    def from_envelope(cls, envelope: Envelope) -> Progress:
        """Read and check a verified envelope's payload.

        Raises:
            RemoteProtocolError: something in it is absurd.
        """
        peer = envelope.signer
        m = parse(pb.Progress, envelope.payload, peer)
        phase = next((phase for phase in _PHASES if phase == m.phase), None)
        if phase is None:
            raise RemoteProtocolError(peer, "a progress with an unknown phase")
        require(m.epoch <= MAX_EPOCH and m.samples <= MAX_SAMPLES, peer, "a progress with an absurd epoch or number of samples")
        require(math.isfinite(m.samples_per_s) and 0 <= m.samples_per_s <= MAX_SAMPLES_PER_S, peer, "a progress with an absurd speed")
        require(m.accepted_samples <= MAX_ACCEPTED_SAMPLES, peer, "a progress with an absurd number of accepted samples")
        require(len(m.state_hash) in (0, 32), peer, f"a progress with a state hash of {len(m.state_hash)} bytes")
        require(math.isfinite(m.loss) and abs(m.loss) <= MAX_LOSS, peer, "a progress with an absurd loss")
        require(max(m.sent_bytes, m.received_bytes) <= MAX_TRAFFIC_BYTES, peer, "a progress with absurd traffic")
        return cls(
            peer,
            Epoch(m.epoch),
            m.samples,
            m.samples_per_s,
            m.accepted_samples,
            m.state_hash,
            phase,
            m.loss if m.HasField("loss") else None,
            m.sent_bytes,
            m.received_bytes,
            envelope.issued_at,
        )


def _chain(envelope: Envelope) -> CertificateChain:
    try:
        return CertificateChain.from_bytes(envelope.certificate)
    except ValueError as error:
        raise RemoteProtocolError(envelope.signer, f"a certificate chain that cannot be read: {error}") from error


def _is_host_port(text: str) -> bool:
    match = _HOST_PORT.fullmatch(text)
    return match is not None and 0 < int(match[2]) <= 65535
