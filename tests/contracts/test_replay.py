"""What every sync rule's contributions have in common for auditors: computed again from what was committed to, they are the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import torch

from peers.state_snapshot import StateSnapshot
from peers.training_peer import Contribution, Replayed, ReplayRequest
from protocols.errors import ConfigError
from protocols.ids import Epoch, PeerId
from protocols.trust.traced import MAX_CUTS, Traced
from swarm.optim.gradient_rule import GradientRule
from swarm.optim.master import MasterParams
from swarm.optim.outer_rule import OuterRule
from swarm.optim.replay import ReplayParams
from swarm.optim.rule import SyncRule
from swarm.optim.settings import GradientSettings, OuterSettings
from swarm.optim.state import StateMismatch

PEER = PeerId(b"p" * 32)
TOLERANCE = 1e-4
Make = Callable[[torch.nn.Module], SyncRule]


def gradient(model: torch.nn.Module) -> SyncRule:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return GradientRule(MasterParams(model, optimizer), optimizer, GradientSettings(overlap=True))


def outer_of(settings: OuterSettings, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW) -> Make:
    return lambda model: OuterRule(model, optimizer(model.parameters(), lr=0.01), settings)


def half(epoch: int) -> float:
    return 0.02 / (1 + epoch)


OUTER = OuterSettings(inner_batch_samples=8, grad_clip_norm=1.0, learning_rate=half)
MAKES: Mapping[str, Make] = {
    "gradient": gradient,
    "outer": outer_of(OUTER),
    "sgd": outer_of(OUTER, torch.optim.SGD),
    "fragments": outer_of(replace(OUTER, fragments=2)),
    "mixing": outer_of(replace(OUTER, fragments=2, mixing=0.25, overlap=True)),
    "overlap": outer_of(replace(OUTER, overlap=True)),
    "nadam": outer_of(OUTER, torch.optim.NAdam),
    "mixing, waiting": outer_of(replace(OUTER, mixing=0.25)),
}
OVERLAPPING = ("gradient", "mixing", "overlap")
every_rule = pytest.mark.parametrize("name", MAKES)
outer_rules = pytest.mark.parametrize("name", [name for name in MAKES if name != "gradient"])


def louder(key: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 1.5 if key.endswith("exp_avg") else tensor


def one_element_near_zero(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Adam would divide by it; no norm of the tensor shows it."""
    if not key.endswith("0.bias/exp_avg_sq"):
        return tensor
    return torch.where(tensor == tensor.min(), torch.zeros(()), tensor)


