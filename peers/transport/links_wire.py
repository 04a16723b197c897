"""Bytes of a link: how its keys are agreed, and its records.

A link is a TCP connection that carries streams. Both ends first agree on its keys by a call over mutual TLS, whose messages are

    request   version u8 | dialler's share, 32 bytes
    reply     version u8 | link id, 16 bytes | listener's share, 32 bytes | data port u16

and then the dialler connects to the data port and sends the link id. Everything after it, both ways, is records (little-endian):

    sealed bytes u32 | kind u32 | value u32 | ciphertext | tag, 16 bytes

under AES-128-GCM: the header is authenticated with the rest, the nonce is the number of the record, and each direction has a key of its
own. So nothing can be read, changed, dropped, repeated, reordered, or sent back to where it came from. Keys come from random shares that
only travel inside TLS 1.3, so they are as secret, as authentic and as short-lived as that session.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocols.errors import RemoteProtocolError
from protocols.ids import BytesLike, PeerId

OPEN_LINK = "open-link"
"""The call that agrees on keys."""

LINK_ID_BYTES = 16
SHARE_BYTES = 32
TAG_BYTES = 16
HEADER = struct.Struct("<III")
OVERHEAD_BYTES = HEADER.size + TAG_BYTES

RECORD_BYTES = 2**18
"""Payload of the records that we send."""

MAX_RECORD_BYTES = 2**20
"""Largest payload of a record that we accept."""

MAX_CONTROL_BYTES = 4096
"""Largest payload of a record that is not part of a message."""

WINDOW_BYTES = 4 * 2**20
"""What one side of a stream may send before the other has read some of it."""

RETIRE_BYTES = 2**36
"""A link that has sealed this much (64 GiB) under one key carries no further stream: 2^32 AES blocks leave an attacker 2^-64."""

MAX_KEY_BYTES = 2**38
"""A link that would seal or open more than this under one key breaks."""

_VERSION = 1
_CONTEXT = "swarm peer training 2026-11-21 link v1 "
_REQUEST = struct.Struct(f"<B{SHARE_BYTES}s")
_REPLY = struct.Struct(f"<B{LINK_ID_BYTES}s{SHARE_BYTES}sH")


class RecordKind(IntEnum):
    """What a record says. "Dialler" and "listener" are the ends of the link, whoever sends data."""

    HELLO = 1  # first record of each direction: proves the key
    OPEN = 2  # dialler: a stream begins; payload: deadline and method
    MESSAGE = 3  # part of a message; value: size of the whole message in its first record, 0 in those that follow
    CREDIT = 4  # value: bytes of messages that have been read
    FINISHED = 5  # no more messages follow in this direction
    ENDED = 6  # listener: the handler is over; last record of a stream in this direction; payload: how
    CLOSE = 7  # dialler: it has left the stream; last record of a stream in this direction


@dataclass(frozen=True, slots=True)
class LinkReply:
    """What the listener answers.

    Args:
        link_id: 16 bytes, good for one connection.
        share: 32 random bytes.
        port: where it listens for links.
    """

    link_id: bytes
    share: bytes
    port: int

    def __repr__(self) -> str:
        return "LinkReply(...)"

    def encode(self) -> bytes:
        """Wire form."""
        return _REPLY.pack(_VERSION, self.link_id, self.share, self.port)

    @classmethod
    def decode(cls, data: bytes, peer: PeerId) -> LinkReply:
        """Read the wire form.

        Raises:
            RemoteProtocolError: another length or version, or port 0.
        """
        if len(data) != _REPLY.size:
            raise RemoteProtocolError(peer, f"a link reply of {len(data)} bytes")
        version, link_id, share, port = _REPLY.unpack(data)
        if version != _VERSION or not port:
            raise RemoteProtocolError(peer, f"a link reply of version {version} with port {port}")
        return cls(link_id, share, port)


def encode_request(share: bytes) -> bytes:
    """What the dialler asks with."""
    return _REQUEST.pack(_VERSION, share)


def decode_request(data: bytes, peer: PeerId) -> bytes:
    """The dialler's share.

    Raises:
        RemoteProtocolError: another length or version.
    """
    if len(data) != _REQUEST.size or data[0] != _VERSION:
        raise RemoteProtocolError(peer, f"a link request of {len(data)} bytes")
    return data[1:]


@dataclass(frozen=True, slots=True)
class LinkKeys:
    """Both directions of one link.

    Args:
        dialler: what the dialler seals with, 16 bytes.
        listener: what the listener seals with, 16 bytes.
    """

    dialler: bytes
    listener: bytes

    def __repr__(self) -> str:
        return "LinkKeys(...)"


def agree(dialler: PeerId, listener: PeerId, dialler_share: bytes, reply: LinkReply) -> LinkKeys:
    """Derive the keys from both shares, so that either end's good randomness suffices, bound to this link and its ends."""
    secret = b"".join((dialler_share, reply.share, reply.link_id, dialler.public_key, listener.public_key))

    def derived(direction: str) -> bytes:
        return blake3(secret, derive_key_context=_CONTEXT + direction).digest(16)

    return LinkKeys(derived("dialler"), derived("listener"))


class RecordKey:
    """One direction's key. Records are numbered from 0 on, and the number is the nonce, so the order of calls is the order on the wire."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self._records = 0
        self.used_bytes = 0

    def seal(self, kind: RecordKind, value: int, payload: BytesLike, into: memoryview) -> int:
        """Write one whole record.

        Args:
            kind: of the record.
            value: see `RecordKind`.
            payload: up to `MAX_RECORD_BYTES`.
            into: writable, at least `OVERHEAD_BYTES` more than the payload; may not overlap it.

        Returns:
            Bytes written.
        """
        end = OVERHEAD_BYTES + len(payload)
        HEADER.pack_into(into, 0, end - HEADER.size, kind, value)
        self._aead.encrypt_into(self._next_nonce(end), payload, into[: HEADER.size], into[HEADER.size : end])
        return end

    def open(self, record: memoryview, into: memoryview) -> None:
        """Check and decrypt one whole record.

        Args:
            record: header, ciphertext, tag.
            into: writable, exactly as long as the payload.

        Raises:
            cryptography.exceptions.InvalidTag: it is not the record that the other end sealed next.
        """
        self._aead.decrypt_into(self._next_nonce(len(record)), record[HEADER.size :], record[: HEADER.size], into)

    def _next_nonce(self, record_bytes: int) -> bytes:
        nonce = self._records.to_bytes(12, "big")
        self._records += 1
        self.used_bytes += record_bytes
        return nonce
