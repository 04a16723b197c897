"""The outer rule: the algebra of DiLoCo, fragments, results that come late, and what may go wrong in between."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from protocols.aggregation.mean import weighted_mean
from protocols.errors import ConfigError
from protocols.ids import Epoch
from swarm.optim.fragments import fragment_at, fragments_of
from swarm.optim.gradient_rule import GradientRule
from swarm.optim.master import MasterParams
from swarm.optim.outer_optimizers import OuterName
from swarm.optim.outer_rule import OuterRule
from swarm.optim.rule import SyncRule
from swarm.optim.settings import FeedbackSettings, OuterSettings

HASH = b"h" * 32
PLAIN: dict[str, Any] = {"optimizer": "fedavgm", "outer_learning_rate": 1.0, "momentum": 0.0}
"""An outer step that takes over the average as it is (FedAvg)."""


def settings(**changes: Any) -> OuterSettings:
    return OuterSettings(**({"inner_batch_samples": 4} | changes))


class Member:
    """One member's model and rule."""

    def __init__(self, inner: type[torch.optim.Optimizer] = torch.optim.SGD, rate: float = 0.125, **changes: Any) -> None:
        torch.manual_seed(3)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
        self.inner = inner(self.model.parameters(), lr=rate)  # type: ignore[call-arg]
        self.settings = settings(**changes)
        self.feedback = self.settings.feedback.make() if self.settings.feedback else None
        self.rule = OuterRule(self.model, self.inner, self.settings, self.feedback)

    def compute(self, number: int, samples: int = 4) -> bool:
        mean_loss(self.model, number, samples).backward()  # type: ignore[no-untyped-call]
        return self.rule.add(samples)

    def local(self) -> torch.Tensor:
        return flat(self.model.parameters())

    def shared(self) -> torch.Tensor:
        return flat(self.rule.shared.all.values())


def mean_loss(model: torch.nn.Module, number: int, samples: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    inputs, targets = torch.randn(samples, 3, generator=generator), torch.randn(samples, 1, generator=generator)
    return torch.nn.functional.mse_loss(model(inputs), targets)


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).clone()


def close(members: list[Member], epoch: int = 0) -> torch.Tensor:
    parts = [member.rule.contribution(Epoch(epoch), HASH) for member in members]
    average = weighted_mean([part.vector for part in parts], [part.weight for part in parts])
    for member in members:
        member.rule.begin_next()
        assert member.rule.apply(average, Epoch(epoch))
    return average


def test_with_one_plain_step_it_is_the_gradient_rule_to_the_last_bit() -> None:
    """H = 1, SGD inside, outer rate 1 and no momentum. All numbers are small multiples of a power of two, so that fp32 rounds nowhere."""

    def model() -> torch.nn.Linear:
        linear = torch.nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor([[3.0, -2.0, 1.0, 4.0]]))
        return linear

    torch.manual_seed(7)
    shares = [2, 4, 2]
    by_gradient, by_outer = [model() for _ in shares], [model() for _ in shares]
    gradient_rules: list[SyncRule] = []
    outer_rules: list[SyncRule] = []
    for one, other in zip(by_gradient, by_outer, strict=True):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.25)
        gradient_rules.append(GradientRule(MasterParams(one, optimizer), optimizer))
        outer_rules.append(OuterRule(other, torch.optim.SGD(other.parameters(), lr=0.25), settings(inner_batch_samples=1, **PLAIN)))
    for epoch in range(3):
        inputs, targets = torch.randint(-3, 4, (8, 4)).float(), torch.randint(-3, 4, (8, 1)).float()
        for rules, models in ((gradient_rules, by_gradient), (outer_rules, by_outer)):
            parts = []
            for rule, one, x, y in zip(rules, models, torch.split(inputs, shares), torch.split(targets, shares), strict=True):
                torch.nn.functional.mse_loss(one(x), y).backward()  # type: ignore[no-untyped-call]
                assert rule.add(len(x))
                parts.append(rule.contribution(Epoch(epoch), HASH))
            average = weighted_mean([part.vector for part in parts], [part.weight for part in parts])
            for rule in rules:
                rule.begin_next()
                assert rule.apply(average, Epoch(epoch))
        for one, other in zip(by_gradient, by_outer, strict=True):
            assert torch.equal(one.weight, other.weight)
    assert not torch.equal(by_outer[0].weight, model().weight)


