"""Judges single records for one node of the DHT."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from peers.interfaces import Clock, RecordValidator
from peers.store.dht_wire import WireRecord, decode_blob, decode_value
from peers.store.rules import refusal
from protocols.ids import SwarmTime

_TRUST_S = 30.0
_MAX_TRUSTED = 8192


class RecordGate:
    """Judges records; remembers good ones for a while, since every replica sends the same record and a signature costs 0.1 ms."""

    def __init__(self, validator: RecordValidator, clock: Clock) -> None:
        self._validator = validator
        self._clock = clock
        self._trusted: OrderedDict[bytes, SwarmTime] = OrderedDict()

    def admit(self, key: bytes, record: WireRecord) -> str | None:
        """See `dht_guard.Admit`."""
        try:
            blob = decode_value(record.value)
        except ValueError as error:
            return str(error)
        return self.open(key, record.subkey, blob, record.expires_at)[1]

    def open(self, key: bytes, subkey: str, blob: bytes, expires_at: float) -> tuple[bytes, str | None]:
        """The record in a blob, and why it must not be used, or None."""
        now = self._clock.now()
        try:
            name, value = decode_blob(blob, key)
        except ValueError as error:
            return b"", str(error)
        # The record's key is inside the blob; lengths keep the parts apart.
        digest = hashlib.blake2b(f"{len(subkey)} {subkey} {expires_at!r} ".encode(errors="replace") + blob, digest_size=16).digest()
        if now < self._trusted.get(digest, SwarmTime(0.0)) and now < expires_at:
            return value, None
        reason = refusal(name, subkey, value, SwarmTime(expires_at), now, self._validator)
        if reason is None:
            self._trusted[digest] = SwarmTime(now + _TRUST_S)
            while len(self._trusted) > _MAX_TRUSTED:
                self._trusted.popitem(last=False)
        return value, reason
