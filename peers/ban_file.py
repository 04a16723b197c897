"""The bans that a member knows, with their proofs, in a file of its state directory: they outlive the process."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from google.protobuf.message import DecodeError

from peers.interfaces import Clock
from peers.private_files import PUBLIC_MODE, read_bounded, write_atomic
from protocols.certificate import membership_checker
from protocols.errors import RemoteError, StateDirError
from protocols.ids import Epoch, RunId
from protocols.proto.swarm.v1 import trust_pb2 as pb
from protocols.signing import open_old_envelope
from protocols.trust.ledger import Ban, Ledger, check_ban

log = logging.getLogger(__name__)

_FILE = "bans"
_MAX_BYTES = 256 * 2**20


def load_ledger(state_dir: Path, run: RunId, authority_key: bytes, clock: Clock) -> Ledger:
    """All bans known the last time, as far as their proofs hold.

    Args:
        state_dir: keeps them.
        run, authority_key: which run, and whose word counts in it.
        clock: ours.

    Raises:
        StateDirError: the file is damaged.
    """
    path = state_dir / _FILE
    data = read_bounded(path, _MAX_BYTES, private=False)
    try:
        page = pb.LedgerPage.FromString(data or b"")
        kept = list(zip(page.bans, page.epochs, strict=True))
    except (DecodeError, ValueError) as error:
        raise StateDirError(f"{path} is damaged: remove it, and other members will tell of bans again.") from error
    membership, ledger = membership_checker(run, authority_key), Ledger()
    for proof, epoch in kept:
        try:  # when we learned of it we had seen that epoch
            opener = lambda kind, sealed: open_old_envelope(sealed, kind, run, clock.now(), membership)  # noqa: E731
            ledger.add(check_ban(proof, opener, Epoch(epoch), lambda *_: 1, None))
        except RemoteError as error:
            log.warning("a ban that was remembered is forgotten: %s", error)
    return ledger


def save_proofs(state_dir: Path, bans: Iterable[Ban]) -> None:
    """Keep all bans.

    Raises:
        StateDirError: not writable.
    """
    kept = list(bans)
    page = pb.LedgerPage(bans=[ban.proof for ban in kept], epochs=[ban.epoch for ban in kept])
    write_atomic(state_dir / _FILE, page.SerializeToString(deterministic=True), PUBLIC_MODE)