def test_inner_steps_are_those_of_the_optimizer_on_its_own() -> None:
    member = Member(torch.optim.AdamW, 0.01)
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for number in range(6):
        member.compute(number)
        optimizer.zero_grad()
        mean_loss(model, number).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert torch.allclose(member.local(), flat(model.parameters()), rtol=0, atol=1e-7)
    start = member.shared()
    contribution = member.rule.contribution(Epoch(0), HASH)
    assert torch.equal(contribution.vector, start - member.local())
    assert contribution.weight == 24


def test_micro_batches_are_gathered_into_inner_batches() -> None:
    whole, halves = Member(), Member()
    mean_loss(whole.model, 1).backward()  # type: ignore[no-untyped-call]
    whole.rule.add(4)
    assert halves.rule.batch_limit == 4
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(4, 3, generator=generator), torch.randn(4, 1, generator=generator)
    for part in (slice(0, 3), slice(3, 4)):
        losses = (halves.model(inputs[part]) - targets[part]) ** 2
        losses.sum().backward()
        halves.rule.add(len(losses), summed=True)
        assert halves.rule.batch_limit in (1, 4)
    assert torch.allclose(whole.local(), halves.local(), rtol=0, atol=1e-7)


def test_a_batch_that_is_not_full_steps_in_proportion() -> None:
    member, full = Member(), Member(inner_batch_samples=1)
    for each in (member, full):
        each.compute(1, samples=1)
    start = full.shared()
    step = start - full.local()
    found = member.rule.contribution(Epoch(0), HASH)
    assert torch.allclose(found.vector, step / 4, atol=1e-7)
    assert found.weight == 1


def _reference(name: OuterName, moves: list[np.ndarray]) -> np.ndarray:
    """How far the anchor goes by these averages, in fp64."""
    place, mean, squares = np.zeros_like(moves[0]), np.zeros_like(moves[0]), np.zeros_like(moves[0])
    for number, move in enumerate(moves):
        if name in ("nesterov", "fedavgm"):
            mean = 0.8 * mean + move
            place = place - 0.5 * (move + 0.8 * mean if name == "nesterov" else mean)
            continue
        assert number >= 0
        mean = 0.8 * mean + 0.2 * move
        square = move**2
        if name == "fedadam":
            squares = 0.9 * squares + 0.1 * square
        elif name == "fedyogi":
            squares = squares - 0.1 * square * np.sign(squares - square)
        else:
            squares = squares + square
        place = place - 0.5 * mean / (np.sqrt(squares) + 0.01)
    return place


