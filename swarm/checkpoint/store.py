"""Checkpoints on disk: the same manifest and bytes that travel between members, one directory for each epoch.

    <directory>/epoch-000012/manifest.bin    an encoded `protocols.manifest.Manifest`
    <directory>/epoch-000012/state.bin       the bytes of all tensors

A checkpoint appears by one rename after everything in it has reached the disk, so there is never half a checkpoint under that name.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from pathlib import Path

from peers.state_snapshot import StateSnapshot
from protocols.errors import LocalProtocolError, RemoteProtocolError, StateDirError
from protocols.manifest import MAX_MANIFEST_BYTES, Manifest

log = logging.getLogger(__name__)

_MANIFEST = "manifest.bin"
_STATE = "state.bin"
_FINISHED = re.compile(r"epoch-(\d{6,})")
_UNFINISHED = "unfinished-"


class CheckpointStore:
    """The checkpoints of one run in one directory. One process writes; any number may read.

    Args:
        directory: made on the first save.
        keep: newest checkpoints to keep, at least 1.
    """

    def __init__(self, directory: Path, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError("at least one checkpoint must be kept")
        self._directory = directory
        self._keep = keep

    def beside(self, name: str) -> CheckpointStore:
        """Another store in a directory of that name in this one, for what is kept for ourselves; it keeps the newest only."""
        return CheckpointStore(self._directory / name, 1)

    def save(self, snapshot: StateSnapshot) -> Path:
        """Write a checkpoint and remove the oldest ones beyond `keep`.

        Returns:
            Its directory. One of the same epoch is replaced, unless it holds the same state.

        Raises:
            StateDirError: no space left, or the directory cannot be written; earlier checkpoints are untouched.
        """
        final = self._directory / f"epoch-{snapshot.epoch:06d}"
        if self._holds(final, snapshot):
            return final
        unfinished = self._directory / f"{_UNFINISHED}{final.name}"
        replaced = self._directory / f"{_UNFINISHED}replaced-{final.name}"
        try:
            self._remove_unfinished()
            unfinished.mkdir(parents=True)
            _write_durably(unfinished / _STATE, snapshot.data)
            _write_durably(unfinished / _MANIFEST, snapshot.manifest.encoded)
            _sync_directory(unfinished)
            if final.exists():
                final.rename(replaced)
            unfinished.rename(final)
            _sync_directory(self._directory)
            self._remove_unfinished()
        except OSError as error:
            if replaced.exists() and not final.exists():
                replaced.rename(final)
            shutil.rmtree(unfinished, ignore_errors=True)
            raise _cannot_save(self._directory, snapshot, error) from error
        self._prune(final)
        log.info("checkpoint saved: path=%s epoch=%d bytes=%d", final, snapshot.epoch, len(snapshot.data))
        return final

    def newest(self) -> StateSnapshot | None:
        """The newest checkpoint that is whole, or None. Damaged ones are named in a warning and left where they are."""
        for path in self.paths():
            try:
                return load_checkpoint(path)
            except StateDirError as error:
                log.warning("checkpoint skipped: path=%s reason=%s", path, error)
        return None

    def paths(self) -> list[Path]:
        """Directories of the checkpoints, newest first.

        Raises:
            StateDirError: the directory cannot be read.
        """
        try:
            found = [p for p in self._directory.iterdir() if _FINISHED.fullmatch(p.name)] if self._directory.exists() else []
        except OSError as error:
            raise StateDirError(f"cannot read the checkpoints in {self._directory}: {error.strerror or error}") from error
        return sorted(found, key=lambda path: int(path.name.removeprefix("epoch-")), reverse=True)

    def _holds(self, path: Path, snapshot: StateSnapshot) -> bool:
        if not path.exists():
            return False
        try:
            return load_checkpoint(path).state_hash == snapshot.state_hash
        except StateDirError:
            return False

    def _remove_unfinished(self) -> None:
        """Remove what a killed process left."""
        for path in self._directory.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(path)

    def _prune(self, newest: Path) -> None:
        """Remove the oldest; what is damaged keeps no place, and what was just written is never the oldest, whatever its number."""
        whole = [path for path in self.paths() if path != newest and self._is_whole(path)]
        for path in whole[self._keep - 1 :]:
            shutil.rmtree(path, ignore_errors=True)

    @staticmethod
    def _is_whole(path: Path) -> bool:
        """As far as sizes say: reading everything would take as long as writing it."""
        try:
            manifest = Manifest.decode((path / _MANIFEST).read_bytes())
            return (path / _STATE).stat().st_size == manifest.size_bytes
        except (OSError, RemoteProtocolError):
            return False


def load_checkpoint(path: Path) -> StateSnapshot:
    """Read one checkpoint and verify every piece of it.

    Args:
        path: the directory of one epoch.

    Raises:
        StateDirError: missing, unreadable or damaged.
    """
    try:
        if (path / _MANIFEST).stat().st_size > MAX_MANIFEST_BYTES:
            raise StateDirError(f"checkpoint {path} is damaged: its manifest is too large")
        manifest = Manifest.decode((path / _MANIFEST).read_bytes())
        data = (path / _STATE).read_bytes()
        snapshot = StateSnapshot(manifest, data)
    except OSError as error:
        raise StateDirError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except RemoteProtocolError as error:
        raise StateDirError(f"checkpoint {path} is damaged: {error.reason}") from error
    except LocalProtocolError as error:
        raise StateDirError(f"checkpoint {path} is damaged: {error}") from error
    damaged = snapshot.damaged_piece()
    if damaged is not None:
        raise StateDirError(f"checkpoint {path} is damaged: piece {damaged} does not match its hash")
    return snapshot


def _write_durably(path: Path, data: bytes | bytearray | memoryview) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    """Make names in a directory durable: without it a rename may be lost with the power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_save(directory: Path, snapshot: StateSnapshot, error: OSError) -> StateDirError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        need_mib = len(snapshot.data) / 2**20
        return StateDirError(
            f"no space left for a checkpoint in {directory}: free at least {need_mib:.0f} MiB; earlier checkpoints are untouched"
        )
    return StateDirError(f"cannot write a checkpoint in {directory}: {error.strerror or error}; earlier checkpoints are untouched")
