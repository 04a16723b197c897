"""What every store refuses, whoever sends it: sizes, times, and whatever the swarm's `RecordValidator` says."""

from __future__ import annotations

import logging
import math

from peers.interfaces import RecordValidator
from protocols.errors import SwarmError
from protocols.ids import SwarmTime

log = logging.getLogger(__name__)

MAX_VALUE_BYTES = 8 * 2**10
"""Largest record."""

MAX_KEY_BYTES = 256
"""Longest key, in UTF-8."""

MAX_SUBKEY_BYTES = 128
"""Longest subkey, in UTF-8."""

MAX_LIFETIME_S = 7 * 86_400.0
"""A record cannot ask to be kept longer; whoever needs it longer stores it again."""


def refusal(key: str, subkey: str, value: bytes, expires_at: SwarmTime, now: SwarmTime, validator: RecordValidator) -> str | None:
    """Why a record must not be kept or used, in one sentence; None if it may.

    The cheap checks come first, so that an oversized record is refused before anything parses it.
    """
    if len(value) > MAX_VALUE_BYTES:
        return f"a record of {len(value)} bytes is above the limit of {MAX_VALUE_BYTES}"
    if not 0 < len(key.encode(errors="replace")) <= MAX_KEY_BYTES or not 0 < len(subkey.encode(errors="replace")) <= MAX_SUBKEY_BYTES:
        return "its key or subkey is empty or too long"
    if not math.isfinite(expires_at) or expires_at > now + MAX_LIFETIME_S:
        return "it expires too far in the future"
    if expires_at <= now:
        return "it has expired"
    try:
        return validator(key, subkey, value, expires_at, now)
    except (SwarmError, ValueError) as error:
        return f"it cannot be read: {error}"
