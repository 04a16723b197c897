"""Gradients and held-out loss: sums over samples however they are cut, and repeatable."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from protocols.runspec import DataSection
from swarm.data.dataset import Dataset, load_dataset
from swarm.models.build import build_model
from swarm.models.presets import PRESETS
from swarm.training.evaluation import held_out_loss
from swarm.training.gradients import LossSum, accumulate_gradients, window_losses

SMALL = {"config": {**PRESETS["tiny"].huggingface(), "hidden_size": 16, "n_head": 2, "n_layer": 1}}


@pytest.fixture
def model() -> nn.Module:
    return build_model(SMALL, 1)


@pytest.fixture(name="tokens_BT")
def _tokens() -> torch.Tensor:
    return torch.randint(0, 256, (6, 13), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    (tmp_path / "a").write_bytes(b"the quick brown fox jumps over the lazy dog. " * 40)
    return load_dataset(DataSection(source="files", files=("a",), sequence_length=12), tmp_path)


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradients_are_those_of_the_sum_of_mean_losses(model: nn.Module, tokens_BT: torch.Tensor) -> None:
    logits_BTV = model(input_ids=tokens_BT).logits[:, :-1]
    by_hand = torch.stack(
        [nn.functional.cross_entropy(logits, tokens[1:]) for logits, tokens in zip(logits_BTV, tokens_BT, strict=True)]
    ).sum()
    by_hand.backward()  # type: ignore[no-untyped-call]
    expected = _gradients(model)
    model.zero_grad()
    loss = accumulate_gradients(model, tokens_BT)
    assert loss.samples == 6
    assert loss.nats == pytest.approx(by_hand.item(), rel=1e-5)
    assert expected.keys() == _gradients(model).keys()
    for name, gradient in _gradients(model).items():
        torch.testing.assert_close(gradient, expected[name])


def test_cutting_into_micro_batches_changes_nothing(model: nn.Module, tokens_BT: torch.Tensor) -> None:
    whole = accumulate_gradients(model, tokens_BT)
    expected = _gradients(model)
    model.zero_grad()
    cut = LossSum()
    for part_BT in torch.split(tokens_BT, [1, 3, 2]):
        cut += accumulate_gradients(model, part_BT)
    assert cut.samples == whole.samples
    assert cut.mean == pytest.approx(whole.mean, rel=1e-5)
    for name, gradient in _gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_the_same_tokens_give_the_same_bits(model: nn.Module, tokens_BT: torch.Tensor) -> None:
    first_loss = accumulate_gradients(model, tokens_BT)
    first = _gradients(model)
    model.zero_grad()
    torch.rand(3)
    assert accumulate_gradients(model, tokens_BT) == first_loss
    assert all(torch.equal(gradient, first[name]) for name, gradient in _gradients(model).items())


def test_an_untrained_model_guesses_nearly_uniformly(tokens_BT: torch.Tensor) -> None:
    losses_B = window_losses(build_model({"preset": "tiny"}, 1), tokens_BT)
    assert losses_B.shape == (6,)
    assert losses_B.dtype == torch.float32
    assert losses_B.mean().item() == pytest.approx(math.log(258), abs=1.0)


@pytest.mark.parametrize("shape", [(0, 5), (2, 1), (5,)])
def test_a_batch_without_a_prediction_is_refused(model: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one window"):
        accumulate_gradients(model, torch.zeros(shape, dtype=torch.int64))


def test_a_loss_that_overflowed_is_seen() -> None:
    assert LossSum(2.0, 4).is_finite
    assert LossSum(2.0, 4).mean == 0.5
    assert not (LossSum(2.0, 4) + LossSum(math.nan, 1)).is_finite
    assert math.isnan(LossSum().mean)


def test_held_out_loss_is_repeatable_and_leaves_the_model_alone(model: nn.Module, dataset: Dataset) -> None:
    accumulate_gradients(model, dataset.sample([0]))
    before = _gradients(model)
    first = held_out_loss(model, dataset, windows=10, micro_batch_samples=3)
    assert first == held_out_loss(model, dataset, windows=10, micro_batch_samples=3)
    assert first == pytest.approx(window_losses(model, dataset.held_out_sample(10)).mean().item(), rel=1e-5)
    assert model.training
    assert all(torch.equal(gradient, before[name]) for name, gradient in _gradients(model).items())


def test_training_lowers_the_held_out_loss(model: nn.Module, dataset: Dataset) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    start = held_out_loss(model, dataset)
    for step in range(20):
        accumulate_gradients(model, dataset.sample(range(step, step + 80, 10)))
        optimizer.step()
        optimizer.zero_grad()
    assert held_out_loss(model, dataset) < start - 1.0
