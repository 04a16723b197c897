"""The training loop: the right samples, checkpoints that resume the same trajectory, and a clean stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from peers.bridge import PeerStopped, SwarmView
from peers.local import LocalPeer
from peers.state_snapshot import StateSnapshot
from protocols.errors import RoundError, StateDirError
from protocols.ids import Epoch, PeerId
from swarm.checkpoint.store import CheckpointStore
from swarm.data.assignment import window_offsets
from swarm.data.dataset import Dataset
from swarm.data.windows import ByteSequence
from swarm.optim import CollaborativeOptimizer, StepOutcome, StepStatus
from swarm.training.pace import WARM_UP_TURNS
from swarm.training.trainer import EpochAction, Trainer, TrainerSettings

ME = PeerId(b"m" * 32)
TEXT = np.frombuffer(bytes(range(97, 123)) * 40, dtype=np.uint8)
DATASET = Dataset("letters", bytes(32), ByteSequence([TEXT]), ByteSequence([TEXT]), sequence_length=8)
SEED = 7


class TinyModel(torch.nn.Module):
    """Next byte from this byte."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = torch.nn.Embedding(256, 8)
        self.head = torch.nn.Linear(8, 256)
        self.seen: list[torch.Tensor] = []

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        self.seen.append(input_ids)
        return SimpleNamespace(logits=self.head(self.embedding(input_ids)))


class Member:
    """A peer with its trainer, as the runtime would put them together."""

    def __init__(self, directory: Path, *, peer: LocalPeer | None = None, seed: int = 0, **settings: object) -> None:
        self.model = TinyModel(seed)
        self.peer = peer or LocalPeer(ME, 8)
        inner = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.optimizer = CollaborativeOptimizer(self.model, inner, peer=self.peer, target_batch_samples=8)
        self.store = CheckpointStore(directory)
        self.outcomes: list[StepOutcome] = []
        self.settings = TrainerSettings(ME, SEED, micro_batch_samples=4, **settings)  # type: ignore[arg-type]
        self.actions = [EpochAction(1, self.outcomes.append)]

    def train(self) -> Epoch:
        return Trainer(self.model, self.optimizer, self.peer, DATASET, self.store, self.settings, self.actions).run()


def stop_at(member: Member, epoch: int) -> Callable[[StepOutcome], None]:
    def action(outcome: StepOutcome) -> None:
        if outcome.epoch == epoch:
            member.peer.stop()

    return action


def test_it_trains_to_the_end_and_learns(tmp_path: Path) -> None:
    member = Member(tmp_path, max_epochs=25)
    report = member.peer.report
    seen: list[float] = []

    def note(samples: int, samples_per_s: float, loss: float | None, phase: str) -> None:
        if loss is not None:
            seen.append(loss)
        report(samples, samples_per_s, loss, phase)

    member.peer.report = note  # type: ignore[method-assign]
    assert member.train() == 25
    assert [outcome.epoch for outcome in member.outcomes] == list(range(1, 26))
    assert all(outcome.status is StepStatus.ALONE and outcome.weight == 8 for outcome in member.outcomes)
    assert seen[0] > 5
    assert seen[-1] < seen[0] - 1


def test_samples_are_those_that_anybody_can_recompute(tmp_path: Path) -> None:
    member = Member(tmp_path, max_epochs=3)
    member.train()
    expected = [
        DATASET.sample(window_offsets(SEED, epoch, ME.public_key, range(first, first + 4), DATASET.positions))[:, :-1]
        for epoch in range(3)
        for first in (0, 4)
    ]
    assert len(member.model.seen) == 6
    for tokens, wanted in zip(member.model.seen, expected, strict=True):
        assert torch.equal(tokens, wanted)


def test_a_resumed_run_takes_the_same_trajectory_as_one_that_was_never_killed(tmp_path: Path) -> None:
    whole = Member(tmp_path / "whole", max_epochs=9)
    whole.train()
    killed = Member(tmp_path / "killed", checkpoint_every_epochs=4, max_epochs=9)

    def die(outcome: StepOutcome) -> None:
        if outcome.epoch == 6:
            raise KeyboardInterrupt

    killed.actions.append(EpochAction(1, die))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    assert [path.name for path in killed.store.paths()] == ["epoch-000004"]
    again = Member(tmp_path / "killed", seed=99, max_epochs=9)
    assert again.train() == 9
    assert [outcome.epoch for outcome in again.outcomes] == [5, 6, 7, 8, 9]
    assert again.optimizer.state_hash == whole.optimizer.state_hash


