"""Predicted bytes beside the bytes of objects that were really built."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from protocols.ids import Epoch
from protocols.planning.memory import Saving, activations, device_memory, host_memory
from protocols.runspec import RunSpec
from swarm.models.build import build_model
from swarm.models.recompute import recompute_activations
from swarm.optim import OuterSettings
from swarm.optim.inner import InnerMemory
from swarm.optim.outer_rule import OuterRule
from swarm.planning import settings_of, shape_of, trained_of
from swarm.runtime import make_optimizer, rule_settings
from swarm.training.gradients import accumulate_gradients, window_losses

TOKENS, MICRO_BATCH = 48, 2


def spec_of(model: dict[str, Any], outer: str = "nesterov", **optimizer: Any) -> RunSpec:
    return RunSpec.from_settings(
        {
            "run": {"name": "a"},
            "model": model,
            "data": {"sequence_length": TOKENS},
            "optimizer": {"rule": "outer", **optimizer},
            "trust": {"auditors": 0},
            "outer": {"inner_batch_samples": 2 * MICRO_BATCH, "optimizer": outer},
        }
    )


def tokens(samples: int) -> torch.Tensor:
    return torch.arange(samples * (TOKENS + 1)).remainder(256).view(samples, -1)


def size_bytes(tensors: Iterable[object]) -> int:
    """Of memory: what two tensors share counts once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors if torch.is_tensor(tensor)}
    return sum(storages.values())


SAVINGS = (Saving(), Saving(states="8bit"), Saving(offload=True), Saving(states="8bit", offload=True))


@pytest.mark.parametrize("saving", SAVINGS, ids=lambda saving: saving.flags or "plain")
@pytest.mark.parametrize(("name", "outer"), [("adamw", "nesterov"), ("sgd", "fedadam")])
def test_weights_gradients_states_and_the_anchor_take_what_is_predicted(saving: Saving, name: str, outer: str) -> None:
    spec = spec_of({"preset": "mini"}, outer, name=name, momentum=0.9 if name == "sgd" else 0.0)
    trained, settings = trained_of(spec), settings_of(spec)
    model = build_model({"preset": "mini"}, 1)
    inner = make_optimizer(spec, model, InnerMemory(saving.states, saving.offload))
    outer_settings = rule_settings(spec)
    assert isinstance(outer_settings, OuterSettings)
    rule = OuterRule(model, inner, outer_settings)
    for _ in range(2):
        accumulate_gradients(model, tokens(MICRO_BATCH))
        gradients_bytes = size_bytes(param.grad for param in model.parameters())
        rule.add(MICRO_BATCH, summed=True)
    accumulate_gradients(model, tokens(1))
    rule.add(1, summed=True)
    sums_bytes = size_bytes(rule._batch._sums.values())
    average = rule.contribution(Epoch(0), bytes(32)).vector
    rule.begin_next()
    assert rule.apply(average, Epoch(0))

    states_bytes = size_bytes(value for state in inner.state.values() for value in state.values())
    staged = {slot._param_E for slot in inner._slots.values()} if saving.offload else set()  # type: ignore[attr-defined]
    device = device_memory(trained, activations(shape_of(spec), trained.parameters, bf16=False), settings, saving, MICRO_BATCH)
    host = host_memory(trained, settings, saving, trained.parameters)
    assert device.weights == size_bytes(model.parameters())
    assert device.gradients == gradients_bytes
    assert device.sums == (0 if saving.offload else sums_bytes)
    assert device.states == pytest.approx(0 if saving.offload else states_bytes, rel=0.01)
    assert host.states == pytest.approx(states_bytes + sums_bytes + size_bytes(staged) if saving.offload else 0, rel=0.01)
    assert host.shared == size_bytes(rule.shared.all.values())
    shared_states = size_bytes(value for state in rule.optimizer.state.values() for value in state.values())
    assert host.shared_states == pytest.approx(shared_states, rel=0.01)
    assert host.rounds == 4 * average.nbytes


def kept_bytes(model: torch.nn.Module, samples: int, bf16: bool) -> int:
    """What autograd keeps for the backward pass, beside parameters."""
    own = {param.untyped_storage().data_ptr() for param in model.parameters()}
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        window_losses(model, tokens(samples), bf16=bf16)
    return size_bytes(tensor for tensor in kept if tensor.untyped_storage().data_ptr() not in own)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("preset", ["tiny", "mini"])
def test_activations_take_what_autograd_keeps(preset: str, bf16: bool) -> None:
    spec = spec_of({"preset": preset})
    shape, trained = shape_of(spec), trained_of(spec)
    model = build_model({"preset": preset}, 1)
    one, three = kept_bytes(model, 1, bf16), kept_bytes(model, 3, bf16)
    found = activations(shape, trained.parameters, bf16=bf16)
    passing = 8 * shape.tokens * shape.words  # logits and their gradients are there, and autograd does not keep them
    assert found.bytes_per_sample - passing == pytest.approx((three - one) / 2, rel=0.03)
    assert found.fixed_bytes == pytest.approx(one - (three - one) / 2, rel=0.03, abs=0.005 * found.bytes_per_sample)


@pytest.mark.parametrize("bf16", [False, True])
def test_recomputed_activations_take_the_inputs_of_layers(bf16: bool) -> None:
    spec = spec_of({"preset": "mini"})
    shape, trained = shape_of(spec), trained_of(spec)
    model = build_model({"preset": "mini"}, 1)
    recompute_activations(model)
    one, three = kept_bytes(model, 1, bf16), kept_bytes(model, 3, bf16)
    found = activations(shape, trained.parameters, bf16=bf16, recompute=True)
    per_width, per_score = (36, 6) if bf16 else (64, 4)
    layer = shape.tokens * (per_width * shape.width + per_score * shape.heads * shape.tokens)  # is there while it is computed again
    passing = 8 * shape.tokens * shape.words
    assert found.bytes_per_sample - passing - layer == pytest.approx((three - one) / 2, rel=0.1)
