"""The Ed25519 key that is this peer, and the lock that keeps two processes from being the same peer.

<state_dir>/identity.key   the key's 32-byte seed, mode 0600
<state_dir>/lock           flock held while a peer runs; holds its process id
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peers.private_files import PRIVATE_MODE, make_private_dir, read_bounded, write_atomic
from protocols.errors import ExitCode, StateDirError
from protocols.ids import PeerId

KEY_FILE = "identity.key"
LOCK_FILE = "lock"
_SEED_BYTES = 32
_MAX_PID_CHARS = 20


@dataclass(frozen=True, slots=True)
class Identity:
    """A peer's key; a `protocols.signing.Signer`.

    Args:
        private_key: never leaves this machine.
    """

    private_key: Ed25519PrivateKey = field(repr=False)

    @property
    def public_key(self) -> bytes:
        """32 raw bytes."""
        return self.private_key.public_key().public_bytes_raw()

    @property
    def peer(self) -> PeerId:
        """Who we are."""
        return PeerId(self.public_key)

    @property
    def seed(self) -> bytes:
        """32 bytes of private key, for the libp2p daemon, which proves the same identity."""
        return self.private_key.private_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """64-byte Ed25519 signature."""
        return self.private_key.sign(message)

    @classmethod
    def generate(cls) -> Identity:
        """A new one, kept nowhere."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, state_dir: Path) -> Identity:
        """The identity of a state directory; made, and the directory with it, the first time.

        Raises:
            StateDirError: the directory is not writable, or the key is damaged or readable by others.
        """
        make_private_dir(state_dir)
        path = state_dir / KEY_FILE
        seed = read_bounded(path, _SEED_BYTES, private=True)
        if seed is None:
            identity = cls.generate()
            write_atomic(path, identity.seed, PRIVATE_MODE)
            return identity
        if len(seed) != _SEED_BYTES:
            raise StateDirError(f"{path} is damaged: restore it from a copy, or remove it to become a new peer.")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))


@contextlib.contextmanager
def state_dir_lock(state_dir: Path) -> Iterator[None]:
    """Be the only peer that uses this state directory. The lock ends with the process, however it ends; the file stays.

    Raises:
        StateDirError: another process uses it (exit code IDENTITY_IN_USE), or it is not writable.
    """
    make_private_dir(state_dir)
    path = state_dir / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
    except OSError as error:
        raise StateDirError(f"{path} cannot be opened ({error.strerror}): change its owner or choose another --state-dir.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _printable_pid(os.pread(descriptor, _MAX_PID_CHARS, 0))
            sentence = f"The state directory {state_dir} is used by another peer{holder}: stop it, or choose another --state-dir."
            raise StateDirError(sentence, ExitCode.IDENTITY_IN_USE) from None
        except OSError as error:
            raise StateDirError(f"{path} cannot be locked ({error.strerror}): keep the state directory on a local disk.") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _printable_pid(raw: bytes) -> str:
    text = raw.strip()
    return f" (process {text.decode()})" if text.isdigit() else ""
