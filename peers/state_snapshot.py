"""A whole training state in memory, and one that is still being collected."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from protocols.errors import LocalProtocolError, RemoteProtocolError, StateDirError
from protocols.manifest import DEFAULT_PIECE_BYTES, Manifest, Meta, NamedTensors, read_tensor, tensor_bytes

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class StateSnapshot:
    """A state: its manifest and its bytes. Nobody writes to `data` once the snapshot exists.

    Args:
        manifest: what the bytes mean.
        data: the little-endian bytes of all tensors, one after another; `manifest.size_bytes` of them.
    """

    manifest: Manifest
    data: Buffer

    def __post_init__(self) -> None:
        if len(self.data) != self.manifest.size_bytes:
            raise LocalProtocolError(f"a state of {self.manifest.size_bytes} bytes cannot have {len(self.data)} bytes of data")

    @classmethod
    def of(
        cls,
        tensors: NamedTensors,
        *,
        epoch: int,
        accepted_samples: int,
        meta: Meta,
        piece_bytes: int = DEFAULT_PIECE_BYTES,
    ) -> StateSnapshot:
        """Copy and describe named tensors.

        Raises:
            LocalProtocolError: a state that peers would refuse.
        """
        named = list(tensors)
        manifest = Manifest.build(named, epoch=epoch, accepted_samples=accepted_samples, meta=meta, piece_bytes=piece_bytes)
        return cls.copy_of(manifest, named)

    @classmethod
    def copy_of(cls, manifest: Manifest, tensors: NamedTensors) -> StateSnapshot:
        """Copy tensors that `manifest` already describes.

        Raises:
            LocalProtocolError: they are not those of the manifest.
        """
        data = bytearray(manifest.size_bytes)
        offset = 0
        for _, tensor in tensors:
            portion = tensor_bytes(tensor)
            data[offset : offset + len(portion)] = portion
            offset += len(portion)
        return cls(manifest, data)

    @property
    def epoch(self) -> int:
        """Updates applied to this state."""
        return self.manifest.epoch

    @property
    def state_hash(self) -> bytes:
        """32 bytes that name this state."""
        return self.manifest.root

    def piece(self, index: int) -> memoryview:
        """Bytes of one piece, without a copy.

        Raises:
            IndexError: no such piece.
        """
        start, stop = self.manifest.piece_span(index)
        return memoryview(self.data)[start:stop]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each tensor as a copy, one at a time."""
        for entry, offset in self.manifest.spans():
            yield entry.name, read_tensor(entry, self.data, offset)

    def damaged_piece(self) -> int | None:
        """Index of the first piece that does not match its hash, or None when all do."""
        indices = range(len(self.manifest.piece_hashes))
        return next((i for i in indices if not self.manifest.verify_piece(i, self.piece(i))), None)


class PartialState:
    """The pieces of one state received so far, in memory and, if a directory is given, in two files there that outlive the process.

    Nothing read back from the files is trusted: each piece is verified again, so a half-written one merely counts as missing.

    Args:
        directory: where to keep `manifest.part` and `state.part`; made if missing.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._manifest: Manifest | None = None
        self._data = bytearray()
        self._held: set[int] = set()
        self._loaded = directory is None

    @property
    def held_pieces(self) -> int:
        """Number of pieces held and verified."""
        return len(self._held)

    def begin(self, manifest: Manifest, own: StateSnapshot | None = None) -> list[int]:
        """Start or go on collecting a state.

        Pieces are taken over from what was collected before, even of another state, and from `own`.

        Returns:
            Indices of the pieces that are still missing.

        Raises:
            StateDirError: the directory cannot be written.
        """
        self._load()
        sources = [own] if own is not None else []
        if self._manifest is None or self._manifest.root != manifest.root:
            if self._manifest is not None:
                sources.append(StateSnapshot(self._manifest, self._data))
            self._manifest, self._data, self._held = manifest, bytearray(manifest.size_bytes), set()
            self._create_files()
        for source in sources:
            self._take_over(manifest, source)
        return [index for index in range(len(manifest.piece_hashes)) if index not in self._held]

    def store(self, index: int, piece: Buffer) -> None:
        """Keep a verified piece.

        Raises:
            StateDirError: the file cannot be written.
        """
        if self._manifest is None:
            raise LocalProtocolError("a piece was stored before the manifest")
        start, stop = self._manifest.piece_span(index)
        self._data[start:stop] = piece
        self._held.add(index)
        if self._directory is not None:
            try:
                with (self._directory / "state.part").open("r+b") as file:
                    os.pwrite(file.fileno(), piece, start)
            except OSError as error:
                raise _cannot_write(self._directory, error) from error

    def snapshot(self) -> StateSnapshot:
        """The whole state.

        Raises:
            LocalProtocolError: pieces are missing.
        """
        if self._manifest is None or len(self._held) != len(self._manifest.piece_hashes):
            raise LocalProtocolError("a state was taken before all of its pieces were there")
        return StateSnapshot(self._manifest, self._data)

    def discard(self) -> None:
        """Forget everything and remove the files; snapshots handed out stay valid."""
        self._manifest, self._data, self._held = None, bytearray(), set()
        if self._directory is not None:
            for name in ("manifest.part", "state.part"):
                (self._directory / name).unlink(missing_ok=True)

    def _take_over(self, manifest: Manifest, source: StateSnapshot) -> None:
        where = {piece_hash: index for index, piece_hash in enumerate(source.manifest.piece_hashes)}
        for index, piece_hash in enumerate(manifest.piece_hashes):
            if index not in self._held and piece_hash in where:
                piece = source.piece(where[piece_hash])
                if manifest.verify_piece(index, piece):  # a piece the source never received holds other bytes than its hash says
                    self.store(index, piece)

    def _load(self) -> None:
        """Read what an earlier process left; anything odd is as good as nothing."""
        if self._loaded or self._directory is None:
            return
        self._loaded = True
        try:
            manifest = Manifest.decode((self._directory / "manifest.part").read_bytes())
            data = bytearray((self._directory / "state.part").read_bytes())
        except (OSError, RemoteProtocolError):
            return
        if len(data) == manifest.size_bytes:
            self._manifest, self._data = manifest, data
            found = StateSnapshot(manifest, data)
            self._held = {i for i in range(len(manifest.piece_hashes)) if manifest.verify_piece(i, found.piece(i))}

    def _create_files(self) -> None:
        if self._directory is None or self._manifest is None:
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with (self._directory / "state.part").open("wb") as file:
                file.truncate(self._manifest.size_bytes)
            (self._directory / "manifest.part").write_bytes(self._manifest.encoded)
        except OSError as error:
            raise _cannot_write(self._directory, error) from error


def _cannot_write(directory: Path, error: OSError) -> StateDirError:
    cause = error.strerror or str(error)
    return StateDirError(f"cannot keep the state being fetched in {directory}: {cause}; free space or mend its permissions")
