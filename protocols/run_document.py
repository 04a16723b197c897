"""What a member tells a stranger about a run: its signed spec, the root of its certificates, and the time."""

from __future__ import annotations

from dataclasses import dataclass

from protocols.canonical import from_milliseconds, to_milliseconds
from protocols.certificate import verify_run_ca
from protocols.certificate_chain import MAX_CERTIFICATE_BYTES
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId, SwarmTime
from protocols.messages import parse, require
from protocols.proto.swarm.v1 import admission_pb2 as pb
from protocols.runspec import MAX_SPEC_BYTES, SignedRunSpec

MAX_DOCUMENT_BYTES = MAX_SPEC_BYTES + MAX_CERTIFICATE_BYTES + 1024


@dataclass(frozen=True, slots=True)
class RunDocument:
    """All that a run makes public.

    Args:
        signed_spec: verified when decoded.
        run_ca: the run's root, DER; verified when decoded.
        time: the sender's clock.
    """

    signed_spec: SignedRunSpec
    run_ca: bytes
    time: SwarmTime

    def encode(self) -> bytes:
        """Wire bytes."""
        reply = pb.SpecReply(signed_spec=self.signed_spec.to_bytes(), run_ca=self.run_ca, time_ms=to_milliseconds(self.time))
        return reply.SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, data: bytes, sender: PeerId | None) -> RunDocument:
        """Read and verify. Whether it is the run that was meant is the reader's to compare (`signed_spec.run_id`).

        Raises:
            RemoteProtocolError: damaged, or not signed by the authority that it names.
        """
        require(len(data) <= MAX_DOCUMENT_BYTES, sender, f"a run document of {len(data)} bytes is too large")
        m = parse(pb.SpecReply, data, sender)
        try:
            time = from_milliseconds(m.time_ms)
        except ValueError as error:
            raise RemoteProtocolError(sender, f"a malformed run document: {error}") from error
        signed_spec = SignedRunSpec.from_bytes(m.signed_spec)
        verify_run_ca(m.run_ca, signed_spec.authority_key)
        return cls(signed_spec, m.run_ca, time)
