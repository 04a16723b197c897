"""Small files of a state directory that must never be half written, nor readable by others."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from protocols.errors import StateDirError

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644


def make_private_dir(path: Path) -> None:
    """Create a directory (mode 0700) with its parents, and make sure that we can write into it.

    Raises:
        StateDirError: it cannot be created or written.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StateDirError(f"The state directory {path} cannot be created ({error.strerror}): choose another --state-dir.") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise StateDirError(f"The state directory {path} cannot be written: change its owner or choose another --state-dir.")


def write_atomic(path: Path, data: bytes, mode: int = PRIVATE_MODE) -> None:
    """Replace a file in one step: a reader, or we after a crash, see the old bytes or the new ones.

    Args:
        path: in an existing directory.
        data: all of it.
        mode: permissions from the first moment.

    Raises:
        StateDirError: the disk is full, or the directory cannot be written.
    """
    try:
        descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # created with mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            Path(beside).replace(path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StateDirError(f"{path} cannot be written ({error.strerror}): free some space or choose another --state-dir.") from error


def read_bounded(path: Path, limit_bytes: int, *, private: bool) -> bytes | None:
    """Read a file; None if there is none.

    Args:
        path: what to read.
        limit_bytes: anything longer is damaged.
        private: insist that only its owner can read and write it.

    Raises:
        StateDirError: it cannot be read, is too long, or others can read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if private and stat.S_IMODE(mode) & 0o077:
                raise StateDirError(f"{path} can be used by others (mode {stat.S_IMODE(mode):04o}): run chmod 600 {path}.")
            data = file.read(limit_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateDirError(f"{path} cannot be read ({error.strerror}): change its owner or choose another --state-dir.") from error
    if len(data) > limit_bytes:
        raise StateDirError(f"{path} is damaged, it is too long: restore it from a copy or remove it.")
    return data