def elsewhere(key: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor + 0.01 if key.startswith("param/") else tensor


def later(key: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor + 1 if key.endswith("/step") else tensor


def not_finite(key: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.full_like(tensor, math.nan) if key.endswith("exp_avg") else tensor


CHANGES = (louder, one_element_near_zero, elsewhere, later, not_finite)


@dataclass
class Held:
    params: dict[Epoch, dict[str, torch.Tensor]] = field(default_factory=dict)

    def of(self, epoch: int) -> ReplayParams:
        return ReplayParams(self.params[Epoch(epoch)], self.params.get(Epoch(epoch - 1)))


class Member:
    """Its samples are numbered; anybody can compute any of them."""

    def __init__(self, name: str, seed: int = 0) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
        self.rule = MAKES[name](self.model)
        self.rule.record()
        self.seed = seed
        self.held = Held()

    def gradient(self, seed: int, epoch: int, first: int, samples: int) -> None:
        for number in range(first, first + samples):
            generator = torch.Generator().manual_seed(10**6 * seed + 1000 * epoch + number)
            inputs, target = torch.randn(1, 3, generator=generator), torch.randn(1, 1, generator=generator)
            torch.nn.functional.mse_loss(self.model(inputs), target).backward()  # type: ignore[no-untyped-call]

    def compute(self, samples: int, epoch: int, at_once: int = 3) -> None:
        done = 0
        while done < samples:
            size = min(at_once, samples - done, self.rule.batch_limit or at_once)
            self.gradient(self.seed, epoch, self.rule.next_sample, size)
            assert self.rule.add(size, summed=True)
            done += size

    def contribution(self, epoch: int) -> Contribution:
        self.held.params[Epoch(epoch)] = {name: param.detach().clone() for name, param in self.rule.shared.trained.items()}
        return self.rule.contribution(Epoch(epoch), bytes(32))

    def replay(self, request: ReplayRequest, seed: int, held: ReplayParams | None = None, at_once: int = 4) -> Replayed:
        def compute(wanted: ReplayRequest, done: int) -> int:
            size = min(at_once, wanted.samples - done)
            self.gradient(seed, wanted.epoch, wanted.first_sample + done, size)
            return size

        replay = self.rule.replay(request, held or self.held.of(request.epoch))
        while not replay.finished:
            with replay.computing():
                assert replay.advance(compute)
        return replay.result()

    def own(self) -> list[torch.Tensor]:
        states = [] if self.rule.own is None else [value for kept in self.rule.own.optimizer.state.values() for value in kept.values()]
        tensors = [*self.model.parameters(), *self.rule.shared.trained.values(), *states]
        return [tensor.detach().clone() for tensor in tensors if isinstance(tensor, torch.Tensor)]


def request_of(brought: Contribution) -> ReplayRequest:
    start, end = (brought.inner.start, brought.inner.end) if brought.inner else (None, None)
    return ReplayRequest(
        brought.epoch, PEER, brought.first_sample, int(brought.weight), brought.state_hash, None, brought.traced, start=start, end=end
    )


def epochs(name: str, count: int = 5) -> tuple[Member, list[Contribution]]:
    """A member's contributions; with overlap some samples of an epoch are computed before the result of the one before is applied."""
    member, brought = Member(name, seed=1), []
    late = 0
    for epoch in range(count):
        member.compute(13 + 5 * epoch - late, epoch)
        brought.append(member.contribution(epoch))
        member.rule.begin_next()
        late = 7 + epoch if name in OVERLAPPING else 0
        member.compute(late, epoch + 1)
        others_F = torch.randn(brought[-1].vector.numel(), generator=torch.Generator().manual_seed(epoch)) * 0.01
        assert member.rule.apply(brought[-1].vector / 2 + others_F, Epoch(epoch))
    return member, brought


def close(member: Member, epoch: int) -> Contribution:
    """A round that nothing is computed beside."""
    brought = member.contribution(epoch)
    member.rule.begin_next()
    assert member.rule.apply(brought.vector / 2, Epoch(epoch))
    return brought


def distance(replayed: Replayed, brought: Contribution) -> float:
    return float((replayed.vector - brought.vector).norm() / brought.vector.norm())


@every_rule
def test_what_was_committed_to_gives_the_contribution_again(name: str) -> None:
    member, brought = epochs(name)
    auditor = Member(name, seed=2)
    auditor.compute(11, 0)
    before = auditor.own()
    for each in brought:
        replayed = auditor.replay(request_of(each), 1, member.held.of(each.epoch))
        assert distance(replayed, each) < TOLERANCE
        assert (replayed.end_distance or 0.0) < TOLERANCE
        assert (replayed.end_distance is None) == (each.inner is None)
    assert all(torch.equal(now, then) for now, then in zip(auditor.own(), before, strict=True)), "the auditor's own is untouched"
    assert all(param.grad is None for param in auditor.model.parameters())


@outer_rules
def test_a_replay_that_begins_a_rounding_error_away_shows_how_steady_it_is(name: str) -> None:
    member, brought = epochs(name)
    request, held = request_of(brought[-1]), member.held.of(brought[-1].epoch)
    plain, nudged = (Member(name).replay(replace(request, nudged=each), 1, held) for each in (False, True))
    assert 0 < float((nudged.vector - plain.vector).norm() / plain.vector.norm()) < TOLERANCE


@every_rule
def test_other_samples_give_something_else(name: str) -> None:
    member, brought = epochs(name)
    replayed = Member(name).replay(request_of(brought[-1]), 7, member.held.of(brought[-1].epoch))
    assert distance(replayed, brought[-1]) > 0.1


@outer_rules
def test_each_contribution_begins_with_what_the_one_before_ended_with(name: str) -> None:
    _, brought = epochs(name)
    traces = [each.traced for each in brought]
    assert traces[0].inner_start == traces[1].inner_start == b"", "the first one of a process is never gone on from"
    for before, after in pairwise(traces[1:]):
        assert after.inner_start == before.inner_end
    assert [trace.inner_start_epoch for trace in traces] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("name", ["outer", "overlap", "mixing", "fragments"])
def test_an_inner_state_that_no_samples_lead_to_is_seen(name: str) -> None:
    member, brought = epochs(name)
    request = request_of(brought[-1])
    assert request.end is not None

    def distance_of(doctored: dict[str, torch.Tensor]) -> float:
        end = StateSnapshot.of(doctored.items(), epoch=4, accepted_samples=0, meta={})
        replayed = Member(name).replay(replace(request, end=end), 1, member.held.of(request.epoch))
        assert replayed.end_distance is not None
        return replayed.end_distance

    honest = dict(request.end.tensors())
    assert distance_of(honest) < TOLERANCE
    for change in CHANGES:
        doctored = {key: change(key, tensor) for key, tensor in honest.items()}
        if all(torch.equal(doctored[key], honest[key]) for key in honest):
            continue
        assert distance_of(doctored) > 0.02, change
    assert distance_of(dict(list(honest.items())[1:])) == math.inf


def test_a_scalar_that_is_no_count_may_differ_in_its_last_bit() -> None:
    member, brought = epochs("nadam")
    request = request_of(brought[-1])
    assert request.end is not None
    rounded, wrong = dict(request.end.tensors()), dict(request.end.tensors())
    for key in [key for key in rounded if key.endswith("mu_product")]:
        rounded[key] = torch.nextafter(rounded[key], torch.tensor(1.0))
        wrong[key] = 2 * wrong[key]
    for tensors, close_enough in ((rounded, True), (wrong, False)):
        end = StateSnapshot.of(tensors.items(), epoch=4, accepted_samples=0, meta={})
        replayed = Member("nadam").replay(replace(request, end=end), 1, member.held.of(4))
        assert replayed.end_distance is not None
        assert (replayed.end_distance < TOLERANCE) == close_enough


@pytest.mark.parametrize("name", ["outer", "fragments"])
def test_a_round_that_failed_leaves_a_cut_and_the_next_epoch_begins_anew(name: str) -> None:
    member, _ = Member(name, seed=1), None
    for epoch in range(3):
        member.compute(11, epoch)
        if epoch == 2:
            member.contribution(epoch)  # the round fails, and more samples come
            member.compute(10, epoch)
        brought = member.contribution(epoch)
        member.rule.begin_next()
        member.rule.apply(brought.vector, Epoch(epoch))
    assert brought.traced.cuts == (11,)
    replayed = Member(name).replay(request_of(brought), 1, member.held.of(2))
    assert distance(replayed, brought) < TOLERANCE
    assert replayed.end_distance is not None
    assert replayed.end_distance < TOLERANCE
    without = replace(request_of(brought), traced=replace(brought.traced, cuts=()))
    assert distance(Member(name).replay(without, 1, member.held.of(2)), brought) > 100 * TOLERANCE
    member.compute(8, 3)
    assert member.contribution(3).traced.inner_start == b""


@every_rule
def test_rounds_during_which_nothing_was_computed_are_replayed_as_well(name: str) -> None:
    member = Member(name, seed=1)
    for epoch in range(4):
        member.compute(13, epoch)
        brought = close(member, epoch)
        replayed = Member(name).replay(request_of(brought), 1, member.held.of(epoch))
        assert distance(replayed, brought) < TOLERANCE
        assert (replayed.end_distance or 0.0) < TOLERANCE


@outer_rules
def test_what_was_committed_to_before_a_state_was_taken_over_is_not_gone_on_from(name: str) -> None:
    member, _ = epochs(name, 3)
    member.compute(11, 3)
    member.contribution(3)  # but the swarm has gone on
    member.rule.reset(Epoch(5))
    close(member, 5)  # without a sample
    member.compute(11, 6)
    brought = member.contribution(6)
    assert brought.traced.inner_start == b""
    assert distance(Member(name).replay(request_of(brought), 1, member.held.of(6)), brought) < TOLERANCE


@pytest.mark.parametrize("states_taken_over", [1, 2])
def test_two_contributions_to_one_epoch_never_break_the_chain(states_taken_over: int) -> None:
    member, _ = epochs("overlap", 3)
    member.compute(11, 3)
    first = member.contribution(3)
    member.rule.begin_next()
    for _ in range(states_taken_over):
        member.rule.reset(Epoch(3))  # same epoch, other bytes
    member.compute(11, 3)
    again = close(member, 3)
    assert first.traced.inner_end != again.traced.inner_end
    member.compute(11, 4)
    assert member.contribution(4).traced.inner_start == b""


def test_a_process_that_has_to_catch_up_does_not_go_on_from_the_epoch_in_which_the_one_before_it_ended() -> None:
    member = Member("outer", seed=1)
    member.compute(11, 2)
    member.contribution(2)  # from its checkpoint; the process before had contributed to epoch 3 already
    member.rule.reset(Epoch(3))
    member.compute(11, 3)
    close(member, 3)
    member.compute(11, 4)
    assert close(member, 4).traced.inner_start == b""
    member.compute(11, 5)
    assert member.contribution(5).traced.inner_start != b""


def test_more_rounds_that_failed_than_can_be_told_begin_the_contribution_anew() -> None:
    member = Member("outer", seed=1)
    for _ in range(MAX_CUTS + 1):
        member.compute(3, 0)
        brought = member.contribution(0)
    assert brought.weight == 0
    member.compute(3, 0)
    brought = member.contribution(0)
    assert (brought.weight, brought.first_sample, brought.traced.cuts) == (3, 3 * (MAX_CUTS + 1), ())


@outer_rules
def test_what_is_not_finite_begins_anew_and_can_still_be_replayed(name: str) -> None:
    member, _ = epochs(name, 3)
    member.compute(10, 3)
    member.gradient(1, 3, member.rule.next_sample, 1)
    next(member.model.parameters()).grad = torch.full((5, 3), float("nan"))
    assert not member.rule.add(1, summed=True)
    member.compute(9, 3)
    brought = member.contribution(3)
    assert (brought.traced.inner_start, brought.traced.late_samples) == (b"", 0)
    assert distance(Member(name).replay(request_of(brought), 1, member.held.of(3)), brought) < TOLERANCE


def test_who_can_be_audited_keeps_to_the_inner_batch() -> None:
    member = Member("outer")
    member.compute(6, 0)
    member.gradient(0, 0, 6, 3)
    with pytest.raises(ConfigError, match="batch_limit"):
        member.rule.add(3, summed=True)


@pytest.mark.parametrize("name", ["outer", "overlap"])
def test_a_start_of_another_model_is_refused(name: str) -> None:
    member, brought = epochs(name)
    request = request_of(brought[-1])
    assert request.start is not None
    tensors = dict(request.start.tensors())
    key = next(key for key in tensors if key.endswith("exp_avg"))
    for bad in (torch.zeros(2), torch.full_like(tensors[key], float("inf"))):
        damaged = type(request.start).of([*{**tensors, key: bad}.items()], epoch=3, accepted_samples=0, meta={})
        with pytest.raises(StateMismatch):
            member.rule.replay(replace(request, start=damaged), member.held.of(request.epoch))


def test_late_samples_need_the_parameters_of_the_epoch_before() -> None:
    member, brought = epochs("gradient")
    request = request_of(brought[-1])
    assert request.traced == Traced(late_samples=10)
    with pytest.raises(StateMismatch):
        member.rule.replay(request, ReplayParams(member.held.params[Epoch(4)]))
