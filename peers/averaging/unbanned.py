"""A directory without those who are banned.

Nobody dials them or waits for them from the moment when a ban is known. Their place in the grid falls empty a little later, when all
members know of the ban: if each took it away as soon as it hears, members would look for other groups than those that expect them.
"""

from __future__ import annotations

from peers.averaging.context import Directory
from peers.interfaces import Endpoint
from protocols.ids import Epoch, PeerId
from protocols.trust.ledger import Ledger

_KNOWN_AFTER_EPOCHS = 2
"""A ban reaches all members within this time: the group that finds it, then everybody who meets one of them."""


class Unbanned:
    """A `Directory` that leaves out whoever the ledger names.

    Args:
        directory: with everybody.
        ledger: who is banned, now and later.
    """

    def __init__(self, directory: Directory, ledger: Ledger) -> None:
        self._directory = directory
        self._ledger = ledger

    def placed(self, epoch: Epoch) -> tuple[frozenset[PeerId], frozenset[PeerId]]:
        """See `Directory.placed`."""
        dialable, undialable = self._directory.placed(epoch)
        return self._placed(dialable, epoch), self._placed(undialable, epoch)

    def live(self, epoch: Epoch) -> frozenset[PeerId]:
        """See `Directory.live`."""
        return self._without(self._directory.live(epoch))

    def endpoint(self, peer: PeerId) -> Endpoint | None:
        """See `Directory.endpoint`."""
        return None if peer in self._ledger else self._directory.endpoint(peer)

    def reachable(self, peer: PeerId) -> Endpoint | None:
        """See `Directory.reachable`."""
        return None if peer in self._ledger else self._directory.reachable(peer)

    def age_s(self, peer: PeerId) -> float | None:
        """See `Directory.age_s`."""
        return self._directory.age_s(peer)

    async def refresh(self) -> None:
        """See `Directory.refresh`."""
        await self._directory.refresh()

    def suspect(self, peer: PeerId) -> None:
        """See `Directory.suspect`."""
        self._directory.suspect(peer)

    def _placed(self, peers: frozenset[PeerId], epoch: Epoch) -> frozenset[PeerId]:
        gone = {ban.accused for ban in self._ledger.bans if ban.epoch + _KNOWN_AFTER_EPOCHS <= epoch}
        return peers - gone

    def _without(self, peers: frozenset[PeerId]) -> frozenset[PeerId]:
        return frozenset(peer for peer in peers if peer not in self._ledger)