@pytest.mark.parametrize("name", ["nesterov", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_outer_steps_follow_the_published_formulas(name: OuterName) -> None:
    member = Member(optimizer=name, outer_learning_rate=0.5, momentum=0.8, beta2=0.9, eps=0.01)
    start = member.shared().double().numpy()
    moves = [np.random.default_rng(number).normal(size=start.shape) for number in range(4)]
    for epoch, move in enumerate(moves):
        assert member.rule.apply(torch.from_numpy(move.astype(np.float32)), Epoch(epoch))
    assert np.allclose(member.shared().numpy(), start + _reference(name, moves), atol=1e-5)
    assert torch.allclose(member.local(), member.shared(), atol=1e-6), "it computed nothing of its own, so it follows"


def test_fragments_are_strided_and_of_about_one_size() -> None:
    tensors = {"word.weight": torch.zeros(90), "norm.weight": torch.zeros(2)}
    tensors |= {f"h.{block}.{part}": torch.zeros(20) for block in range(6) for part in ("a", "b")}
    two = fragments_of(tensors, 2)
    assert [{name.split(".")[1] for name in names if name.startswith("h.")} for names in two] == [{"0", "2", "4"}, {"1", "3", "5"}]
    assert sorted(name for names in two for name in names) == sorted(tensors)
    sizes = [sum(tensors[name].numel() for name in names) for names in fragments_of(tensors, 4)]
    assert max(sizes) - min(sizes) <= 90
    assert fragments_of(tensors, 1) == (tuple(tensors),)
    with pytest.raises(ConfigError, match="8 parts"):
        fragments_of(tensors, 9)
    assert [fragment_at(Epoch(epoch), 3) for epoch in range(4)] == [0, 1, 2, 0]


def test_each_epoch_averages_the_fragment_whose_turn_it_is() -> None:
    members = [Member(fragments=2, **PLAIN) for _ in range(2)]
    for epoch in range(4):
        before, layout = members[0].rule.shared.all, members[0].rule.layout(Epoch(epoch))
        old = {name: tensor.detach().clone() for name, tensor in before.items()}
        for index, member in enumerate(members):
            member.compute(10 * epoch + index)
        close(members, epoch)
        moved = {name for name, tensor in members[0].rule.shared.all.items() if not torch.equal(tensor, old[name])}
        assert moved == {slot.name for slot in layout.slots}
        for name in moved:
            assert torch.equal(members[0].rule.shared.local[name], members[1].rule.shared.local[name])
    assert not torch.equal(members[0].local(), members[1].local()), "the fragment that waits differs"


def test_steps_made_while_a_round_runs_are_kept() -> None:
    member = Member(**PLAIN)
    for number in range(2):
        member.compute(number)
    sent = member.rule.contribution(Epoch(0), HASH)
    member.rule.begin_next()
    left = member.local()
    member.compute(2)
    drift = member.local() - left
    average = sent.vector / 2  # another member stayed where it was
    assert member.rule.apply(average, Epoch(0))
    assert torch.allclose(member.local(), member.shared() + drift, atol=1e-6)
    assert torch.allclose(member.rule.contribution(Epoch(1), HASH).vector, -drift, atol=1e-6)


def test_mixing_keeps_a_part_of_what_is_local() -> None:
    member = Member(mixing=0.25, **PLAIN)
    member.compute(0)
    sent = member.rule.contribution(Epoch(0), HASH)
    member.rule.begin_next()
    local = member.local()
    assert member.rule.apply(torch.zeros_like(sent.vector), Epoch(0))
    assert torch.allclose(member.local(), 0.25 * local + 0.75 * member.shared(), atol=1e-6)


def test_a_batch_that_is_not_finite_while_a_round_runs_leaves_the_model_at_the_anchor() -> None:
    member = Member(**PLAIN)
    member.compute(0)
    sent = member.rule.contribution(Epoch(0), HASH)
    member.rule.begin_next()
    member.rule.drop(4)
    assert torch.equal(member.local(), member.shared())
    assert member.rule.apply(sent.vector / 2, Epoch(0))
    assert torch.allclose(member.local(), member.shared(), atol=1e-6)
    idle = member.rule.contribution(Epoch(1), HASH)
    assert (idle.weight, member.rule.next_sample) == (0, 4)
    assert float(idle.vector.abs().max()) < 1e-6


def round_ahead(member: Member, epoch: int, late: int = 0) -> None:
    """A round of which half of what was sent comes back."""
    assert member.feedback is not None
    sent_F = member.feedback.compress(member.rule.turn(Epoch(epoch)), member.rule.contribution(Epoch(epoch), HASH).vector)
    member.rule.begin_next()
    for number in range(late):
        member.compute(100 + number)
    average_F = sent_F * (torch.arange(len(sent_F)) % 2)
    member.feedback.settle(member.rule.turn(Epoch(epoch)), average_F, included=True)
    assert member.rule.apply(average_F, Epoch(epoch))


def ahead_of(member: Member, epoch: int = 0) -> torch.Tensor:
    assert member.feedback is not None
    held_F = member.feedback.ahead(member.rule.turn(Epoch(epoch)))
    assert held_F is not None
    assert float(held_F.abs().max()) > 1e-3
    return held_F


AHEAD: dict[str, Any] = {**PLAIN, "feedback": FeedbackSettings("topk64", 64, 0.9, 0.5)}


def test_a_member_that_steps_ahead_begins_where_a_part_of_its_residual_is_in_place() -> None:
    member = Member(**AHEAD)
    for epoch in range(2):
        member.compute(epoch)
        round_ahead(member, epoch)
        assert torch.equal(member.local(), member.shared() - ahead_of(member))
    start = member.local()
    member.compute(2)
    moved = start - member.local()
    contribution = member.rule.contribution(Epoch(2), HASH)
    assert torch.allclose(contribution.vector, moved + ahead_of(member), atol=1e-6)
    before = member.local()
    round_ahead(member, 2, late=1)
    late = member.local() - (member.shared() - ahead_of(member))
    alone = Member(**PLAIN)
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(before.clone(), alone.model.parameters())
    alone.compute(100)
    assert torch.allclose(late, alone.local() - before, atol=1e-6), "steps made meanwhile stay"


def test_whatever_sends_a_member_back_sends_it_ahead_again() -> None:
    """What is not finite, and another state: the next contribution then holds the residual just once."""
    member = Member(**AHEAD)
    member.compute(0)
    round_ahead(member, 0)
    member.compute(1)
    member.rule.drop(4)
    assert torch.equal(member.local(), member.shared() - ahead_of(member))
    with torch.no_grad():
        next(member.model.parameters()).fill_(math.nan)
    assert member.rule.contribution(Epoch(1), HASH).weight == 0
    assert torch.equal(member.local(), member.shared() - ahead_of(member))
    member.rule.reset(Epoch(1))
    assert torch.equal(member.local(), member.shared() - ahead_of(member))


def test_each_fragment_is_ahead_by_its_own_residual() -> None:
    member = Member(fragments=2, **AHEAD)
    for epoch in range(2):
        member.compute(epoch)
        round_ahead(member, epoch)
    member.rule.reset(Epoch(2))
    for epoch in range(2):
        layout = member.rule.layout(Epoch(epoch))
        local_F, anchor_F = torch.empty(layout.size_elems), torch.empty(layout.size_elems)
        layout.flatten_into(dict(member.model.named_parameters()), local_F)
        layout.flatten_into(member.rule.shared.trained, anchor_F)
        assert torch.equal(local_F, anchor_F - ahead_of(member, epoch))


def test_trained_parameters_are_fp32() -> None:
    model = torch.nn.Linear(2, 1).bfloat16()
    with pytest.raises(ConfigError, match="autocast"):
        OuterRule(model, torch.optim.SGD(model.parameters(), lr=0.1), settings())


def test_a_model_that_is_no_longer_finite_goes_back_to_the_anchor() -> None:
    member = Member()
    member.compute(0)
    with torch.no_grad():
        next(member.model.parameters()).fill_(math.nan)
    found = member.rule.contribution(Epoch(0), HASH)
    assert (found.weight, float(found.vector.abs().max())) == (0.0, 0.0)
    assert torch.equal(member.local(), member.shared())
    assert member.rule.next_sample == 4


def test_inner_gradients_are_clipped_and_rates_follow_the_epoch() -> None:
    rates = {0: 0.5, 1: 0.25}
    clipped = Member(grad_clip_norm=1e-3, learning_rate=rates.__getitem__)
    start = clipped.local()
    clipped.compute(0)
    first = float((clipped.local() - start).norm())
    assert first == pytest.approx(0.5e-3, rel=1e-3)
    close([clipped], 0)
    start = clipped.local()
    clipped.compute(1)
    assert float((clipped.local() - start).norm()) == pytest.approx(0.25e-3, rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [{"inner_batch_samples": 0}, {"mixing": 1.0}, {"momentum": -0.1}, {"outer_learning_rate": 0.0}, {"eps": 0.0}, {"optimizer": "adam"}],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        settings(**changes)


def test_an_optimizer_that_does_not_fit_is_refused() -> None:
    model = torch.nn.Linear(2, 1)
    with pytest.raises(ConfigError, match="one gradient at a time"):
        OuterRule(model, torch.optim.LBFGS(model.parameters()), settings())
    with pytest.raises(ConfigError, match="parameters of the model"):
        OuterRule(model, torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1), settings())


def test_a_run_that_diverges_ends_with_a_sentence() -> None:
    member = Member(outer_learning_rate=1e38)
    average = torch.full((member.rule.layout(Epoch(0)).size_elems,), 10.0)
    with pytest.raises(ConfigError, match=r"lower outer\.learning_rate"):
        member.rule.apply(average, Epoch(0))
