"""A peer on its own: the trainer's side of `PeerHandle` without any network. For a run on one machine, and for tests."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from peers.state_snapshot import StateSnapshot
from peers.training_peer import Contribution, MemberView, PeerStopped, Replayed, ReplayRequest, RoundOutcome, RoundStatus, SwarmView
from protocols.errors import RoundError
from protocols.ids import Epoch, PeerId
from protocols.progress import TargetSamples, target_at


class LocalPeer:
    """Closes an epoch whenever this machine alone has reached the target; every round ends ALONE.

    Args:
        peer: this member's identity.
        target_samples: samples that end an epoch, at least 1, or each of them.
    """

    def __init__(self, peer: PeerId, target_samples: TargetSamples) -> None:
        if target_at(target_samples, Epoch(0)) < 1:
            raise ValueError("an epoch has at least one sample")
        self._peer = peer
        self._target_samples = target_samples
        self._stop = threading.Event()
        self._epoch = Epoch(0)
        self._state_hash = b""
        self._samples = 0
        self._samples_per_s = 0.0
        self._loss: float | None = None
        self._phase = "joining"

    @property
    def _target(self) -> int:
        return target_at(self._target_samples, self._epoch)

    def report(self, samples: int, samples_per_s: float, loss: float | None, phase: str) -> None:
        """Take note of progress."""
        self._samples, self._samples_per_s, self._loss, self._phase = samples, samples_per_s, loss, phase

    def view(self) -> SwarmView:
        """A swarm of one, never behind."""
        missing = max(0, self._target - self._samples)
        eta_s = missing / self._samples_per_s if self._samples_per_s > 0 else None
        progress = (self._epoch, self._samples, self._samples_per_s, 0, 0, self._loss, self._state_hash)
        member = MemberView(self._peer, "trainer", self._phase, *progress)
        return SwarmView(self._epoch, self._samples, self._target, eta_s, (member,), self._state_hash, behind=False)

    def epoch_closing(self) -> bool:
        """Whether the target is reached."""
        return self._samples >= self._target

    def wait_for_call(self, timeout_s: float) -> bool:
        """Wait for `stop`, at most `timeout_s`: nobody else calls here.

        Raises:
            PeerStopped: stopped.
        """
        self.pause(timeout_s)
        return self.epoch_closing()

    def pause(self, duration_s: float) -> None:
        """Do nothing for a while.

        Raises:
            PeerStopped: stopped.
        """
        if self._stop.wait(duration_s):
            raise PeerStopped("the peer is stopping")

    def average(self, contribution: Contribution) -> RoundOutcome:
        """The contribution itself.

        Raises:
            PeerStopped: stopped.
        """
        if self._stop.is_set():
            raise PeerStopped("the peer is stopping")
        if contribution.weight <= 0:
            return RoundOutcome(RoundStatus.ABORTED, contribution.epoch, reason="nobody has computed anything")
        return RoundOutcome(RoundStatus.ALONE, contribution.epoch, contribution.vector, contribution.weight, (self._peer,))

    def start_averaging(self, contribution: Contribution) -> Future[RoundOutcome]:
        """As `average`; done at once.

        Raises:
            PeerStopped: stopped.
        """
        answer: Future[RoundOutcome] = Future()
        answer.set_result(self.average(contribution))
        return answer

    def announce_epoch(self, epoch: Epoch, state_hash: bytes, accepted_samples: int) -> None:
        """Take note of the state held."""
        self._epoch, self._state_hash, self._samples = epoch, state_hash, 0

    def snapshot_wanted(self) -> bool:
        """Nobody asks."""
        return False

    def publish_snapshot(self, snapshot: StateSnapshot) -> None:
        """Nobody fetches it."""

    def replay_wanted(self) -> ReplayRequest | None:
        """Nobody asks."""
        return None

    def publish_replay(self, request: ReplayRequest, replayed: Replayed | None) -> None:
        """Nobody waits for it."""

    def fetch_state(self) -> StateSnapshot:
        """There is nobody to fetch from.

        Raises:
            RoundError: always.
        """
        raise RoundError("a peer on its own has nobody to fetch the state from")

    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Make the trainer leave its loop. From any thread or signal handler."""
        self._stop.set()
