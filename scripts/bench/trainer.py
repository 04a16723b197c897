"""A trainer without a model: its state follows from the epoch alone, its contribution from seed and rank. For `scripts.bench.member`."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from peers.state_snapshot import StateSnapshot
from peers.training_peer import Contribution, PeerStopped, RoundOutcome, RoundStatus, TrainingPeer
from protocols.errors import RoundError
from protocols.ids import Epoch
from scripts.bench import data

STATE_ELEMS = 2**16
SAMPLES_PER_EPOCH = 1000
"""What every epoch adds to the accepted samples, whoever took part, so that all members name the same state."""

TICK_S = 0.1
PAUSE_S = 0.2
DIGEST_BYTES = 16


def state_at(epoch: int) -> StateSnapshot:
    """The state that everybody holds after that many epochs."""
    weights = torch.full((STATE_ELEMS,), float(epoch))
    return StateSnapshot.of([("weights", weights)], epoch=epoch, accepted_samples=epoch * SAMPLES_PER_EPOCH, meta={})


class Trainer:
    """Computes nothing at a steady speed and closes epochs with the others.

    Args:
        peer: what it closes them through.
        rank: part of what determines its vector.
        own_D: its vector, shape (D,), before any rotation.
        weight: samples its vector stands for.
        founder: it begins by itself; others first fetch the state.
    """

    def __init__(self, peer: TrainingPeer, rank: int, own_D: NDArray[np.float32], weight: float, founder: bool) -> None:
        self._peer = peer
        self._rank = rank
        self._own_D = own_D
        self._weight = weight
        self._founder = founder
        self._lock = threading.Lock()
        self._closed: dict[int, str] = {}
        self._counts = dict.fromkeys(("applied", "alone", "aborted", "behind", "fetched", "not_fetched"), 0)
        self._began_at_s = time.monotonic()
        self._last_round_at_s = time.monotonic()
        self._holds_state = False
        self.epoch = Epoch(0)
        self.vector_D = torch.from_numpy(own_D)

    def load(self, epoch: int) -> None:
        """Make the contribution of an epoch."""
        self.vector_D = torch.from_numpy(data.rotated(self._own_D, epoch))

    def hold(self, epoch: Epoch) -> None:
        """Take over the state of an epoch."""
        state = state_at(epoch)
        self.epoch, self._holds_state = epoch, True
        self._began_at_s = time.monotonic()
        self._peer.announce_epoch(epoch, state.state_hash, state.manifest.accepted_samples)
        self._peer.report(0, 0.0, None, "training")

    def gauge(self) -> dict[str, Any]:
        """Counts since the start, seconds since the last round that worked, and the results since the last call, by epoch."""
        with self._lock:
            closed, self._closed = self._closed, {}
            idle_s = time.monotonic() - self._last_round_at_s
            return {"epoch": self.epoch, **self._counts, "since_round_s": idle_s, "closed": closed}

    def run(self, samples_per_s: float) -> None:
        """Train until the peer stops; owner of its thread."""
        with suppress(PeerStopped):
            if self._founder:
                self.hold(Epoch(0))
            while True:
                self._turn(samples_per_s)

    def _turn(self, samples_per_s: float) -> None:
        if self._peer.view().behind:
            self._catch_up()
            return
        if not self._holds_state:
            self._peer.wait_for_call(TICK_S)
            return
        if self._peer.snapshot_wanted():
            self._peer.publish_snapshot(state_at(self.epoch))
        if self._peer.epoch_closing():
            self._close_epoch()
            return
        samples = int(samples_per_s * (time.monotonic() - self._began_at_s))
        self._peer.report(samples, samples_per_s, None, "training")
        self._peer.wait_for_call(TICK_S)

    def _catch_up(self) -> None:
        try:
            snapshot = self._peer.fetch_state()
        except RoundError:
            self._count("not_fetched")
            self._peer.pause(PAUSE_S)
            return
        self._count("fetched")
        self.hold(Epoch(snapshot.epoch))

    def _close_epoch(self) -> None:
        epoch = self.epoch
        self.load(epoch)
        self._peer.report(int(self._weight), 0.0, None, "averaging")
        outcome = self._peer.average(Contribution(epoch, self.vector_D, self._weight, state_at(epoch).state_hash))
        self._count(outcome.status.value)
        if outcome.status in (RoundStatus.APPLIED, RoundStatus.ALONE):
            self._note(outcome)
            self.hold(Epoch(epoch + 1))
        else:
            self._peer.pause(PAUSE_S)

    def _note(self, outcome: RoundOutcome) -> None:
        if outcome.vector is None:
            raise RoundError("a round that worked has a result")
        digest = blake2b(outcome.vector.numpy().view(np.uint8).data, digest_size=DIGEST_BYTES).hexdigest()
        with self._lock:
            self._closed[outcome.epoch] = digest
            self._last_round_at_s = time.monotonic()

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1
