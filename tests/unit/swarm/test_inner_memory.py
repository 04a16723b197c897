"""8-bit states and offload of the inner optimizer: what they save, what they cost in loss, restarts, and what is refused."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from peers.state_snapshot import StateSnapshot
from protocols.errors import ConfigError, ExitCode, UserError
from protocols.ids import Epoch
from protocols.runspec import OptimizerSection, RunSpec
from scripts.learning.task import MODEL, OUTER, small_task
from swarm.checkpoint.store import CheckpointStore
from swarm.data.assignment import window_offsets
from swarm.models.build import build_model
from swarm.optim import OuterSettings
from swarm.optim.inner import PLAIN, InnerMemory, home_of, inner_optimizer, kind_of
from swarm.optim.inner_distance import copy_without_state
from swarm.optim.offload import OffloadedOptimizer, slot_elems
from swarm.optim.outer_rule import OuterRule
from swarm.optim.own_state import own_snapshot, own_tensors, put_states, restore_own
from swarm.optim.rule import OwnParams
from swarm.optim.state import StateMismatch
from swarm.runtime import make_optimizer
from swarm.training.evaluation import held_out_loss
from swarm.training.gradients import accumulate_gradients

HASH = b"h" * 32
EIGHT_BIT, OFFLOAD, BOTH = InnerMemory("8bit"), InnerMemory(offload=True), InnerMemory("8bit", offload=True)
ADAMW = OptimizerSection(learning_rate=0.01)
SECTIONS = (
    ADAMW,
    OptimizerSection(name="adam", learning_rate=0.01, weight_decay=0.0),
    OptimizerSection(name="sgd", learning_rate=0.05, momentum=0.9),
    OptimizerSection(name="sgd", learning_rate=0.05),
)
SETTINGS = OuterSettings(inner_batch_samples=8, grad_clip_norm=0.05)


class Member:
    """One member's model and rule; its first layer is large enough for 8-bit states."""

    def __init__(self, memory: InnerMemory = PLAIN, section: OptimizerSection = ADAMW) -> None:
        torch.manual_seed(3)
        self.model = torch.nn.Sequential(torch.nn.Linear(64, 100), torch.nn.Tanh(), torch.nn.Linear(100, 3))
        self.inner = inner_optimizer(section, self.model.parameters(), memory)
        self.rule = OuterRule(self.model, self.inner, SETTINGS)

    def compute(self, numbers: range) -> torch.Tensor:
        """Micro-batches of four samples, two of which are an inner step."""
        for number in numbers:
            generator = torch.Generator().manual_seed(number)
            inputs, targets = torch.randn(4, 64, generator=generator), torch.randn(4, 3, generator=generator)
            torch.nn.functional.mse_loss(self.model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            assert self.rule.add(4)
        return torch.cat([param.detach().flatten() for param in self.model.parameters()]).clone()

    def own(self) -> StateSnapshot:
        found = own_snapshot(self.rule, None, Epoch(0), HASH)
        assert found is not None
        return found

    def states(self) -> list[dict[str, Any]]:
        return [self.inner.state[param] for param in self.model.parameters()]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: f"{section.name}-{section.momentum}")
@pytest.mark.parametrize(("plain", "offloaded"), [(PLAIN, OFFLOAD), (EIGHT_BIT, BOTH)])
def test_offloaded_steps_are_the_same_to_the_last_bit(section: OptimizerSection, plain: InnerMemory, offloaded: InnerMemory) -> None:
    here, there = Member(plain, section), Member(offloaded, section)
    begun = here.compute(range(0))
    assert not torch.equal(here.compute(range(7)), begun)
    assert torch.equal(here.compute(range(7, 10)), there.compute(range(10)))
    assert isinstance(there.inner, OffloadedOptimizer)


def test_an_offloaded_optimizer_is_a_torch_optimizer() -> None:
    """Groups of their own, a closure, parameters without a gradient, and two of one slot in a row."""

    def steps(offloaded: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        params = [torch.nn.Parameter(torch.randn(3 + number, 2)) for number in range(4)]
        groups = [{"params": params[:3], "lr": 0.1}, {"params": params[3:], "weight_decay": 0.5}]

        def make(given: Any) -> torch.optim.Optimizer:
            return torch.optim.AdamW(given, lr=0.01)

        optimizer = OffloadedOptimizer(groups, make) if offloaded else make(groups)  # type: ignore[arg-type]
        for number in range(5):

            def closure(number: int = number) -> float:
                optimizer.zero_grad()
                used = [param for index, param in enumerate(params) if index != 1 or number == 4]
                loss = sum((param**2).sum() for param in used)
                loss.backward()  # type: ignore[union-attr]
                return float(loss.detach())  # type: ignore[union-attr]

            assert optimizer.step(closure) is not None
        return [param.detach().clone() for param in params]

    assert all(torch.equal(one, other) for one, other in zip(steps(True), steps(False), strict=True))


def test_only_fp32_parameters_can_be_offloaded() -> None:
    with pytest.raises(ConfigError, match="fp32 parameters only"):
        OffloadedOptimizer([torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))], lambda given: torch.optim.SGD(given, lr=0.1))


