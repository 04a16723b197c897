"""A record store that all members of a simulated swarm share: nothing is lost or late, since it is not what is measured here."""

from __future__ import annotations

from collections.abc import Mapping

from peers.interfaces import Clock
from protocols.ids import SwarmTime


class SharedRecords:
    """Implements `RecordStore`.

    Args:
        clock: the swarm's.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[str, dict[str, tuple[SwarmTime, bytes]]] = {}

    async def put(self, key: str, subkey: str, value: bytes, expires_at: SwarmTime) -> bool:
        """See `RecordStore.put`."""
        self._kept.setdefault(key, {})[subkey] = expires_at, value
        return True

    async def get(self, key: str) -> Mapping[str, bytes]:
        """See `RecordStore.get`."""
        now = self._clock.now()
        return {subkey: value for subkey, (expires_at, value) in self._kept.get(key, {}).items() if expires_at > now}

    async def close(self) -> None:
        """See `RecordStore.close`."""
