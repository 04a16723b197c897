"""Distinct types for everything that would otherwise be a bare string or number.

A `PeerId` is a peer's raw Ed25519 public key. Its text form is the libp2p peer id of that key ("12D3KooW..."), so the same name is
seen in our logs, in the DHT and by any libp2p tool.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import lru_cache
from typing import NewType

import base58

Epoch = NewType("Epoch", int)
"""Swarm-wide count of updates applied to the shared state; 0 before the first."""

MAX_EPOCH = 2**40
"""No swarm gets that far; whoever names a later one is wrong."""

BlockIndex = NewType("BlockIndex", int)
"""Position of a block in the flat vector."""

Attempt = NewType("Attempt", int)
"""How often a round's missing blocks have been reassigned; 0 for the first exchange."""

SwarmTime = NewType("SwarmTime", float)
"""Wall-clock seconds since the Unix epoch, as members compare it. Never mixed with monotonic time."""

BytesLike = bytes | bytearray | memoryview
"""Contiguous bytes."""

PUBLIC_KEY_BYTES = 32
_TEXT_CHARS = 52
_LIBP2P_ED25519_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])  # identity multihash of {type: Ed25519, key: 32 bytes}


@dataclass(frozen=True, slots=True, order=True)
class PeerId:
    """A peer's identity: its Ed25519 public key.

    Args:
        public_key: 32 raw bytes.

    Raises:
        ValueError: another length.
    """

    public_key: bytes

    def __post_init__(self) -> None:
        if len(self.public_key) != PUBLIC_KEY_BYTES:
            raise ValueError(f"an Ed25519 public key has {PUBLIC_KEY_BYTES} bytes, not {len(self.public_key)}")

    def __str__(self) -> str:
        return _text_form(self.public_key)

    def __repr__(self) -> str:
        return f"PeerId({self.short})"

    @property
    def short(self) -> str:
        """Last eight characters of the text form: enough for a table; the first eight are the same for everybody."""
        return str(self)[-8:]

    @property
    def tls_name(self) -> str:
        """DNS name of this peer in TLS certificates: 52 lower-case base32 characters and a suffix (RFC 6763 labels hold 63)."""
        return base64.b32encode(self.public_key).decode().rstrip("=").lower() + ".swarm"

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """Read the text form: exactly what `str` gives.

        Raises:
            ValueError: not the libp2p id of an Ed25519 key.
        """
        # Reading base58 takes time with the square of the length, and the library forgives blanks at the end.
        if len(text) != _TEXT_CHARS or text != text.rstrip():
            raise ValueError(f"{text[:_TEXT_CHARS]!r} is not the libp2p id of an Ed25519 key: it has {len(text)} characters")
        raw = base58.b58decode(text)
        if not raw.startswith(_LIBP2P_ED25519_PREFIX):
            raise ValueError(f"{text!r} is not the libp2p id of an Ed25519 key")
        return cls(raw[len(_LIBP2P_ED25519_PREFIX) :])


@lru_cache(maxsize=4096)
def _text_form(public_key: bytes) -> str:
    return base58.b58encode(_LIBP2P_ED25519_PREFIX + public_key).decode()


@dataclass(frozen=True, slots=True, order=True)
class RunId:
    """Fingerprint of a run: BLAKE3 of its canonical `RunSpec` and of the authority's public key (32 bytes)."""

    digest: bytes

    def __post_init__(self) -> None:
        if len(self.digest) != 32:
            raise ValueError(f"a run fingerprint has 32 bytes, not {len(self.digest)}")

    def __str__(self) -> str:
        return self.digest.hex()

    @property
    def short(self) -> str:
        """First twelve hex digits, for people."""
        return self.digest.hex()[:12]


@dataclass(frozen=True, slots=True, order=True)
class RoundId:
    """One averaging round of one run.

    Args:
        run: the run.
        epoch: the epoch it helps to close.
        index: 0 for the round that takes in what members computed; each further one averages along the next axis of the grid.
    """

    run: RunId
    epoch: Epoch
    index: int = 0
