"""The gradient rule: a swarm of any shape takes the step of one large batch, and everybody takes the same one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from protocols.aggregation.mean import weighted_mean
from protocols.errors import ConfigError
from protocols.ids import Epoch
from swarm.optim.gradient_rule import GradientRule, global_norm
from swarm.optim.master import MasterParams
from swarm.optim.settings import GradientSettings

OptimizerMaker = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
HASH = b"h" * 32


class Member:
    """One member's model and rule."""

    def __init__(self, make: OptimizerMaker, seed: int = 0, **options: object) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))
        self.optimizer = make(list(self.model.parameters()))
        self.rule = GradientRule(MasterParams(self.model, self.optimizer), self.optimizer, GradientSettings(**options))  # type: ignore[arg-type]

    def compute(self, inputs: torch.Tensor, targets: torch.Tensor) -> bool:
        torch.nn.functional.mse_loss(self.model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        return self.rule.add(len(inputs))

    def params(self) -> torch.Tensor:
        return torch.cat([param.detach().flatten() for param in self.model.parameters()])


def sgd(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def adamw(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.01)


def close_epoch(members: Sequence[Member], epoch: int) -> None:
    parts = [member.rule.contribution(Epoch(epoch), HASH) for member in members]
    average = weighted_mean([part.vector for part in parts], [part.weight for part in parts])
    for member in members:
        member.rule.begin_next()
        assert member.rule.apply(average.clone(), Epoch(epoch))


@pytest.mark.parametrize("make", [sgd, adamw])
def test_members_of_unequal_speed_take_the_step_of_one_large_batch(make: OptimizerMaker) -> None:
    shares = [5, 1, 3]
    members, large = [Member(make) for _ in shares], Member(make)
    for epoch in range(4):
        torch.manual_seed(100 + epoch)
        inputs, targets = torch.randn(9, 5), torch.randn(9, 1)
        for member, x, y in zip(members, torch.split(inputs, shares), torch.split(targets, shares), strict=True):
            for x_1, y_1 in zip(torch.split(x, 1), torch.split(y, 1), strict=True):
                assert member.compute(x_1, y_1)
        close_epoch(members, epoch)
        large.optimizer.zero_grad()
        torch.nn.functional.mse_loss(large.model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        large.optimizer.step()
    for member in members:
        assert torch.equal(member.params(), members[0].params())
    torch.testing.assert_close(members[0].params(), large.params(), rtol=1e-5, atol=1e-6)


def test_with_numbers_that_fp32_holds_exactly_the_step_is_the_same_in_every_bit() -> None:
    """Small integers and shares that are powers of two: no rounding anywhere, so the sum over members is the large batch, bit for bit."""

    def one(seed: int) -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = torch.nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.randint(-4, 5, (1, 4)).float())
        return model, torch.optim.SGD(model.parameters(), lr=0.25)

    torch.manual_seed(7)
    inputs, targets = torch.randint(-3, 4, (8, 4)).float(), torch.randint(-3, 4, (8, 1)).float()
    large, large_optimizer = one(0)
    torch.nn.functional.mse_loss(large(inputs), targets).backward()  # type: ignore[no-untyped-call]
    large_optimizer.step()

    shares, parts, rules, models = [2, 4, 2], [], [], []
    for x, y in zip(torch.split(inputs, shares), torch.split(targets, shares), strict=True):
        model, optimizer = one(0)
        rule = GradientRule(MasterParams(model, optimizer), optimizer)
        torch.nn.functional.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
        rule.add(len(x))
        parts.append(rule.contribution(Epoch(0), HASH))
        rules.append(rule)
        models.append(model)
    average = weighted_mean([part.vector for part in parts], [part.weight for part in parts])
    for rule, model in zip(rules, models, strict=True):
        rule.apply(average, Epoch(0))
        assert torch.equal(model.weight, large.weight)
    assert not torch.equal(large.weight, one(0)[0].weight)


def test_a_contribution_is_a_copy_with_its_samples_as_weight() -> None:
    member = Member(sgd)
    member.compute(torch.ones(3, 5), torch.zeros(3, 1))
    first = member.rule.contribution(Epoch(2), HASH)
    before = first.vector.clone()
    member.compute(torch.ones(2, 5), torch.ones(2, 1))
    assert torch.equal(first.vector, before)
    assert (first.epoch, first.weight, first.state_hash) == (2, 3.0, HASH)
    assert member.rule.contribution(Epoch(2), HASH).weight == 5.0


def test_gradients_are_cleared_after_each_micro_batch_and_after_the_step() -> None:
    member = Member(sgd)
    member.compute(torch.ones(3, 5), torch.zeros(3, 1))
    assert all(param.grad is None for param in member.model.parameters())
    close_epoch([member], 0)
    assert all(param.grad is None for param in member.model.parameters())
    assert member.rule.samples == 0


def test_a_gradient_that_is_not_finite_never_reaches_the_contribution() -> None:
    member, clean = Member(sgd), Member(sgd)
    member.compute(torch.zeros(3, 5), torch.ones(3, 1))
    assert not member.compute(torch.full((3, 5), math.nan), torch.zeros(3, 1))
    assert member.rule.next_sample == 6
    for each in (member, clean):
        each.compute(torch.ones(3, 5), torch.zeros(3, 1))
    after = member.rule.contribution(Epoch(0), HASH)
    assert torch.equal(after.vector, clean.rule.contribution(Epoch(0), HASH).vector)
    assert (after.first_sample, after.weight, member.rule.dropped_batches) == (6, 3.0, 1)


def test_an_average_that_is_not_finite_changes_nothing() -> None:
    member = Member(adamw)
    before = member.params()
    vector = torch.zeros(member.rule.layout(Epoch(0)).size_elems)
    vector[3] = math.inf
    assert member.rule.apply(vector, Epoch(0)) is False
    assert torch.equal(member.params(), before)
    assert not member.optimizer.state


def test_the_average_is_clipped_to_the_norm_and_not_written_to() -> None:
    member, free = Member(lambda p: torch.optim.SGD(p, lr=1.0), grad_clip_norm=0.5), Member(lambda p: torch.optim.SGD(p, lr=1.0))
    torch.manual_seed(5)
    average = torch.randn(member.rule.layout(Epoch(0)).size_elems)
    kept = average.clone()
    start = member.params()
    member.rule.apply(average, Epoch(0))
    free.rule.apply(average, Epoch(0))
    assert torch.equal(average, kept)
    torch.testing.assert_close((start - member.params()).norm(), torch.tensor(0.5))
    torch.testing.assert_close((start - member.params()) / 0.5, (start - free.params()) / kept.norm())


def test_a_norm_below_the_limit_is_left_alone() -> None:
    average = torch.full((Member(sgd).rule.layout(Epoch(0)).size_elems,), 0.01)
    limited, free = Member(sgd, grad_clip_norm=100.0), Member(sgd)
    limited.rule.apply(average, Epoch(0))
    free.rule.apply(average, Epoch(0))
    assert torch.equal(limited.params(), free.params())


def test_the_global_norm_is_right_and_does_not_depend_on_threads() -> None:
    torch.manual_seed(1)
    vector = torch.randn(2**20 + 12345)
    exact = math.sqrt(math.fsum((vector.numpy().astype(np.float64) ** 2).tolist()))
    threads = torch.get_num_threads()
    norms = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            norms.append(global_norm(vector))
    finally:
        torch.set_num_threads(threads)
    assert len(set(norms)) == 1
    assert norms[0] == pytest.approx(exact, rel=1e-13)
    assert global_norm(torch.tensor([3.0, 4.0])) == 5.0
    assert global_norm(torch.full((4,), 3e38)) == pytest.approx(6e38)  # an fp32 sum of squares would overflow
    assert math.isnan(global_norm(torch.tensor([1.0, math.nan])))


def test_the_learning_rate_follows_the_epoch_and_groups_keep_their_ratio() -> None:
    model = torch.nn.Linear(2, 2)
    groups: list[dict[str, object]] = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    rule = GradientRule(MasterParams(model, optimizer), optimizer, GradientSettings(learning_rate=lambda epoch: 1.0 / (1 + epoch)))
    start = torch.cat([model.weight.detach().flatten(), model.bias.detach()])
    rule.apply(torch.ones(6), Epoch(3))
    moved = start - torch.cat([model.weight.detach().flatten(), model.bias.detach()])
    torch.testing.assert_close(moved, torch.tensor([0.25] * 4 + [0.5] * 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_in_another_precision_trains_an_fp32_master(dtype: torch.dtype) -> None:
    """Steps of 2**-12 are below bf16's resolution at 1.0: without the master nothing would ever move."""
    model = torch.nn.Linear(1, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-12)
    masters = MasterParams(model, optimizer)
    rule = GradientRule(masters, optimizer)
    for epoch in range(2**8):
        model(torch.ones(1, 1, dtype=dtype)).sum().backward()
        rule.add(1)
        rule.apply(rule.contribution(Epoch(epoch), HASH).vector, Epoch(epoch))
    (master,) = masters.trained.values()
    assert master.dtype == torch.float32
    assert master.item() == 1 - 2.0**-4
    assert model.weight.dtype == dtype
    assert model.weight.item() == 1 - 2.0**-4


def test_state_that_an_optimizer_already_has_moves_to_the_masters() -> None:
    model = torch.nn.Linear(2, 1, bias=False, dtype=torch.bfloat16)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1, initial_accumulator_value=0.5)
    masters = MasterParams(model, optimizer)
    (master,) = masters.trained.values()
    assert list(optimizer.state) == [master]
    assert optimizer.state[master]["sum"].dtype == torch.float32


def test_parameters_shared_under_two_names_count_once() -> None:
    model = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(3, 2), "head": torch.nn.Linear(2, 3, bias=False)})
    model["head"].weight = model["embedding"].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert list(MasterParams(model, optimizer).trained) == ["embedding.weight"]


def test_frozen_parameters_are_not_averaged() -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    masters = MasterParams(model, optimizer)
    assert list(masters.trained) == ["weight"]
    assert list(masters.all) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: torch.optim.AdamW(p, fused=True), "fused"),
        (lambda p: torch.optim.AdamW(p, capturable=True), "capturable"),
        (lambda p: torch.optim.LBFGS(p), "LBFGS"),
    ],
)
def test_an_optimizer_that_cannot_be_stepped_alike_everywhere_is_refused(make: OptimizerMaker, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Member(make)


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="parameters of the model"):
        MasterParams(torch.nn.Linear(2, 1), sgd(list(torch.nn.Linear(2, 1).parameters())))
    with pytest.raises(ConfigError, match="grad_clip_norm"):
        Member(sgd, grad_clip_norm=0.0)


@pytest.mark.parametrize("flag", [True, None])
def test_the_plain_arithmetic_is_chosen_whatever_was_asked(flag: bool | None) -> None:
    member = Member(lambda p: torch.optim.AdamW(p, foreach=flag))
    assert all(group["foreach"] is False for group in member.optimizer.param_groups)
