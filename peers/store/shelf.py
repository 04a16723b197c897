"""The records that one node keeps: under each key the newest record of each subkey, bounded in number and bytes, gone when expired."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from protocols.ids import SwarmTime


@dataclass(frozen=True, slots=True)
class ShelfLimits:
    """How much a shelf holds. What does not fit is refused; nothing that is kept is pushed out by it.

    Args:
        keys: number of keys.
        subkeys: records under one key.
        key_bytes: bytes of values under one key; a reply with all of them must fit the daemon's 4 MiB messages.
        total_bytes: bytes of values in all.
    """

    keys: int = 4096
    subkeys: int = 512
    key_bytes: int = 2 * 2**20
    total_bytes: int = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Kept:
    """One record on a shelf."""

    value: bytes
    expires_at: SwarmTime


class Shelf:
    """Keeps records. Not an authority on validity: whoever puts has checked them.

    Args:
        limits: how much it holds.
    """

    def __init__(self, limits: ShelfLimits | None = None) -> None:
        self._limits = limits or ShelfLimits()
        self._records: dict[bytes, dict[str, Kept]] = {}
        self._key_bytes: dict[bytes, int] = {}
        self._total_bytes = 0
        self._next_expiry = SwarmTime(math.inf)

    @property
    def total_bytes(self) -> int:
        """Bytes of all values kept, expired ones that nobody has asked for included."""
        return self._total_bytes

    def put(self, key: bytes, subkey: str, value: bytes, expires_at: SwarmTime, now: SwarmTime) -> bool:
        """Keep a record unless one that expires as late or later is there, it has expired, or it does not fit."""
        records = self._records.get(key, {})
        old = records.get(subkey)
        if expires_at <= now or (old is not None and old.expires_at >= expires_at):
            return False
        if not self._fits(key, subkey, value) and not (self._drop_expired(now) and self._fits(key, subkey, value)):
            return False
        self._account(key, len(value) - self._size(key, subkey))
        self._records.setdefault(key, {})[subkey] = Kept(value, expires_at)
        self._next_expiry = min(self._next_expiry, expires_at)
        return True

    def get(self, key: bytes, now: SwarmTime) -> dict[str, Kept]:
        """Unexpired records under a key, in the order in which their subkeys first came."""
        return {subkey: kept for subkey, kept in self._records.get(key, {}).items() if kept.expires_at > now}

    def key_ids(self) -> Iterable[bytes]:
        """Keys that have records, expired ones perhaps."""
        return tuple(self._records)

    def _size(self, key: bytes, subkey: str) -> int:
        old = self._records.get(key, {}).get(subkey)
        return len(old.value) if old else 0

    def _fits(self, key: bytes, subkey: str, value: bytes) -> bool:
        records, limits = self._records.get(key), self._limits
        if records is None and len(self._records) >= limits.keys:
            return False
        if records is not None and subkey not in records and len(records) >= limits.subkeys:
            return False
        more = len(value) - self._size(key, subkey)
        return self._key_bytes.get(key, 0) + more <= limits.key_bytes and self._total_bytes + more <= limits.total_bytes

    def _account(self, key: bytes, more: int) -> None:
        self._key_bytes[key] = self._key_bytes.get(key, 0) + more
        self._total_bytes += more

    def _drop_expired(self, now: SwarmTime) -> bool:
        """Whether anything went. Looks at the records only when one of them must have expired: a full shelf stays cheap to refuse with."""
        if now < self._next_expiry:
            return False
        for key, records in list(self._records.items()):
            for subkey in [subkey for subkey, kept in records.items() if kept.expires_at <= now]:
                self._account(key, -len(records.pop(subkey).value))
            if not records:
                del self._records[key], self._key_bytes[key]
        self._next_expiry = min(
            (kept.expires_at for records in self._records.values() for kept in records.values()), default=SwarmTime(math.inf)
        )
        return True