def test_one_large_parameter_is_staged_once() -> None:
    assert slot_elems([1000, 3, 2, 4]) == [1000, 4]
    assert slot_elems([7]) == [7, 0]


def test_moments_in_8_bits_take_a_byte_an_element() -> None:
    member = Member(EIGHT_BIT)
    member.compute(range(2))
    large, bias = member.states()[:2]
    assert large["state1"].dtype == large["state2"].dtype == torch.uint8
    assert large["state1"].numel() == 6400
    assert large["absmax1"].numel() == 25
    assert bias["state1"].dtype == torch.float32, "small tensors keep all their bits"
    rounded = Member(PLAIN)
    first = rounded.compute(range(2))
    assert torch.allclose(member.compute(range(0)), first, atol=1e-3)


@lru_cache(maxsize=4)
def learnt(memory: InnerMemory) -> float:
    """Held-out loss of a small BLOOM after 120 inner steps of real text."""
    torch.set_num_threads(1)
    dataset, model = small_task(target_samples=1, until_samples=1).dataset, build_model(MODEL, 5)
    inner = inner_optimizer(OptimizerSection(learning_rate=4e-3), model.parameters(), memory)
    rule = OuterRule(model, inner, OuterSettings(inner_batch_samples=OUTER.inner_batch_samples, grad_clip_norm=1.0))
    for _ in range(120):
        indices = range(rule.next_sample, rule.next_sample + OUTER.inner_batch_samples)
        accumulate_gradients(model, dataset.sample(window_offsets(0, Epoch(0), HASH, indices, dataset.positions)))
        rule.add(len(indices), summed=True)
    return held_out_loss(model, dataset, windows=128)


def test_8_bit_states_learn_as_well_as_fp32_ones() -> None:
    plain = learnt(PLAIN)
    assert plain < 3.4, "it learns: a model that knows nothing has 5.6"
    assert learnt(EIGHT_BIT) < 1.01 * plain
    assert learnt(EIGHT_BIT) != plain


@pytest.mark.parametrize("memory", [PLAIN, EIGHT_BIT, OFFLOAD, BOTH], ids=["plain", "8bit", "offload", "both"])
@pytest.mark.parametrize("section", SECTIONS[::2], ids=["adamw", "sgd"])
def test_a_restart_from_disk_goes_on_to_the_bit(tmp_path: Path, memory: InnerMemory, section: OptimizerSection) -> None:
    before, after = Member(memory, section), Member(memory, section)
    before.compute(range(6))
    store = CheckpointStore(tmp_path)
    store.save(before.own())
    kept = store.newest()
    assert kept is not None
    restore_own(after.rule, None, HASH, kept)
    for param in after.model.parameters():
        tensors = [value for value in after.inner.state[param].values() if isinstance(value, torch.Tensor)]
        assert tensors
        assert all(tensor.device == home_of(after.inner, param) for tensor in tensors)
    assert torch.equal(before.compute(range(6, 10)), after.compute(range(6, 10)))


@pytest.mark.parametrize(("one", "other"), [(PLAIN, OFFLOAD), (OFFLOAD, PLAIN), (EIGHT_BIT, BOTH)])
def test_a_member_may_offload_after_a_restart(one: InnerMemory, other: InnerMemory) -> None:
    before, after = Member(one), Member(other)
    before.compute(range(6))
    restore_own(after.rule, None, HASH, before.own())
    assert torch.equal(before.compute(range(6, 10)), after.compute(range(6, 10)))


