"""Messages of state transfer: fixed little-endian headers before raw bytes.

    call   "state.manifest"   request  version u8 | state hash (32 bytes, or none for "your newest")   reply  an encoded manifest
    stream "state.pieces"     client   version u8 | state hash 32 | count u16 | count x piece u32      asks; as often as it likes
                              server   piece u32 | offset u32 | bytes                                  pieces in the order asked, in chunks

What either side sends is checked completely before anything is done with it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import BytesLike, PeerId
from protocols.manifest import HASH_BYTES, MAX_PIECE_BYTES

MANIFEST_CALL = "state.manifest"
PIECES_STREAM = "state.pieces"
MAX_PIECES_PER_REQUEST = 64
CHUNK_BYTES = 256 * 1024
"""A piece travels in chunks, so that a slow link still shows progress every few seconds."""

_VERSION = 1
_PIECES_HEADER = struct.Struct(f"<B{HASH_BYTES}sH")
_CHUNK_HEADER = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class ManifestRequest:
    """Ask for a manifest.

    Args:
        state_hash: of the state wanted (32 bytes), or empty for the newest.
    """

    state_hash: bytes = b""

    def encode(self) -> bytes:
        """Wire form.

        Raises:
            LocalProtocolError: a hash of the wrong length.
        """
        if len(self.state_hash) not in (0, HASH_BYTES):
            raise LocalProtocolError(f"a state hash has {HASH_BYTES} bytes, not {len(self.state_hash)}")
        return bytes([_VERSION]) + self.state_hash

    @classmethod
    def decode(cls, data: BytesLike, peer: PeerId | None) -> ManifestRequest:
        """Read the wire form.

        Raises:
            RemoteProtocolError: another version or length.
        """
        if len(data) not in (1, 1 + HASH_BYTES) or data[0] != _VERSION:
            raise RemoteProtocolError(peer, "malformed request for a manifest")
        return cls(bytes(data[1:]))


@dataclass(frozen=True, slots=True)
class PiecesRequest:
    """Ask for pieces of one state.

    Args:
        state_hash: 32 bytes.
        pieces: 1 to `MAX_PIECES_PER_REQUEST` indices, sent in this order.
    """

    state_hash: bytes
    pieces: tuple[int, ...]

    def encode(self) -> bytes:
        """Wire form.

        Raises:
            LocalProtocolError: a hash of the wrong length, or none or too many pieces.
        """
        if len(self.state_hash) != HASH_BYTES or not 0 < len(self.pieces) <= MAX_PIECES_PER_REQUEST:
            raise LocalProtocolError("malformed request for pieces")
        return _PIECES_HEADER.pack(_VERSION, self.state_hash, len(self.pieces)) + struct.pack(f"<{len(self.pieces)}I", *self.pieces)

    @classmethod
    def decode(cls, data: BytesLike, peer: PeerId | None) -> PiecesRequest:
        """Read the wire form.

        Raises:
            RemoteProtocolError: another version, length or count.
        """
        if len(data) < _PIECES_HEADER.size:
            raise RemoteProtocolError(peer, "malformed request for pieces")
        version, state_hash, count = _PIECES_HEADER.unpack_from(data)
        if version != _VERSION or not 0 < count <= MAX_PIECES_PER_REQUEST or len(data) != _PIECES_HEADER.size + 4 * count:
            raise RemoteProtocolError(peer, "malformed request for pieces")
        return cls(state_hash, struct.unpack_from(f"<{count}I", data, _PIECES_HEADER.size))


@dataclass(frozen=True, slots=True)
class PieceChunk:
    """A part of a piece.

    Args:
        piece: its index.
        offset_bytes: where in the piece the data begin.
        data: 1 to `CHUNK_BYTES` bytes.
    """

    piece: int
    offset_bytes: int
    data: bytes | memoryview

    def encode(self) -> bytes:
        """Wire form."""
        return b"".join((_CHUNK_HEADER.pack(self.piece, self.offset_bytes), self.data))

    @classmethod
    def decode(cls, data: BytesLike, peer: PeerId | None) -> PieceChunk:
        """Read the wire form.

        Raises:
            RemoteProtocolError: empty, too long, or beyond the largest piece.
        """
        size_bytes = len(data) - _CHUNK_HEADER.size
        if not 0 < size_bytes <= CHUNK_BYTES:
            raise RemoteProtocolError(peer, f"a chunk of {size_bytes} bytes of state")
        piece, offset_bytes = _CHUNK_HEADER.unpack_from(data)
        if offset_bytes + size_bytes > MAX_PIECE_BYTES:
            raise RemoteProtocolError(peer, "a chunk of state beyond the end of its piece")
        return cls(piece, offset_bytes, memoryview(data)[_CHUNK_HEADER.size :])
