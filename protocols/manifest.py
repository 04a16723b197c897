"""Manifest of a training state: which tensors it has, how their bytes are cut into pieces, and the hash of every piece.

A state is an ordered list of named tensors. Their little-endian bytes, one after another without padding, are cut every `piece_bytes`;
each piece is named by its BLAKE3 hash. The hash of the encoded manifest (`Manifest.root`) is the *state hash* that members compare, and
anybody who knows it can check a manifest from a stranger, and with the manifest every piece.

Encoding, all integers little-endian:

    "SWMF" | version u8 | epoch u64 | accepted_samples u64 | piece_bytes u32 | tensors u32 | meta_bytes u32 | pieces u32
    tensors x [name_bytes u16 | name UTF-8 | dtype u8 | dims u8 | dims x size u64]
    meta JSON (keys sorted, no spaces, ASCII)
    pieces x [BLAKE3, 32 bytes]
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from blake3 import blake3

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import PeerId

HASH_BYTES = 32
DEFAULT_PIECE_BYTES = 2**20
MIN_PIECE_BYTES = 64
MAX_PIECE_BYTES = 2**20
MAX_MANIFEST_BYTES = 4 * 2**20 - 4096
"""An encoded manifest fits into one call's reply (`peers.interfaces.MAX_CALL_BYTES`)."""
MAX_TENSORS = 65536
MAX_NAME_BYTES = 512
MAX_DIMS = 8
MAX_META_BYTES = 256 * 1024
MAX_STATE_BYTES = 2**40

Meta = Mapping[str, object]
NamedTensors = Iterable[tuple[str, torch.Tensor]]

