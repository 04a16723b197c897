"""The training loop of one member, in the order in which things happen. Runs in the thread that owns the model.

Letters: B samples in a micro-batch, T tokens in a window.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from peers.training_peer import PeerStopped, ReplayRequest, TrainingPeer
from protocols.errors import StateDirError
from protocols.ids import Epoch, PeerId
from swarm.checkpoint.store import CheckpointStore
from swarm.data.assignment import window_offsets
from swarm.data.dataset import Dataset
from swarm.optim.collaborative import CollaborativeOptimizer
from swarm.optim.outcome import StepOutcome, StepStatus
from swarm.optim.state import StateMismatch
from swarm.training.gradients import LossSum, accumulate_gradients, device_of
from swarm.training.pace import Pace

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """How one member trains.

    Args:
        member: whose samples are drawn; this member.
        run_seed: of the run; with epoch and member it decides which samples those are.
        micro_batch_samples: B, at least 1.
        helper: take part in rounds without computing.
        replays: compute again what others contributed, when asked; a helper never does.
        checkpoint_every_epochs: epochs between checkpoints, at least 1.
        max_epochs: stop at this epoch; None trains until the peer stops.
        retry_s: pause before another try to fetch a state that nobody could give.
    """

    member: PeerId
    run_seed: int
    micro_batch_samples: int
    helper: bool = False
    replays: bool = True
    checkpoint_every_epochs: int = 10
    max_epochs: int | None = None
    retry_s: float = 1.0


@dataclass(frozen=True, slots=True)
class EpochAction:
    """Something to do when the state has changed, such as measuring the held-out loss.

    Args:
        every_epochs: do it when the epoch is a multiple of this, or has jumped over one.
        run: receives what made the state change.
    """

    every_epochs: int
    run: Callable[[StepOutcome], None]


class Trainer:
    """Computes on this member's samples and steps the collaborative optimizer until the run or the peer ends.

    Args:
        model: on the device that computes.
        optimizer: wraps the model and its optimizer.
        peer: this member.
        dataset: where samples come from; unused by a helper.
        store: checkpoints of this member.
        settings: see `TrainerSettings`.
        actions: done in order after each change of epoch, before the checkpoint.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: CollaborativeOptimizer,
        peer: TrainingPeer,
        dataset: Dataset,
        store: CheckpointStore,
        settings: TrainerSettings,
        actions: Sequence[EpochAction] = (),
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._peer = peer
        self._dataset = dataset
        self._store = store
        self._own_store = store.beside("own")
        self._settings = settings
        self._actions = (*actions, EpochAction(settings.checkpoint_every_epochs, self._save))
        self.samples_total = 0
        """Samples this member has computed since it started."""
        self.pace = Pace()
        """How fast it computes."""
        self._saved_hash = b""
        self._loaded = False

    @property
    def micro_batch_samples(self) -> int:
        """B."""
        return self._settings.micro_batch_samples

    @property
    def device_type(self) -> str:
        """Of the device that computes: "cpu" or "cuda"."""
        return device_of(self._model).type

    @property
    def update_s(self) -> float | None:
        """See `CollaborativeOptimizer.update_s`."""
        return self._optimizer.update_s

    def run(self) -> Epoch:
        """Train; returns the epoch reached once the run or the peer has ended, after a last checkpoint.

        Raises:
            StateDirError: checkpoints belong to another model, or cannot be written.
            RemoteProtocolError: the swarm's state does not fit this model.
        """
        if self._settings.replays and not self._settings.helper:
            self._optimizer.replay_with(self._replay_batch)
        self.load_newest_checkpoint()
        try:
            while not self._finished():
                epoch = self._optimizer.epoch
                outcome = self._turn()
                if outcome.status is StepStatus.BEHIND or (outcome.status is StepStatus.ABORTED and not self._optimizer.overlap):
                    self._peer.pause(self._settings.retry_s)
                if outcome.epoch != epoch:
                    self._epoch_changed(epoch, outcome)
        except PeerStopped:
            log.info("training stops: epoch=%d dropped_samples=%d", self._optimizer.epoch, self._optimizer.samples)
        self._save_last()
        return self._optimizer.epoch

    def _turn(self) -> StepOutcome:
        """One micro-batch, or for a helper one wait."""
        if self._settings.helper:
            return self._optimizer.follow()
        behind = self._optimizer.synchronise()
        if behind is not None:
            return behind
        settings, first = self._settings, self._optimizer.next_sample
        size = min(settings.micro_batch_samples, self._optimizer.batch_limit or settings.micro_batch_samples)
        undisturbed, averaging = self._peer.replay_wanted() is None, self._optimizer.averaging
        with self.pace.turn() as turn:
            loss = self._compute(self._optimizer.sampling_epoch, settings.member, range(first, first + size))
            self.samples_total += loss.samples
            outcome = self._optimizer.step(samples=loss.samples, loss=loss.mean, summed=True)
            if undisturbed and outcome.status is StepStatus.ACCUMULATED and self._optimizer.averaging is averaging:
                turn.samples = loss.samples
        return outcome

    def _replay_batch(self, request: ReplayRequest, done: int) -> int | None:
        """The next samples of another member's contribution: a `swarm.optim.replaying.ReplayBatch`."""
        first = request.first_sample + done
        indices = range(first, first + min(self._settings.micro_batch_samples, request.samples - done))
        loss = self._compute(request.epoch, request.peer, indices, bf16=request.bf16)
        return loss.samples if loss.is_finite else None

    def _compute(self, epoch: Epoch, member: PeerId, indices: range, *, bf16: bool | None = None) -> LossSum:
        """Add the gradients of a stretch of a member's samples, summed over them; anybody can compute the same."""
        offsets = window_offsets(self._settings.run_seed, epoch, member.public_key, indices, self._dataset.positions)
        return accumulate_gradients(self._model, self._dataset.sample(offsets), bf16=bf16)

    def _finished(self) -> bool:
        limit = self._settings.max_epochs
        return self._peer.stopping() or (limit is not None and self._optimizer.epoch >= limit)

    def _epoch_changed(self, before: Epoch, outcome: StepOutcome) -> None:
        log.info(
            "epoch: epoch=%d status=%s swarm_samples=%g members=%d",
            outcome.epoch,
            outcome.status,
            outcome.weight,
            len(outcome.contributors),
        )
        for action in self._actions:
            if outcome.epoch // action.every_epochs != before // action.every_epochs:
                action.run(outcome)

    def load_newest_checkpoint(self) -> None:
        """Go on from what is on disk, if anything; the first time only.

        Raises:
            StateDirError: checkpoints belong to another model.
        """
        if self._loaded:
            return
        self._loaded = True
        snapshot = self._store.newest()
        if snapshot is None:
            return
        try:
            self._optimizer.load_snapshot(snapshot)
        except StateMismatch as error:
            raise StateDirError(
                f"the checkpoint of epoch {snapshot.epoch} is of another run, choose another state directory: {error}"
            ) from error
        self._load_own()
        self._saved_hash = snapshot.state_hash
        log.info("resumed from checkpoint: epoch=%d", snapshot.epoch)

    def _load_own(self) -> None:
        """What only we had; without it we go on from what all have."""
        own = self._own_store.newest()
        if own is None:
            return
        try:
            self._optimizer.load_own(own)
        except StateMismatch as error:
            log.warning("what this member kept for itself is not used: %s", error)

    def _save(self, outcome: StepOutcome) -> None:
        self._save_now()

    def _save_last(self) -> None:
        """Epoch 0 is not worth a checkpoint: every member makes it from the run's seed."""
        if self._optimizer.epoch > 0 and (self._optimizer.state_hash != self._saved_hash or self._optimizer.samples):
            self._save_now()

    def _save_now(self) -> None:
        """What all members have, and what only we have."""
        self._store.save(self._optimizer.snapshot())
        self._saved_hash = self._optimizer.state_hash
        own = self._optimizer.own_snapshot()
        if own is not None:
            self._own_store.save(own)
