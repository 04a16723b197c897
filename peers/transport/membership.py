"""How members show each other that they belong to the run where the connection itself proves only who they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId


@dataclass(frozen=True, slots=True)
class MembershipProof:
    """Our certificates, and whose we accept.

    Args:
        chain: our certificate chain, in the form that `authenticate` reads.
        authenticate: chain -> the member it was issued to; raises RemoteProtocolError unless it holds today and was issued under the run's
            authority.
        is_banned: asked on every opening and every received message.
    """

    chain: bytes = field(repr=False)
    authenticate: Callable[[bytes], PeerId]
    is_banned: Callable[[PeerId], bool]

    def require_member(self, chain: bytes, peer: PeerId) -> None:
        """Check that a chain makes a peer a member. That the peer is who it says must have been proved already: a chain is no secret.

        Raises:
            RemoteProtocolError: it does not.
        """
        try:
            member = self.authenticate(chain)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(peer, error.reason) from error
        if member != peer:
            raise RemoteProtocolError(peer, "it shows the certificate of another member")
