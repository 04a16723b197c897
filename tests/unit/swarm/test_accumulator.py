"""The accumulator: exact sums, and micro-batches that are not finite leave no trace."""

from __future__ import annotations

import pytest
import torch

from protocols.layout import FlatLayout
from swarm.optim.accumulator import GradientAccumulator

LAYOUT = FlatLayout.of({"a": torch.zeros(2, 2), "b": torch.zeros(3)})


def gradients(value: float) -> dict[str, torch.Tensor | None]:
    return {"a": torch.full((2, 2), value), "b": torch.full((3,), -value)}


def test_the_mean_weighs_micro_batches_by_their_samples() -> None:
    accumulator = GradientAccumulator(LAYOUT)
    assert accumulator.add(gradients(1.0), 1)
    assert accumulator.add(gradients(5.0), 3)
    assert accumulator.samples == 4
    assert accumulator.mean().tolist() == [4.0] * 4 + [-4.0] * 3


def test_sums_and_means_of_gradients_come_to_the_same() -> None:
    of_means, of_sums = GradientAccumulator(LAYOUT), GradientAccumulator(LAYOUT)
    of_means.add(gradients(1.5), 4)
    of_sums.add(gradients(6.0), 4, summed=True)
    assert torch.equal(of_means.mean(), of_sums.mean())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_a_value_that_is_not_finite_drops_the_micro_batch_and_the_sum_begins_anew_after_it(bad: float) -> None:
    accumulator = GradientAccumulator(LAYOUT)
    accumulator.add(gradients(1.0), 2)
    assert (accumulator.first_sample, accumulator.samples) == (0, 2)
    poisoned = gradients(1.0)
    spot = poisoned["b"]
    assert spot is not None
    spot[1] = bad
    assert not accumulator.add(poisoned, 3)
    assert (accumulator.first_sample, accumulator.samples, accumulator.dropped_batches) == (5, 0, 1)
    assert accumulator.mean().tolist() == [0.0] * 7
    accumulator.add(gradients(3.0), 2)
    assert (accumulator.first_sample, accumulator.samples) == (5, 2)
    assert accumulator.mean().tolist() == [3.0] * 4 + [-3.0] * 3
    accumulator.reset()
    assert (accumulator.first_sample, accumulator.samples, accumulator.dropped_batches) == (0, 0, 1)


def test_a_parameter_that_was_not_used_counts_as_zero() -> None:
    accumulator = GradientAccumulator(LAYOUT)
    assert accumulator.add({"a": torch.ones(2, 2), "b": None}, 1)
    assert accumulator.mean().tolist() == [1.0] * 4 + [0.0] * 3


def test_half_precision_gradients_are_summed_in_single_precision() -> None:
    accumulator = GradientAccumulator(LAYOUT)
    halves = {"a": torch.ones(2, 2, dtype=torch.bfloat16), "b": torch.ones(3, dtype=torch.bfloat16)}
    for _ in range(1000):
        accumulator.add(dict(halves), 1)
    assert accumulator.mean().dtype == torch.float32
    assert accumulator.mean().tolist() == [1.0] * 7  # a bf16 sum would have stopped at 256


def test_the_mean_is_a_copy_and_reset_forgets_the_sum_only() -> None:
    accumulator = GradientAccumulator(LAYOUT)
    accumulator.add(gradients(float("nan")), 1)
    accumulator.add(gradients(1.0), 1)
    mean = accumulator.mean()
    accumulator.reset()
    assert mean.tolist() == [1.0] * 4 + [-1.0] * 3
    assert (accumulator.samples, accumulator.dropped_batches) == (0, 1)
    assert accumulator.mean().tolist() == [0.0] * 7


def test_our_own_mistakes_are_errors() -> None:
    accumulator = GradientAccumulator(LAYOUT)
    with pytest.raises(ValueError, match="at least one sample"):
        accumulator.add(gradients(1.0), 0)
    with pytest.raises(ValueError, match="missing"):
        accumulator.add({"a": torch.ones(2, 2)}, 1)
    with pytest.raises(ValueError, match="shape"):
        accumulator.add({"a": torch.ones(2, 2), "b": torch.ones(4)}, 1)
