"""Activations that are computed again: the same gradients, from less memory."""

from __future__ import annotations

import pytest
import torch

from protocols.errors import ConfigError
from swarm.models.build import build_model
from swarm.models.recompute import recompute_activations
from swarm.training.gradients import accumulate_gradients

MODELS = (
    {"preset": "tiny"},
    {
        "config": {
            "model_type": "llama",
            "vocab_size": 258,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        }
    },
)


@pytest.mark.parametrize("model", MODELS, ids=["bloom", "llama"])
@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_are_the_same_to_the_last_bit(model: dict[str, object], bf16: bool) -> None:
    tokens_BT = torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(1))
    kept, again = build_model(model, 1), build_model(model, 1)
    recompute_activations(again)
    layers = [0, 0]
    for number, module in enumerate((kept, again)):

        def count(*_: object, number: int = number) -> None:
            layers[number] += 1

        for name, part in module.named_modules():
            if name.endswith(".mlp"):
                part.register_forward_pre_hook(count)
        accumulate_gradients(module, tokens_BT, bf16=bf16)
    assert layers[1] == 2 * layers[0] > 0
    for one, other in zip(kept.parameters(), again.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


def test_a_model_that_cannot_is_refused() -> None:
    with pytest.raises(ConfigError, match="--recompute-activations"):
        recompute_activations(torch.nn.Linear(2, 2))
