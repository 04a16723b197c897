"""Audits by the training loop: what a member contributed comes out again on another machine, from public data only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from peers.bridge import Contribution, PeerStopped, Replayed, ReplayRequest, RoundOutcome
from peers.local import LocalPeer
from protocols.ids import Epoch, PeerId
from swarm.checkpoint.store import CheckpointStore
from swarm.data.dataset import Dataset
from swarm.data.windows import ByteSequence
from swarm.models.build import build_model
from swarm.optim import CollaborativeOptimizer
from swarm.training.trainer import Trainer, TrainerSettings

MEMBER, AUDITOR = PeerId(b"m" * 32), PeerId(b"o" * 32)
TEXT = np.frombuffer(bytes(Path(__file__).read_bytes()[:6000]), dtype=np.uint8)
DATASET = Dataset("this file", bytes(32), ByteSequence([TEXT]), ByteSequence([TEXT]), sequence_length=32)
SAMPLES = 8


class Contributor(LocalPeer):
    """Notes what its trainer contributes."""

    def __init__(self) -> None:
        super().__init__(MEMBER, SAMPLES)
        self.contributions: list[Contribution] = []

    def average(self, contribution: Contribution) -> RoundOutcome:
        self.contributions.append(contribution)
        return super().average(contribution)


class Auditing(LocalPeer):
    """Closes its epochs with the contributions of the other, then wants one of them replayed."""

    def __init__(self, vectors: list[torch.Tensor], asked: list[ReplayRequest], epoch: int) -> None:
        super().__init__(AUDITOR, SAMPLES)
        self.vectors = vectors
        self.asked = deque(asked)
        self.ask_at_epoch = epoch
        self.answers: list[torch.Tensor | None] = []
        self.phases: list[str] = []
        self.closes_when_asked = False

    def average(self, contribution: Contribution) -> RoundOutcome:
        alone = super().average(contribution)
        return RoundOutcome(alone.status, alone.epoch, self.vectors[contribution.epoch], float(SAMPLES), (MEMBER,))

    def report(self, samples: int, samples_per_s: float, loss: float | None, phase: str) -> None:
        self.phases.append(phase)
        super().report(samples, samples_per_s, loss, phase)

    def replay_wanted(self) -> ReplayRequest | None:
        return self.asked[0] if self.asked and self.view().epoch >= self.ask_at_epoch else None

    def publish_replay(self, request: ReplayRequest, replayed: Replayed | None) -> None:
        assert request == self.asked.popleft()
        self.answers.append(None if replayed is None else replayed.vector)
        if not self.asked:
            self.stop()


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def trainer(peer: LocalPeer, member: PeerId, directory: Path, micro_batch_samples: int, **settings: object) -> Trainer:
    model = build_model({"preset": "tiny"}, 5)
    optimizer = CollaborativeOptimizer(model, torch.optim.AdamW(model.parameters(), lr=0.01), peer=peer, target_batch_samples=SAMPLES)
    chosen = TrainerSettings(member, 3, micro_batch_samples, **settings)  # type: ignore[arg-type]
    return Trainer(model, optimizer, peer, DATASET, CheckpointStore(directory), chosen)


@pytest.fixture(scope="module")
def contributions(tmp_path_factory: pytest.TempPathFactory) -> list[Contribution]:
    """Of epochs 0 and 1, by micro-batches of 4 on one thread."""
    peer = Contributor()
    with threads(1):
        trainer(peer, MEMBER, tmp_path_factory.mktemp("contributor"), 4, max_epochs=2).run()
    return peer.contributions


def audit(contributions: list[Contribution], of_epoch: int, directory: Path, *, micro_batch_samples: int, on_threads: int) -> torch.Tensor:
    """What an auditor that holds epoch 1 answers about a contribution."""
    brought = contributions[of_epoch]
    request = ReplayRequest(brought.epoch, MEMBER, brought.first_sample, int(brought.weight), brought.state_hash)
    peer = Auditing([each.vector for each in contributions], [request], epoch=1)
    with threads(on_threads):
        trainer(peer, AUDITOR, directory, micro_batch_samples).run()
    (answer,) = peer.answers
    assert answer is not None
    assert "auditing" in peer.phases
    return answer


@pytest.mark.parametrize("of_epoch", [0, 1])
def test_the_same_micro_batches_and_threads_give_the_same_bits(contributions: list[Contribution], of_epoch: int, tmp_path: Path) -> None:
    replayed = audit(contributions, of_epoch, tmp_path, micro_batch_samples=4, on_threads=1)
    assert torch.equal(replayed, contributions[of_epoch].vector)


@pytest.mark.parametrize(("micro_batch_samples", "on_threads"), [(4, 2), (1, 1), (3, 1)])
def test_other_micro_batches_and_threads_come_close(
    contributions: list[Contribution], micro_batch_samples: int, on_threads: int, tmp_path: Path
) -> None:
    replayed = audit(contributions, 0, tmp_path, micro_batch_samples=micro_batch_samples, on_threads=on_threads)
    original = contributions[0].vector
    assert float((replayed - original).norm() / original.norm()) < 1e-4


def test_a_replay_in_the_precision_of_gpus_is_another_one(contributions: list[Contribution], tmp_path: Path) -> None:
    state_hash, original = contributions[0].state_hash, contributions[0].vector
    asked = [ReplayRequest(Epoch(0), MEMBER, 0, SAMPLES, state_hash, bf16=bf16) for bf16 in (False, True)]
    peer = Auditing([each.vector for each in contributions], asked, epoch=0)
    with threads(1):
        trainer(peer, AUDITOR, tmp_path, 4).run()
    single, half = peer.answers
    assert single is not None
    assert half is not None
    assert torch.equal(single, original)
    assert 1e-4 < float((half - original).norm() / original.norm()) < 0.1


def test_other_samples_are_far_away(contributions: list[Contribution], tmp_path: Path) -> None:
    brought = contributions[0]
    request = ReplayRequest(brought.epoch, AUDITOR, 0, SAMPLES, brought.state_hash)
    peer = Auditing([each.vector for each in contributions], [request], epoch=1)
    with threads(1):
        trainer(peer, AUDITOR, tmp_path, 4).run()
    (answer,) = peer.answers
    assert answer is not None
    assert float((answer - brought.vector).norm() / brought.vector.norm()) > 0.1


def test_a_stretch_of_a_contribution_can_be_replayed(contributions: list[Contribution], tmp_path: Path) -> None:
    state_hash = contributions[0].state_hash
    halves = [ReplayRequest(Epoch(0), MEMBER, first, SAMPLES // 2, state_hash) for first in (0, SAMPLES // 2)]
    peer = Auditing([each.vector for each in contributions], halves, epoch=0)
    with threads(1):
        trainer(peer, AUDITOR, tmp_path, 2).run()
    first, second = peer.answers
    assert first is not None
    assert second is not None
    torch.testing.assert_close((first + second) / 2, contributions[0].vector, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{"helper": True}, {"replays": False}])
def test_who_has_no_data_or_shall_not_replay_says_so(
    settings: dict[str, object], contributions: list[Contribution], tmp_path: Path
) -> None:
    request = ReplayRequest(Epoch(0), MEMBER, 0, SAMPLES, contributions[0].state_hash)

    class Impatient(Auditing):
        def wait_for_call(self, timeout_s: float) -> bool:
            return True

    peer = Impatient([], [request], epoch=0)
    trainer(peer, AUDITOR, tmp_path, 4, **settings).run()
    assert peer.answers == [None]
    assert "auditing" not in peer.phases


def test_a_stop_ends_a_replay_after_the_micro_batch_under_way(contributions: list[Contribution], tmp_path: Path) -> None:
    request = ReplayRequest(Epoch(0), MEMBER, 0, SAMPLES, contributions[0].state_hash)
    peer = Auditing([], [request], epoch=0)
    auditor = trainer(peer, AUDITOR, tmp_path, 2)
    compute: Callable[..., object] = auditor._compute
    computed: list[PeerId] = []

    def stops(epoch: Epoch, member: PeerId, indices: range, *, bf16: bool | None = None) -> object:
        computed.append(member)
        if member == MEMBER:
            peer.stop()
        return compute(epoch, member, indices, bf16=bf16)

    auditor._compute = stops  # type: ignore[assignment,method-assign]
    with threads(1):
        assert auditor.run() == 0
    assert computed == [AUDITOR, MEMBER]
    assert peer.answers == []
    with pytest.raises(PeerStopped):
        peer.pause(0.0)
