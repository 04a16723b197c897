"""What every sync rule does (`swarm.optim.rule.SyncRule`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from protocols.aggregation.mean import weighted_mean
from protocols.ids import Epoch
from swarm.optim.gradient_rule import GradientRule
from swarm.optim.master import MasterParams
from swarm.optim.outer_rule import OuterRule
from swarm.optim.rule import SyncRule
from swarm.optim.settings import GradientSettings, OuterSettings

HASH = b"h" * 32
Make = Callable[[torch.nn.Module], SyncRule]


def gradient(model: torch.nn.Module) -> SyncRule:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return GradientRule(MasterParams(model, optimizer), optimizer, GradientSettings(grad_clip_norm=1.0))


def outer(model: torch.nn.Module) -> SyncRule:
    return OuterRule(model, torch.optim.AdamW(model.parameters(), lr=0.01), OuterSettings(inner_batch_samples=4))


def fragments(model: torch.nn.Module) -> SyncRule:
    settings = OuterSettings(inner_batch_samples=4, optimizer="fedadam", fragments=2, mixing=0.25)
    return OuterRule(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), settings)


every_rule = pytest.mark.parametrize("make", [gradient, outer, fragments])


class Member:
    """One member's model and rule."""

    def __init__(self, make: Make, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
        self.rule = make(self.model)

    def compute(self, number: int, samples: int = 4, scale: float = 1.0) -> bool:
        """Micro-batch `number`."""
        generator = torch.Generator().manual_seed(number)
        inputs, targets = torch.randn(samples, 3, generator=generator), torch.randn(samples, 1, generator=generator)
        torch.nn.functional.mse_loss(self.model(inputs * scale), targets).backward()  # type: ignore[no-untyped-call]
        return self.rule.add(samples)

    def shared(self) -> torch.Tensor:
        return torch.cat([tensor.detach().flatten() for tensor in self.rule.shared.all.values()]).clone()

    def local(self) -> torch.Tensor:
        return torch.cat([param.detach().flatten() for param in self.model.parameters()]).clone()


def close(members: Sequence[Member], epoch: int) -> torch.Tensor:
    """Average and apply at once, as without overlap."""
    parts = [member.rule.contribution(Epoch(epoch), HASH) for member in members]
    average = weighted_mean([part.vector for part in parts], [part.weight for part in parts])
    before = average.clone()
    for member in members:
        member.rule.begin_next()
        assert member.rule.apply(average, Epoch(epoch))
    assert torch.equal(average, before), "what came from the swarm is not written to"
    return average


@every_rule
def test_members_that_apply_the_same_bytes_hold_the_same_bytes(make: Make) -> None:
    members = [Member(make) for _ in range(3)]
    start = members[0].shared()
    for epoch in range(5):
        for index, member in enumerate(members):
            for batch in range(1 + index):  # of unequal speed
                assert member.compute(100 * epoch + 10 * index + batch)
        close(members, epoch)
        assert all(torch.equal(member.shared(), members[0].shared()) for member in members)
    assert not torch.equal(members[0].shared(), start)


@every_rule
def test_a_contribution_is_a_copy_with_its_samples_as_weight(make: Make) -> None:
    member = Member(make)
    member.compute(0)
    member.compute(1, samples=2)
    first = member.rule.contribution(Epoch(0), HASH)
    before = first.vector.clone()
    member.compute(2)
    assert torch.equal(first.vector, before)
    assert (first.epoch, first.weight, first.first_sample, first.state_hash) == (0, 6.0, 0, HASH)
    assert first.vector.shape == (member.rule.layout(Epoch(0)).size_elems,)
    assert first.vector.dtype == torch.float32


@every_rule
def test_what_is_computed_while_a_round_runs_belongs_to_the_next_epoch(make: Make) -> None:
    member = Member(make)
    member.compute(0)
    sent = member.rule.contribution(Epoch(0), HASH)
    member.rule.begin_next()
    assert (member.rule.samples, member.rule.next_sample) == (0, 0)
    member.compute(1)
    assert member.rule.apply(sent.vector, Epoch(0))
    assert (member.rule.samples, member.rule.next_sample) == (4, 4)
    assert member.rule.contribution(Epoch(1), HASH).weight == 4


@every_rule
def test_nobody_steps_on_an_average_that_is_not_finite(make: Make) -> None:
    member = Member(make)
    before = member.shared()
    member.compute(0)
    vector = member.rule.contribution(Epoch(0), HASH).vector.clone()
    vector[3] = math.inf
    member.rule.begin_next()
    assert member.rule.apply(vector, Epoch(0)) is False
    assert torch.equal(member.shared(), before)
    assert bool(torch.isfinite(member.local()).all())


@every_rule
def test_a_micro_batch_that_is_not_finite_leaves_no_trace_but_its_number(make: Make) -> None:
    member, clean = Member(make), Member(make)
    member.compute(0)
    assert member.compute(1, scale=math.nan) is False
    assert (member.rule.samples, member.rule.next_sample, member.rule.dropped_batches) == (0, 8, 1)
    for each in (member, clean):
        assert each.compute(2)
    after = member.rule.contribution(Epoch(0), HASH)
    assert (after.first_sample, after.weight) == (8, 4.0)
    assert bool(torch.isfinite(after.vector).all())


@every_rule
def test_gradients_are_cleared_and_who_computed_nothing_brings_zeros(make: Make) -> None:
    member = Member(make)
    idle = member.rule.contribution(Epoch(0), HASH)
    assert idle.weight == 0
    assert not bool(idle.vector.any())
    member.compute(0)
    assert all(param.grad is None for param in member.model.parameters())
    close([member], 0)
    assert all(param.grad is None for param in member.model.parameters())


@every_rule
def test_another_anchor_makes_everything_start_anew(make: Make) -> None:
    member = Member(make)
    for number in range(3):
        member.compute(number)
    member.rule.reset(Epoch(7))
    assert (member.rule.samples, member.rule.next_sample) == (0, 0)
    assert torch.equal(member.local(), member.shared())
    assert member.rule.contribution(Epoch(7), HASH).weight == 0


@every_rule
def test_measuring_with_the_anchor_leaves_the_model_as_it_is(make: Make) -> None:
    member = Member(make)
    for number in range(3):
        member.compute(number)
    before = member.local()
    with pytest.raises(ZeroDivisionError), member.rule.shared.computing():
        assert torch.equal(member.local(), member.shared())
        raise ZeroDivisionError
    assert torch.equal(member.local(), before)