def test_checkpoints_come_every_so_many_epochs_and_once_at_the_end(tmp_path: Path) -> None:
    member = Member(tmp_path, checkpoint_every_epochs=3, max_epochs=7)
    member.train()
    assert [path.name for path in member.store.paths()] == ["epoch-000007", "epoch-000006", "epoch-000003"]
    newest = member.store.newest()
    assert newest is not None
    assert newest.state_hash == member.optimizer.state_hash


def test_a_stop_ends_the_loop_and_saves_the_state(tmp_path: Path) -> None:
    member = Member(tmp_path)
    member.actions.append(EpochAction(1, stop_at(member, 2)))
    assert member.train() == 2
    assert [path.name for path in member.store.paths()] == ["epoch-000002"]


def test_a_stop_before_the_first_epoch_leaves_nothing_behind(tmp_path: Path) -> None:
    member = Member(tmp_path / "checkpoints")
    member.peer.stop()
    assert member.train() == 0
    assert not (tmp_path / "checkpoints").exists()


def test_a_stop_during_a_round_is_a_clean_end(tmp_path: Path) -> None:
    class StopsInRound(LocalPeer):
        def average(self, contribution: object) -> object:  # type: ignore[override]
            raise PeerStopped("the peer is stopping")

    member = Member(tmp_path, peer=StopsInRound(ME, 8))
    assert member.train() == 0


def test_a_checkpoint_of_another_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    foreign = StateSnapshot.of([("param/other", torch.zeros(3))], epoch=5, accepted_samples=0, meta={"format": 1})
    CheckpointStore(tmp_path).save(foreign)
    with pytest.raises(StateDirError, match="choose another state directory"):
        Member(tmp_path, max_epochs=7).train()


class LatePeer(LocalPeer):
    """A peer whose swarm is ahead, and gives its state only at the third request."""

    def __init__(self, state: StateSnapshot) -> None:
        super().__init__(ME, 8)
        self.state = state
        self.requests = 0
        self.pauses: list[float] = []

    def view(self) -> SwarmView:
        return SwarmView(epoch=Epoch(5), behind=super().view().epoch < 5)

    def fetch_state(self) -> StateSnapshot:
        self.requests += 1
        if self.requests < 3:
            raise RoundError("everybody is busy")
        return self.state

    def pause(self, duration_s: float) -> None:
        self.pauses.append(duration_s)


def test_a_joiner_computes_nothing_before_it_holds_the_swarms_state(tmp_path: Path) -> None:
    ahead = Member(tmp_path / "ahead", max_epochs=5)
    ahead.train()
    peer = LatePeer(ahead.optimizer.snapshot())
    joiner = Member(tmp_path / "joiner", peer=peer, seed=3, max_epochs=5, retry_s=0.25)
    assert joiner.train() == 5
    assert peer.pauses == [0.25, 0.25]
    assert joiner.model.seen == []
    assert [outcome.status for outcome in joiner.outcomes] == [StepStatus.CAUGHT_UP]
    assert joiner.optimizer.state_hash == ahead.optimizer.state_hash


def test_actions_due_within_a_jump_over_several_epochs_are_done_once(tmp_path: Path) -> None:
    ahead = Member(tmp_path / "ahead", max_epochs=5)
    ahead.train()
    joiner = Member(tmp_path / "joiner", peer=LatePeer(ahead.optimizer.snapshot()), max_epochs=5)
    due: list[int] = []
    joiner.actions = [EpochAction(4, lambda outcome: due.append(outcome.epoch)), EpochAction(6, lambda outcome: due.append(-1))]
    joiner.train()
    assert due == [5]


def test_a_helper_computes_nothing_and_follows_the_swarm(tmp_path: Path) -> None:
    ahead = Member(tmp_path / "ahead", max_epochs=5)
    ahead.train()
    helper = Member(tmp_path / "helper", peer=LatePeer(ahead.optimizer.snapshot()), helper=True, max_epochs=5)
    assert helper.train() == 5
    assert helper.model.seen == []
    assert helper.optimizer.state_hash == ahead.optimizer.state_hash


def test_its_pace_is_that_of_micro_batches_in_which_nothing_else_happened(tmp_path: Path) -> None:
    member = Member(tmp_path, max_epochs=12)
    trainer = Trainer(member.model, member.optimizer, member.peer, DATASET, member.store, member.settings)
    assert (trainer.pace.computed.samples_per_s, trainer.update_s) == (None, None)
    trainer.run()
    computed = trainer.pace.computed
    assert trainer.samples_total == 12 * 8
    assert computed.turns == 12 - WARM_UP_TURNS, "every second micro-batch closes an epoch of eight samples, and does not count"
    assert computed.samples == 4 * computed.turns
    assert computed.seconds > 0
    assert trainer.update_s is not None
    assert trainer.update_s > 0
    assert (trainer.micro_batch_samples, trainer.device_type) == (4, "cpu")
