"""Signs our round messages and checks those of others, with the clock and the certificates of this machine."""

from __future__ import annotations

from peers.interfaces import Clock
from protocols.ids import PeerId
from protocols.signing import MembershipCheck, Sealer, open_envelope, open_old_envelope


class MemberNotary:
    """The `Notary` of `peers.averaging.context` for one member of one run.

    Args:
        sealer: our key and certificate.
        membership: names the member that a certificate was issued to.
        clock: dates what we sign and judges what we open.
        lifetime_s: how long a round message may be believed.
    """

    def __init__(self, sealer: Sealer, membership: MembershipCheck, clock: Clock, lifetime_s: float = 300.0) -> None:
        self._sealer = sealer
        self._membership = membership
        self._clock = clock
        self._lifetime_s = lifetime_s

    def seal(self, kind: str, payload: bytes) -> bytes:
        """Sign a payload for this run."""
        return self._sealer.seal(kind, payload, self._clock.now(), self._lifetime_s)

    def open(self, kind: str, sealed: bytes) -> tuple[PeerId, bytes]:
        """Check a signed payload.

        Raises:
            RemoteProtocolError: bad signature, other run, other kind, expired, not a member.
        """
        return open_envelope(sealed, kind, self._sealer.run, self._clock.now(), self._membership)

    def open_old(self, kind: str, sealed: bytes) -> tuple[PeerId, bytes]:
        """Check a signed payload as of the time when it was signed, which must not lie in the future.

        Raises:
            RemoteProtocolError: as `open`, but for its age.
        """
        return open_old_envelope(sealed, kind, self._sealer.run, self._clock.now(), self._membership)