_MAGIC = b"SWMF"
_VERSION = 1
_HEADER = struct.Struct("<4sBQQIIII")
_ROOT_CONTEXT = "swarm.v1.manifest"
_MAX_COUNTER = 2**63 - 1
_DTYPE_CODES: dict[str, int] = {
    "float32": 1,
    "float64": 2,
    "float16": 3,
    "bfloat16": 4,
    "int64": 5,
    "int32": 6,
    "int16": 7,
    "int8": 8,
    "uint8": 9,
    "bool": 10,
}
_DTYPES_BY_CODE = {code: name for name, code in _DTYPE_CODES.items()}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a state.

    Args:
        name: unique, non-empty, at most `MAX_NAME_BYTES` of UTF-8.
        dtype: torch's name of it without the prefix, e.g. "float32".
        shape: at most `MAX_DIMS` sizes; () for a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch knows it."""
        dtype = getattr(torch, self.dtype)
        if not isinstance(dtype, torch.dtype):
            raise LocalProtocolError(f"{self.dtype!r} is not a torch dtype")
        return dtype

    @property
    def size_bytes(self) -> int:
        """Bytes this tensor takes."""
        return math.prod(self.shape) * self.torch_dtype.itemsize

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> TensorEntry:
        """Describe a tensor.

        Raises:
            LocalProtocolError: a dtype that states do not hold.
        """
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _DTYPE_CODES:
            raise LocalProtocolError(f"tensor {name!r} has dtype {dtype}, which a state cannot hold")
        return cls(name, dtype, tuple(tensor.shape))


@dataclass(frozen=True)
class Manifest:
    """What a state consists of; valid by construction when it comes from `build` or `decode`.

    Args:
        epoch: updates applied to this state.
        accepted_samples: samples that went into it since the run began.
        tensors: its tensors, in the order of their bytes.
        meta_json: canonical JSON object with everything that is not a tensor.
        piece_bytes: size of each piece but the last.
        piece_hashes: BLAKE3 of each piece.
    """

    epoch: int
    accepted_samples: int
    tensors: tuple[TensorEntry, ...]
    meta_json: str
    piece_bytes: int
    piece_hashes: tuple[bytes, ...]

    @cached_property
    def root(self) -> bytes:
        """32 bytes that name the whole state: the state hash."""
        return blake3(self.encoded, derive_key_context=_ROOT_CONTEXT).digest()

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(entry.size_bytes for entry in self.tensors)

    @property
    def meta(self) -> dict[str, object]:
        """The JSON object of `meta_json`."""
        meta = json.loads(self.meta_json)
        if not isinstance(meta, dict):
            raise LocalProtocolError("the meta part of a manifest is not an object")
        return meta

    def spans(self) -> Iterator[tuple[TensorEntry, int]]:
        """Each tensor with the offset of its first byte."""
        offset = 0
        for entry in self.tensors:
            yield entry, offset
            offset += entry.size_bytes

    def piece_span(self, index: int) -> tuple[int, int]:
        """First byte and one past the last byte of a piece.

        Raises:
            IndexError: no such piece.
        """
        if not 0 <= index < len(self.piece_hashes):
            raise IndexError(f"piece {index} of {len(self.piece_hashes)}")
        start = index * self.piece_bytes
        return start, min(start + self.piece_bytes, self.size_bytes)

    def verify_piece(self, index: int, piece: bytes | bytearray | memoryview) -> bool:
        """Whether these are the bytes of that piece."""
        start, stop = self.piece_span(index)
        return len(piece) == stop - start and hash_piece(piece) == self.piece_hashes[index]

    @cached_property
    def encoded(self) -> bytes:
        """Canonical bytes: equal manifests have equal bytes.

        Raises:
            LocalProtocolError: larger than `MAX_MANIFEST_BYTES`.
        """
        meta = self.meta_json.encode("ascii")
        header = (self.epoch, self.accepted_samples, self.piece_bytes, len(self.tensors), len(meta), len(self.piece_hashes))
        parts = [_HEADER.pack(_MAGIC, _VERSION, *header)]
        for entry in self.tensors:
            name = entry.name.encode()
            parts += [struct.pack("<H", len(name)), name, struct.pack("<BB", _DTYPE_CODES[entry.dtype], len(entry.shape))]
            parts.append(struct.pack(f"<{len(entry.shape)}Q", *entry.shape))
        encoded = b"".join([*parts, meta, *self.piece_hashes])
        if len(encoded) > MAX_MANIFEST_BYTES:
            raise LocalProtocolError(f"the manifest takes {len(encoded)} bytes, more than the {MAX_MANIFEST_BYTES} that peers accept")
        return encoded

    @classmethod
    def build(
        cls,
        tensors: NamedTensors,
        *,
        epoch: int,
        accepted_samples: int,
        meta: Meta,
        piece_bytes: int = DEFAULT_PIECE_BYTES,
    ) -> Manifest:
        """Describe and hash a state without copying it (CPU tensors that are contiguous are hashed in place).

        Raises:
            LocalProtocolError: something that `decode` would refuse.
        """
        hasher = _PieceHasher(piece_bytes)
        entries: list[TensorEntry] = []
        for name, tensor in tensors:
            entries.append(TensorEntry.of(name, tensor))
            hasher.update(tensor_bytes(tensor))
        manifest = cls(epoch, accepted_samples, tuple(entries), canonical_meta(meta), piece_bytes, hasher.finish())
        fault = _fault(manifest)
        if fault:
            raise LocalProtocolError(f"cannot describe this state: {fault}")
        return manifest

    @classmethod
    def decode(cls, data: bytes, peer: PeerId | None = None) -> Manifest:
        """Read a manifest from a stranger.

        Raises:
            RemoteProtocolError: anything but the canonical bytes of a valid manifest; names `peer`.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise RemoteProtocolError(peer, f"a manifest of {len(data)} bytes is too large")
        try:
            manifest = _parse(data)
            fault = _fault(manifest) or ("not the canonical form" if manifest.encoded != data else None)
        except (struct.error, ValueError, OverflowError) as error:
            raise RemoteProtocolError(peer, f"unreadable manifest: {error}") from error
        if fault:
            raise RemoteProtocolError(peer, f"invalid manifest: {fault}")
        return manifest


