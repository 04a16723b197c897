"""A `RecordStore` in memory. Every store of a swarm keeps a copy of every record, as few hivemind nodes do too."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from peers.interfaces import Clock, RecordValidator
from peers.store.rules import refusal
from peers.store.shelf import Shelf
from protocols.ids import SwarmTime

log = logging.getLogger(__name__)


class MemorySwarm:
    """What the stores of one swarm share: the list of who takes part."""

    def __init__(self) -> None:
        self.stores: list[MemoryStore] = []


class MemoryStore:
    """One node's store.

    Args:
        clock: judges expiry.
        validator: what this node keeps and believes.
        swarm: the swarm to take part in.
    """

    def __init__(self, clock: Clock, validator: RecordValidator, swarm: MemorySwarm) -> None:
        self._clock = clock
        self._validator = validator
        self._swarm = swarm
        self.shelf = Shelf()
        """What this node keeps; tests play a bad node by writing here."""
        for other in swarm.stores:
            for key in other.shelf.key_ids():
                for subkey, kept in other.shelf.get(key, clock.now()).items():
                    self.keep(key.decode(), subkey, kept.value, kept.expires_at)
        swarm.stores.append(self)

    async def put(self, key: str, subkey: str, value: bytes, expires_at: SwarmTime) -> bool:
        """See `RecordStore.put`."""
        reason = self._refusal(key, subkey, value, expires_at)
        if reason or self not in self._swarm.stores:
            log.warning("our own record is refused key=%s subkey=%s reason=%s", key, subkey, reason or "this store is closed")
            return False
        kept = [store.keep(key, subkey, value, expires_at) for store in self._swarm.stores]
        return any(kept)

    async def get(self, key: str) -> Mapping[str, bytes]:
        """See `RecordStore.get`."""
        if self not in self._swarm.stores:
            return {}
        newest: dict[str, tuple[SwarmTime, bytes]] = {}
        for store in self._swarm.stores:
            for subkey, kept in store.shelf.get(key.encode(), self._clock.now()).items():
                if self._refusal(key, subkey, kept.value, kept.expires_at) is None:
                    newest[subkey] = max(newest.get(subkey, (SwarmTime(0.0), b"")), (kept.expires_at, kept.value))
        return {subkey: value for subkey, (_, value) in newest.items()}

    async def close(self) -> None:
        """See `RecordStore.close`."""
        if self in self._swarm.stores:
            self._swarm.stores.remove(self)

    def keep(self, key: str, subkey: str, value: bytes, expires_at: SwarmTime) -> bool:
        """What another store of the swarm asks of this one; False if it keeps something newer, or refuses."""
        reason = self._refusal(key, subkey, value, expires_at)
        if reason:
            log.debug("dropped a record key=%s subkey=%s reason=%s", key, subkey, reason)
            return False
        return self.shelf.put(key.encode(), subkey, value, expires_at, self._clock.now())

    def _refusal(self, key: str, subkey: str, value: bytes, expires_at: SwarmTime) -> str | None:
        return refusal(key, subkey, value, expires_at, self._clock.now(), self._validator)
