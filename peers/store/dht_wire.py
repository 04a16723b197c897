"""How a record looks inside hivemind's DHT, and strict readers for it.

hivemind knows keys only as 20-byte hashes, so a stored value carries its key; a node that keeps it can then check that the two belong
together. hivemind's own reader follows nested extension types of any depth, so nothing that strangers send is given to it unread.

    value        msgpack binary:     u16 big-endian key length | key in UTF-8 | record
    subkey       msgpack string
    dictionary   msgpack extension 0x50 around [maxsize, latest expiry, [[subkey, value, expiry], ...]]
    node id      SHA-1 of "swarm.v1 dht node" | libp2p peer id: nobody can choose which keys it becomes responsible for
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import msgpack  # type: ignore[import-untyped]

from peers.store.rules import MAX_KEY_BYTES, MAX_SUBKEY_BYTES, MAX_VALUE_BYTES
from peers.store.shelf import ShelfLimits

ID_BYTES = 20
MAX_BLOB_BYTES = 2 + MAX_KEY_BYTES + MAX_VALUE_BYTES
MAX_DICTIONARY_BYTES = 3 * 2**20
"""A dictionary as one node sends it; above what a shelf holds under one key, below the daemon's 4 MiB messages."""

_DICTIONARY_CODE = 0x50
_MAX_ITEMS = ShelfLimits().subkeys
_KEY_LENGTH = struct.Struct(">H")
_HEADER_BYTES = 5  # longest msgpack header of a binary or a string


@dataclass(frozen=True, slots=True)
class WireRecord:
    """One entry of a dictionary.

    Args:
        subkey: as text.
        value: msgpack binary, as hivemind keeps and sends it.
        expires_at: seconds since the Unix epoch, unchecked.
    """

    subkey: str
    value: bytes
    expires_at: float


def key_id(key: str) -> bytes:
    """The id that hivemind gives a key."""
    return hashlib.sha1(msgpack.packb(key), usedforsecurity=False).digest()


def node_id(peer_id: bytes) -> bytes:
    """Where a peer stands in the DHT.

    Args:
        peer_id: binary libp2p peer id.
    """
    return hashlib.sha1(b"swarm.v1 dht node" + peer_id, usedforsecurity=False).digest()


def encode_blob(key: str, record: bytes) -> bytes:
    """A record together with its key."""
    raw = key.encode()
    return _KEY_LENGTH.pack(len(raw)) + raw + record


def decode_blob(blob: bytes, expected_id: bytes) -> tuple[str, bytes]:
    """Key and record.

    Raises:
        ValueError: too large, cut off, or under another key than its own.
    """
    if not _KEY_LENGTH.size <= len(blob) <= MAX_BLOB_BYTES:
        raise ValueError(f"a value has {len(blob)} bytes")
    (length,) = _KEY_LENGTH.unpack_from(blob)
    end = _KEY_LENGTH.size + length
    if length > MAX_KEY_BYTES or end > len(blob):
        raise ValueError("its key is cut off or too long")
    key = blob[_KEY_LENGTH.size : end].decode()
    if key_id(key) != expected_id:
        raise ValueError("it lies under another key than its own")
    return key, blob[end:]


def encode_value(blob: bytes) -> bytes:
    """As hivemind keeps a value."""
    packed: bytes = msgpack.packb(blob)
    return packed


def decode_value(value: bytes) -> bytes:
    """The blob in a value.

    Raises:
        ValueError: too large, or not one binary string.
    """
    if len(value) > MAX_BLOB_BYTES + _HEADER_BYTES:
        raise ValueError(f"a value has {len(value)} bytes")
    blob = _unpack(value, bin_bytes=MAX_BLOB_BYTES)
    if not isinstance(blob, bytes):
        raise ValueError("a value is not a binary string")
    return blob


def encode_subkey(subkey: str) -> bytes:
    """As hivemind sends a subkey."""
    packed: bytes = msgpack.packb(subkey)
    return packed


def decode_subkey(raw: bytes) -> str:
    """A subkey.

    Raises:
        ValueError: too long, or not text.
    """
    if len(raw) > MAX_SUBKEY_BYTES + _HEADER_BYTES:
        raise ValueError(f"a subkey has {len(raw)} bytes")
    subkey = _unpack(raw)
    if not isinstance(subkey, str):
        raise ValueError("a subkey is not text")
    return subkey


def encode_dictionary(records: Iterable[WireRecord]) -> bytes:
    """As hivemind sends a whole dictionary."""
    records = list(records)
    items = [[record.subkey, record.value, float(record.expires_at)] for record in records]
    latest = max((float(record.expires_at) for record in records), default=0.0)
    packed: bytes = msgpack.packb(msgpack.ExtType(_DICTIONARY_CODE, msgpack.packb([float("inf"), latest, items])))
    return packed


def decode_dictionary(raw: bytes) -> list[WireRecord]:
    """Entries of a dictionary; their values are bounded and nothing more.

    Raises:
        ValueError: too large, too many entries, or of another shape.
    """
    if len(raw) > MAX_DICTIONARY_BYTES:
        raise ValueError(f"a dictionary has {len(raw)} bytes")
    outer = _unpack(raw, ext_bytes=MAX_DICTIONARY_BYTES, str_bytes=0)
    if not isinstance(outer, msgpack.ExtType) or outer.code != _DICTIONARY_CODE:
        raise ValueError("not a dictionary")
    inner = _unpack(outer.data, bin_bytes=MAX_BLOB_BYTES + _HEADER_BYTES, items=max(_MAX_ITEMS, 3))
    if not isinstance(inner, list) or len(inner) != 3 or not isinstance(inner[2], list):
        raise ValueError("a dictionary of another shape")
    records = []
    for item in inner[2]:
        if not isinstance(item, list) or len(item) != 3:
            raise ValueError("a dictionary entry of another shape")
        subkey, value, expires_at = item
        if not isinstance(subkey, str) or not isinstance(value, bytes) or not isinstance(expires_at, float):
            raise ValueError("a dictionary entry of another type")
        records.append(WireRecord(subkey, value, expires_at))
    return records


def _unpack(raw: bytes, *, bin_bytes: int = 0, str_bytes: int = MAX_SUBKEY_BYTES, items: int = 0, ext_bytes: int = 0) -> object:
    """Read msgpack within bounds; maps and, unless asked for, lists and extensions are refused. Extensions come back unread.

    Raises:
        ValueError: out of bounds, cut off, or not msgpack.
    """
    try:
        result: object = msgpack.unpackb(
            raw, raw=False, max_bin_len=bin_bytes, max_str_len=str_bytes, max_array_len=items, max_ext_len=ext_bytes, max_map_len=0
        )
    except ValueError as error:
        raise ValueError(f"it is not what is expected here ({type(error).__name__} {error})") from error
    return result