def test_states_of_another_kind_or_form_are_refused_and_change_nothing() -> None:
    before = Member(EIGHT_BIT)
    before.compute(range(4))
    own = before.own()
    plain = Member(PLAIN)
    with pytest.raises(StateMismatch, match="another sync rule, optimizer"):
        restore_own(plain.rule, None, HASH, own)
    tensors, meta = dict(own.tensors()), dict(own.manifest.meta)
    numbers: dict[str, dict[str, Any]] = meta["numbers"]  # type: ignore[assignment]
    name = "0.weight"
    damaged: list[tuple[dict[str, torch.Tensor], dict[str, Any]]] = [
        ({**tensors, f"optim/{name}/absmax1": torch.zeros(24)}, numbers),
        ({**tensors, f"optim/{name}/state1": torch.zeros(100, 64)}, numbers),
        ({**tensors, f"optim/{name}/more": torch.zeros(100, 64)}, numbers),
        ({key: tensor for key, tensor in tensors.items() if key != f"optim/{name}/absmax2"}, numbers),
        (tensors, {**numbers, name: {"step": "2"}}),
        (tensors, {**numbers, name: {"step": 2.5}}),
        (tensors, {key: value for key, value in numbers.items() if key != name}),
        (tensors, {**numbers, "unknown": {"step": 2}}),
    ]
    for number, (changed, plain_numbers) in enumerate(damaged):
        after = Member(EIGHT_BIT)
        begun = after.compute(range(0))
        snapshot = StateSnapshot.of(list(changed.items()), epoch=0, accepted_samples=0, meta={**meta, "numbers": plain_numbers})
        with pytest.raises(StateMismatch, match="does not fit"):
            restore_own(after.rule, None, HASH, snapshot)
        assert torch.equal(after.compute(range(0)), begun), number
        assert not any(after.states()), number


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "swarm.optim.eight_bit", raising=False)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        Member(EIGHT_BIT)
    Member(PLAIN)
    Member(EIGHT_BIT, SECTIONS[3])  # nothing is kept of what has no states


@pytest.mark.parametrize("error", [RuntimeError("no kernel image is available"), NotImplementedError("not on this device"), None])
def test_a_build_that_does_not_work_here_is_told_before_training(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    from swarm.optim.eight_bit import EightBitAdamW

    def step(self: object, closure: object = None) -> None:
        if error:
            raise error

    monkeypatch.setattr(EightBitAdamW, "step", step)
    with pytest.raises(UserError, match=r"bitsandbytes does .* on cpu") as caught:
        Member(EIGHT_BIT)
    assert caught.value.exit_code is ExitCode.DEVICE


def test_adam_with_weight_decay_has_no_8_bit_version() -> None:
    """bitsandbytes' decouples it, which is another optimizer."""
    with pytest.raises(ConfigError, match="adam with weight decay"):
        Member(EIGHT_BIT, OptimizerSection(name="adam"))


def test_by_the_gradient_rule_states_are_the_swarms() -> None:
    def spec(rule: str, auditors: int = 0) -> RunSpec:
        trust = {"auditors": auditors}
        return RunSpec.from_settings({"run": {"name": "a"}, "model": {"preset": "tiny"}, "optimizer": {"rule": rule}, "trust": trust})

    model = torch.nn.Linear(64, 100)
    with pytest.raises(ConfigError, match="the swarm's, the same bytes on all members"):
        make_optimizer(spec("gradient"), model, EIGHT_BIT)
    assert type(make_optimizer(spec("gradient"), model, OFFLOAD)) is torch.optim.AdamW, "they are in main memory as it is"
    with pytest.raises(ConfigError, match="compute each other's inner steps again"):
        make_optimizer(spec("outer", auditors=1), model, EIGHT_BIT)
    assert isinstance(make_optimizer(spec("outer", auditors=1), model, OFFLOAD), OffloadedOptimizer)
    found = make_optimizer(spec("outer"), model, BOTH)
    assert isinstance(found, OffloadedOptimizer)
    assert kind_of(found) == kind_of(make_optimizer(spec("outer"), model, EIGHT_BIT)) == "EightBitAdamW"


def test_an_offloaded_optimizer_can_be_copied_for_a_replay() -> None:
    """Its copy steps as it does, from a state of its own."""
    member = Member(OFFLOAD)
    member.compute(range(4))
    other = copy_without_state(member.inner)
    assert isinstance(other, OffloadedOptimizer)
    assert other.stepper is not member.inner.stepper  # type: ignore[attr-defined]
    assert not other.state
    own = OwnParams(member.rule.shared.local_trained, other)
    put_states(own, dict(own_tensors(member.rule.own, with_params=False)))
    before = [param.detach().clone() for param in member.model.parameters()]
    stepped = []
    for optimizer in (member.inner, other):
        for param, was in zip(member.model.parameters(), before, strict=True):
            param.data.copy_(was)
            param.grad = torch.ones_like(param)
        optimizer.step()
        stepped.append([param.detach().clone() for param in member.model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*stepped, strict=True))
    assert not torch.equal(stepped[0][0], before[0])
