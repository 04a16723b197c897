"""A private directory for sockets and other short-lived files that does not outlive its owner for long."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

from peers import emergency
from protocols.errors import NetworkSetupError

log = logging.getLogger(__name__)

_MAX_SOCKET_PATH_BYTES = 100  # Linux allows 107, macOS 103


class RuntimeDirectory:
    """A private directory (mode 0700) for sockets and the identity file, locked while we live.

    The kernel drops the lock when we die, so the next start can tell left-overs from directories in use and removes the left-overs.

    Raises:
        NetworkSetupError: the place is not ours alone, or its path is too long for a socket.
    """

    def __init__(self, base: Path | None = None) -> None:
        self._base = base or Path(tempfile.gettempdir()) / f"swarm-peer-{os.getuid()}"
        base_fd = self._lock_base()
        try:
            self._sweep()
            self.path = Path(tempfile.mkdtemp(dir=self._base, prefix=""))
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            emergency.register(self, self.remove)
        finally:
            os.close(base_fd)
        if len(os.fsencode(self.path / "control.sock")) > _MAX_SOCKET_PATH_BYTES:
            self.remove()
            raise NetworkSetupError(f"The path {self.path} is too long for a socket: set TMPDIR to a shorter directory.")

    def remove(self) -> None:
        """Delete the directory with everything in it, and its parent when it was the last. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        emergency.forget(self)
        base_fd = self._lock_base()
        try:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(fd)
            with contextlib.suppress(OSError):  # others still live there
                self._base.rmdir()
        finally:
            os.close(base_fd)

    def _lock_base(self) -> int:
        """Open and lock the parent, making it first; a parent that a leaving process removed meanwhile is made again."""
        while True:
            self._base.mkdir(mode=0o700, exist_ok=True)
            status = self._base.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
                raise NetworkSetupError(f"{self._base} must be a directory that only this user can enter: remove it and try again.")
            try:
                fd = os.open(self._base, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(fd, fcntl.LOCK_EX)
                if self._base.stat().st_ino == os.fstat(fd).st_ino:
                    return fd
                os.close(fd)
            except FileNotFoundError:
                continue

    def _sweep(self) -> None:
        for entry in self._base.iterdir():
            if not entry.is_dir():
                continue
            fd = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                log.info("removing what a killed process left behind path=%s", entry)
                shutil.rmtree(entry, ignore_errors=True)
            finally:
                os.close(fd)
