"""Writes `status.json` about once a second while a peer runs."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from peers.training_peer import MemberView, SwarmView, TrainingPeer
from protocols.errors import StateDirError
from protocols.ids import PeerId
from swarm.monitoring.status import HASH_HISTORY, STOPPED, BannedStatus, EpochHash, MemberStatus, PeerStatus, write_status

log = logging.getLogger(__name__)

EVERY_S = 0.5


@dataclass
class Measured:
    """What only the trainer knows; written by its thread, read by the reporter's.

    Args:
        eval_loss: newest held-out loss, nats per token.
        hashes: state hash after each of the last epochs.
        last_error: last thing that went wrong.
    """

    eval_loss: float | None = None
    hashes: deque[EpochHash] = field(default_factory=lambda: deque(maxlen=HASH_HISTORY))
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class Describes:
    """What does not change while a peer runs."""

    run_name: str
    run_id: str
    peer: PeerId
    role: str
    libp2p_addresses: tuple[str, ...]
    data_address: str


class StatusReporter:
    """A small thread: the table must move while the trainer computes and the network waits.

    Args:
        path: of the status file.
        about: what does not change.
        peer: for its view of the swarm.
        measured: what the trainer adds.
        samples_total: how many samples were computed here since the start.
    """

    def __init__(self, path: Path, about: Describes, peer: TrainingPeer, measured: Measured, samples_total: Callable[[], int]) -> None:
        self._path = path
        self._about = about
        self._peer = peer
        self._measured = measured
        self._samples_total = samples_total
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Write the last status and end."""
        self._stop.set()
        self._thread.join()
        self._write(stopped=True)

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._write(stopped=False)

    def _write(self, *, stopped: bool) -> None:
        try:
            write_status(self._path, self.status(stopped=stopped))
        except StateDirError as error:
            log.warning("status not written: %s", error)

    def status(self, *, stopped: bool) -> PeerStatus:
        """The status as of now."""
        view = self._peer.view()
        own = next((member for member in view.members if member.peer == self._about.peer), None)
        return PeerStatus(
            run_name=self._about.run_name,
            run_id=self._about.run_id,
            peer=str(self._about.peer),
            pid=os.getpid(),
            role=self._about.role,
            state=STOPPED if stopped else own.phase if own else "joining",
            epoch=own.epoch if own else 0,
            samples=own.samples if own else 0,
            samples_total=self._samples_total(),
            samples_per_s=own.samples_per_s if own else 0.0,
            sent_bytes=own.sent_bytes if own else 0,
            received_bytes=own.received_bytes if own else 0,
            loss=own.loss if own else None,
            eval_loss=self._measured.eval_loss,
            state_hash=own.state_hash.hex() if own else "",
            target_samples=view.target_samples,
            swarm_samples=view.samples,
            addresses=self._about.libp2p_addresses,
            members=_members(view),
            updated_at=time.time(),
            last_error=self._measured.last_error,
            data_address=self._about.data_address,
            hashes=tuple(self._measured.hashes),
            banned=tuple(BannedStatus(str(ban.peer), ban.epoch, ban.reason) for ban in view.banned),
        )


def _members(view: SwarmView) -> tuple[MemberStatus, ...]:
    return tuple(_member(member) for member in sorted(view.members, key=lambda member: member.peer))


def _member(member: MemberView) -> MemberStatus:
    return MemberStatus(
        str(member.peer),
        member.role,
        member.phase,
        member.epoch,
        member.samples,
        member.samples_per_s,
        member.sent_bytes,
        member.received_bytes,
        member.loss,
        member.state_hash.hex(),
    )
