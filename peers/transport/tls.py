"""What the data plane's TLS needs from a member's credentials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocols.ids import PeerId


@dataclass(frozen=True, slots=True)
class TlsCredentials:
    """Our certificate, whom we trust, and how a certificate names a peer.

    Args:
        private_key_pem: our P-256 TLS key (gRPC refuses Ed25519 leaf keys).
        certificate_chain_pem: our leaf, then the delegate's certificate if one signed it.
        run_ca_pem: the run authority's certificate: the only root that callers are accepted under.
        authenticate: leaf certificate (PEM) -> the identity it is bound to; raises RemoteProtocolError if the binding is bad. The chain
            and the dates have been checked by TLS before.
        is_banned: asked on every call and every received message.
    """

    private_key_pem: bytes
    certificate_chain_pem: bytes
    run_ca_pem: bytes
    authenticate: Callable[[bytes], PeerId]
    is_banned: Callable[[PeerId], bool]

    def __repr__(self) -> str:
        return "TlsCredentials(...)"
