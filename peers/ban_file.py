"""The bans that a member knows, with their proofs, in a file of its state directory: they outlive the process."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from google.protobuf.message import DecodeError

from peers.private_files import PUBLIC_MODE, read_bounded, write_atomic
from protocols.errors import StateDirError
from protocols.proto.swarm.v1 import trust_pb2 as pb
from protocols.trust.ledger import Ban

_FILE = "bans"
_MAX_BYTES = 256 * 2**20


def load_proofs(state_dir: Path) -> tuple[bytes, ...]:
    """Proofs of all bans known the last time; they are checked again before they are believed.

    Raises:
        StateDirError: the file is damaged.
    """
    path = state_dir / _FILE
    data = read_bounded(path, _MAX_BYTES, private=False)
    try:
        return tuple(pb.LedgerPage.FromString(data or b"").bans)
    except DecodeError as error:
        raise StateDirError(f"{path} is damaged: remove it, and other members will tell of bans again.") from error


def save_proofs(state_dir: Path, bans: Iterable[Ban]) -> None:
    """Keep the proofs of all bans.

    Raises:
        StateDirError: not writable.
    """
    write_atomic(state_dir / _FILE, pb.LedgerPage(bans=[ban.proof for ban in bans]).SerializeToString(deterministic=True), PUBLIC_MODE)
