"""Replays inside the collaborative optimizer: which state they are computed from, what they leave untouched, and when they wait."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from peers.bridge import ReplayRequest, RoundOutcome, SwarmView
from peers.state_snapshot import StateSnapshot
from peers.training_peer import Contribution
from protocols.ids import Epoch
from protocols.trust.audits import AUDIT_WITHIN_S, AUDITABLE_EPOCHS
from swarm.optim import CollaborativeOptimizer, StepStatus
from swarm.optim.master import MasterParams
from swarm.optim.replaying import BATCHES_A_TURN
from tests.helpers.scripted_peer import CLIPPED, OTHER, Loop, ScriptedPeer, applied

BATCH = 4


class Auditor(Loop):
    """A training loop that can replay: the samples of micro-batch n are numbers 4 n to 4 n + 3, whoever's they are."""

    def __init__(self, peer: ScriptedPeer, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(peer, "momentum", seed)
        if dtype is not torch.float32:
            self.model.to(dtype)
            inner = torch.optim.SGD(self.model.parameters(), lr=0.05)
            self.opt = CollaborativeOptimizer(self.model, inner, peer=peer, target_batch_samples=8, rule=CLIPPED)
        self.scripted = peer
        self.dtype = dtype
        self.computed: list[int] = []
        self.after: Callable[[int], None] = lambda number: None
        self.opt.replay_with(self.compute)

    def compute(self, request: ReplayRequest, done: int) -> int | None:
        number = (request.first_sample + done) // BATCH
        generator = torch.Generator().manual_seed(number)
        inputs, targets = torch.randn(4, 4, generator=generator), torch.randn(4, 2, generator=generator)
        loss = torch.nn.functional.mse_loss(self.model(inputs.to(self.dtype)).float(), targets) * BATCH
        loss.backward()  # type: ignore[no-untyped-call]
        self.computed.append(number)
        self.after(number)
        return BATCH

    def close(self, number: int) -> StepStatus:
        self.scripted.answers.append(applied())
        self.scripted.closing = True
        return self.batch(number)


def wants(epoch: int, state_hash: bytes, *, first: int = 0, samples: int = 8) -> ReplayRequest:
    return ReplayRequest(Epoch(epoch), OTHER, first, samples, state_hash)


def contributed() -> tuple[Auditor, Contribution]:
    """A member that has contributed micro-batches 0 and 1 to epoch 1, and holds epoch 2."""
    auditor = Auditor(ScriptedPeer())
    auditor.close(5)
    auditor.batch(0)
    auditor.close(1)
    assert auditor.opt.epoch == 2
    return auditor, auditor.scripted.contributions[-1]


def of(brought: Contribution) -> ReplayRequest:
    return ReplayRequest(brought.epoch, OTHER, brought.first_sample, int(brought.weight), brought.state_hash)


def moderately_close(replayed_D: torch.Tensor, brought_D: torch.Tensor) -> bool:
    return float((replayed_D - brought_D).norm() / brought_D.norm()) < 1e-6


def test_a_contribution_of_the_epoch_before_is_recomputed_from_the_parameters_of_then() -> None:
    auditor, brought = contributed()
    auditor.scripted.replays.append(of(brought))
    before, state_hash = auditor.params(), auditor.opt.state_hash
    auditor.batch(7)
    ((request, vector),) = auditor.scripted.replayed
    assert request == of(brought)
    assert vector is not None
    assert moderately_close(vector, brought.vector)
    assert auditor.computed == [0, 1]
    assert torch.equal(auditor.params(), before)
    assert auditor.opt.snapshot().state_hash == state_hash
    assert auditor.opt.snapshot().damaged_piece() is None
    assert auditor.opt.samples == BATCH
    assert all(param.grad is None for param in auditor.model.parameters())


def test_a_replay_changes_nothing_of_what_the_member_goes_on_to_do() -> None:
    (auditor, brought), (plain, _) = contributed(), contributed()
    auditor.scripted.replays.append(of(brought))
    for each in (auditor, plain):
        each.batch(2)
        each.close(3)
    assert torch.equal(auditor.scripted.contributions[-1].vector, plain.scripted.contributions[-1].vector)
    assert auditor.opt.state_hash == plain.opt.state_hash


def test_the_state_held_now_is_replayed_without_any_exchange_of_parameters() -> None:
    auditor = Auditor(ScriptedPeer())
    auditor.batch(9)
    addresses = [param.data_ptr() for param in auditor.model.parameters()]
    auditor.scripted.replays.append(wants(0, auditor.opt.state_hash))
    auditor.after = lambda number: seen.append([param.data_ptr() for param in auditor.model.parameters()])
    seen: list[list[int]] = []
    auditor.batch(9)
    ((_, vector),) = auditor.scripted.replayed
    assert vector is not None
    assert seen == [addresses, addresses]
    honest = Auditor(ScriptedPeer())
    honest.batch(0)
    honest.close(1)
    assert moderately_close(vector, honest.scripted.contributions[0].vector)


def test_what_we_did_not_hold_and_what_makes_no_sense_is_answered_with_none() -> None:
    auditor, brought = contributed()
    held = brought.state_hash
    senseless = [
        wants(1, b"x" * 32),
        wants(0, held),
        wants(2, held),
        wants(1, auditor.opt.state_hash),
        wants(1, held, samples=0),
        wants(1, held, first=-4),
    ]
    auditor.scripted.replays.extend(senseless)
    auditor.batch(7)
    assert auditor.scripted.replayed == [(request, None) for request in senseless]
    assert auditor.computed == []


def test_a_member_without_a_way_to_replay_says_so_and_a_helper_too() -> None:
    peer = ScriptedPeer()
    loop = Loop(peer)
    peer.replays.append(wants(0, loop.opt.state_hash))
    loop.batch(0)
    peer.replays.append(wants(0, loop.opt.state_hash))
    loop.opt.follow(0.0)
    assert [vector for _, vector in peer.replayed] == [None, None]
    assert "auditing" not in [phase for _, phase in peer.reports]


def test_where_epochs_are_short_the_states_of_several_are_kept() -> None:
    auditor, brought = contributed()
    for number in range(1, AUDITABLE_EPOCHS):
        auditor.close(10 + number)
    auditor.scripted.replays.append(of(brought))
    auditor.batch(4)
    ((_, vector),) = auditor.scripted.replayed
    assert vector is not None
    assert moderately_close(vector, brought.vector)
    auditor.close(3)
    auditor.scripted.replays.append(of(brought))
    auditor.batch(4)
    assert auditor.scripted.replayed[-1] == (of(brought), None)


def test_an_older_state_is_forgotten_and_so_is_everything_when_another_is_taken_over() -> None:
    auditor, brought = contributed()
    auditor.now_s += AUDIT_WITHIN_S + 1
    auditor.close(3)
    auditor.scripted.replays.append(of(brought))
    auditor.batch(4)
    assert auditor.scripted.replayed == [(of(brought), None)]
    last = auditor.scripted.contributions[-1]
    auditor.opt.load_snapshot(auditor.opt.snapshot())
    auditor.scripted.replays.append(of(last))
    auditor.batch(5)
    assert auditor.scripted.replayed[-1] == (of(last), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_come_back_bit_for_bit_when_the_computation_fails(dtype: torch.dtype) -> None:
    auditor = Auditor(ScriptedPeer(), dtype=dtype)
    if dtype is torch.float32:
        auditor.batch(0)
    held = auditor.opt.state_hash
    auditor.scripted.answers.append(lambda mine: RoundOutcome(applied()(mine).status, mine.epoch, torch.linspace(-1, 1, 44), 8.0))
    auditor.scripted.closing = True
    auditor.opt.follow(0.0)
    before = [param.detach().clone() for param in auditor.model.parameters()]
    during: list[torch.Tensor] = []

    def fails(number: int) -> None:
        during.extend(param.detach().clone() for param in auditor.model.parameters())
        raise ZeroDivisionError

    auditor.after = fails
    auditor.scripted.replays.append(wants(0, held))
    state_hash = auditor.opt.state_hash
    with pytest.raises(ZeroDivisionError):
        auditor.opt.follow(0.0)
    assert not torch.equal(during[0], before[0])
    assert all(torch.equal(param, kept) for param, kept in zip(auditor.model.parameters(), before, strict=True))
    assert auditor.opt.snapshot().state_hash == state_hash
    assert all(param.grad is None for param in auditor.model.parameters())


def test_a_replay_lets_an_epoch_close_after_one_micro_batch_and_goes_on_in_the_next() -> None:
    auditor, brought = contributed()
    auditor.scripted.replays.append(of(brought))

    def closes(number: int) -> None:
        auditor.scripted.closing = True
        auditor.scripted.answers.append(applied())

    auditor.after = closes
    assert auditor.batch(7) is StepStatus.APPLIED
    assert (auditor.computed, auditor.scripted.replayed) == ([0], [])
    auditor.after = lambda number: None
    auditor.batch(7)
    assert auditor.computed == [0, 1]
    ((_, vector),) = auditor.scripted.replayed
    assert vector is not None
    assert moderately_close(vector, brought.vector)


def test_a_replay_of_the_state_held_now_goes_on_from_the_same_parameters_when_the_epoch_has_closed() -> None:
    auditor, honest = Auditor(ScriptedPeer()), Auditor(ScriptedPeer())
    auditor.scripted.replays.append(wants(0, auditor.opt.state_hash, samples=12))

    def closes(number: int) -> None:
        auditor.scripted.closing = True
        auditor.scripted.answers.append(applied())

    auditor.after = closes
    auditor.batch(7)
    auditor.batch(7)
    auditor.batch(7)
    assert auditor.opt.epoch == 3
    honest.batch(0)
    honest.batch(1)
    honest.close(2)
    ((_, vector),) = auditor.scripted.replayed
    assert vector is not None
    assert moderately_close(vector, honest.scripted.contributions[0].vector)


@pytest.mark.parametrize("call", ["snapshot", "stop", "behind", "withdrawn"])
def test_whatever_cannot_wait_interrupts_a_replay(call: str) -> None:
    auditor, brought = contributed()
    peer = auditor.scripted
    peer.replays.append(of(brought))

    def calls(number: int) -> None:
        peer.wanted = call == "snapshot"
        peer.stopped = call == "stop"
        peer.shown = SwarmView(behind=call == "behind")
        if call == "withdrawn":
            peer.replays.clear()

    auditor.after = calls
    auditor.batch(7)
    assert (auditor.computed, peer.replayed) == ([0], [])
    if call == "snapshot":
        auditor.after = lambda number: None
        auditor.batch(7)
        assert isinstance(peer.published[-1], StateSnapshot)
        assert peer.published[-1].damaged_piece() is None
        assert auditor.computed == [0, 1]


def test_a_long_replay_leaves_time_for_own_micro_batches() -> None:
    auditor, brought = contributed()
    length = 2 * BATCHES_A_TURN + 1
    auditor.scripted.replays.append(wants(1, brought.state_hash, samples=length * BATCH))
    auditor.batch(7)
    assert len(auditor.computed) == BATCHES_A_TURN
    auditor.batch(7)
    assert auditor.scripted.replayed == []
    auditor.batch(7)
    assert len(auditor.computed) == length
    assert auditor.scripted.replayed[0][1] is not None
    assert auditor.opt.samples == 3 * BATCH


def test_people_see_that_a_member_audits_and_its_speed_does_not_count_it() -> None:
    auditor, brought = contributed()
    auditor.scripted.replays.append(of(brought))
    auditor.scripted.reports.clear()
    auditor.batch(7)
    auditor.batch(7)
    assert [phase for _, phase in auditor.scripted.reports] == ["auditing", "training", "training"]


def test_a_replay_that_cannot_be_computed_or_is_not_finite_accuses_nobody() -> None:
    auditor, brought = contributed()
    auditor.scripted.replays.append(of(brought))

    def poisons(number: int) -> None:
        next(iter(auditor.model.parameters())).grad = torch.full((6, 4), float("nan"))

    auditor.after = poisons
    auditor.batch(7)
    assert auditor.scripted.replayed == [(of(brought), None)]
    auditor.opt.replay_with(lambda request, done: None)
    auditor.scripted.replays.append(wants(2, auditor.opt.state_hash))
    auditor.batch(7)
    assert auditor.scripted.replayed[-1][1] is None


def test_a_replay_survives_that_its_state_is_two_epochs_old() -> None:
    auditor, brought = contributed()
    auditor.scripted.replays.append(wants(1, brought.state_hash, samples=12))

    def closes(number: int) -> None:
        auditor.scripted.closing = True
        auditor.scripted.answers.append(applied(torch.linspace(-1, 1, 44)))

    auditor.after = closes
    auditor.batch(7)
    auditor.batch(7)
    auditor.after = lambda number: None
    auditor.batch(7)
    ((_, vector),) = auditor.scripted.replayed
    assert vector is not None
    reference, _ = contributed()
    reference.scripted.replays.append(wants(1, brought.state_hash, samples=12))
    reference.batch(7)
    assert reference.scripted.replayed[0][1] is not None
    assert torch.equal(vector, reference.scripted.replayed[0][1])


def test_a_copy_of_the_parameters_can_be_made_in_the_place_of_an_older_one() -> None:
    auditor = Auditor(ScriptedPeer())
    masters = auditor.opt._rule.shared
    assert isinstance(masters, MasterParams)
    copy = masters.copy_trained()
    old = {name: tensor.clone() for name, tensor in copy.items()}
    auditor.close(5)
    assert all(torch.equal(copy[name], old[name]) for name in old)
    assert masters.copy_trained(copy) is copy
    assert torch.equal(torch.cat([tensor.flatten() for tensor in copy.values()]), auditor.params())


def test_requests_are_served_in_order() -> None:
    auditor, brought = contributed()
    first, second = of(brought), wants(2, auditor.opt.state_hash)
    auditor.scripted.replays.extend([first, second])
    auditor.batch(7)
    auditor.batch(7)
    assert [request for request, _ in auditor.scripted.replayed] == [first, second]
    assert all(vector is not None for _, vector in auditor.scripted.replayed)