def hash_piece(piece: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3 of a piece (32 bytes)."""
    return blake3(piece).digest()


def canonical_meta(meta: Meta) -> str:
    """JSON text with sorted keys and no spaces.

    Raises:
        LocalProtocolError: something JSON cannot hold, such as NaN.
    """
    try:
        return json.dumps(dict(meta), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LocalProtocolError(f"the meta part of a state must be plain JSON: {error}") from error


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor: a view where it is contiguous on the CPU, else a copy. Every host is taken to be little-endian."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def read_tensor(entry: TensorEntry, data: bytes | bytearray | memoryview, offset: int) -> torch.Tensor:
    """Copy one tensor out of a state's bytes.

    Raises:
        ValueError: the bytes end before the tensor does.
    """
    result = torch.empty(entry.shape, dtype=entry.torch_dtype)
    tensor_bytes(result)[:] = memoryview(data)[offset : offset + entry.size_bytes]
    return result


class _PieceHasher:
    """Cuts a byte sequence that arrives in arbitrary portions into pieces and hashes each, holding no bytes."""

    def __init__(self, piece_bytes: int) -> None:
        if not MIN_PIECE_BYTES <= piece_bytes <= MAX_PIECE_BYTES:
            raise LocalProtocolError(f"pieces of {piece_bytes} bytes are not allowed")
        self._piece_bytes = piece_bytes
        self._hashes: list[bytes] = []
        self._hasher = blake3()
        self._filled_bytes = 0

    def update(self, data: memoryview) -> None:
        while len(data):
            portion = data[: self._piece_bytes - self._filled_bytes]
            self._hasher.update(portion)
            self._filled_bytes += len(portion)
            data = data[len(portion) :]
            if self._filled_bytes == self._piece_bytes:
                self._close_piece()

    def finish(self) -> tuple[bytes, ...]:
        if self._filled_bytes:
            self._close_piece()
        return tuple(self._hashes)

    def _close_piece(self) -> None:
        self._hashes.append(self._hasher.digest())
        self._hasher = blake3()
        self._filled_bytes = 0


class _Reader:
    """Reads fields off the front of a byte string; `struct.error` or `ValueError` when it runs out."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def unpack(self, fields: str) -> tuple[int, ...]:
        values = struct.unpack_from(fields, self._data, self._at)
        self._at += struct.calcsize(fields)
        return values

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise ValueError("it ends early")
        self._at += count
        return taken

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError(f"{len(self._data) - self._at} bytes too many")


def _parse(data: bytes) -> Manifest:
    """Read the fields; bounds on counts come first so that no number in `data` can make this loop or allocate beyond `data` itself."""
    reader = _Reader(data)
    if reader.take(5) != _MAGIC + bytes([_VERSION]):
        raise ValueError("not a manifest of this version")
    epoch, accepted_samples, piece_bytes, tensor_count, meta_bytes, piece_count = reader.unpack("<QQIIII")
    if tensor_count > MAX_TENSORS or meta_bytes > MAX_META_BYTES or piece_count * HASH_BYTES > len(data):
        raise ValueError("absurd counts")
    entries = []
    for _ in range(tensor_count):
        (name_bytes,) = reader.unpack("<H")
        name = reader.take(name_bytes).decode()
        code, dims = reader.unpack("<BB")
        if code not in _DTYPES_BY_CODE or dims > MAX_DIMS:
            raise ValueError(f"tensor {name[:80]!r} has an unknown dtype or too many dimensions")
        entries.append(TensorEntry(name, _DTYPES_BY_CODE[code], reader.unpack(f"<{dims}Q")))
    meta_json = reader.take(meta_bytes).decode("ascii")
    hashes = tuple(reader.take(HASH_BYTES) for _ in range(piece_count))
    reader.end()
    return Manifest(epoch, accepted_samples, tuple(entries), meta_json, piece_bytes, hashes)


def _fault(manifest: Manifest) -> str | None:
    """The first rule a manifest breaks, or None."""
    if not (0 <= manifest.epoch <= _MAX_COUNTER and 0 <= manifest.accepted_samples <= _MAX_COUNTER):
        return "a counter is out of range"
    if not MIN_PIECE_BYTES <= manifest.piece_bytes <= MAX_PIECE_BYTES:
        return f"pieces of {manifest.piece_bytes} bytes"
    if len(manifest.tensors) > MAX_TENSORS or len({entry.name for entry in manifest.tensors}) != len(manifest.tensors):
        return "too many tensors, or two of the same name"
    fault = next((fault for entry in manifest.tensors if (fault := _entry_fault(entry))), None)
    if fault:
        return fault
    if manifest.size_bytes > MAX_STATE_BYTES:
        return f"a state of {manifest.size_bytes} bytes"
    if len(manifest.piece_hashes) != -(-manifest.size_bytes // manifest.piece_bytes):
        return "the number of pieces does not fit the tensors"
    return _meta_fault(manifest.meta_json)


def _entry_fault(entry: TensorEntry) -> str | None:
    if not 0 < len(entry.name.encode()) <= MAX_NAME_BYTES or not entry.name.isprintable():
        return "a tensor name is empty, too long or unprintable"
    if len(entry.shape) > MAX_DIMS or any(size > MAX_STATE_BYTES for size in entry.shape):
        return f"tensor {entry.name!r} has an absurd shape"
    return None


def _meta_fault(meta_json: str) -> str | None:
    if len(meta_json) > MAX_META_BYTES:
        return "the meta part is too large"
    try:
        meta = json.loads(meta_json)
        canonical = isinstance(meta, dict) and canonical_meta(meta) == meta_json
    except (ValueError, RecursionError, LocalProtocolError):
        return "the meta part is not JSON"
    return None if canonical else "the meta part is not a JSON object in canonical form"
