"""The weighted mean: right, the same bits for the same parts, and finite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocols.aggregation.mean import weighted_mean

LARGEST = torch.finfo(torch.float32).max


def parts(count: int, elems: int = 257, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(elems, generator=generator) for _ in range(count)]


def bits(vector: torch.Tensor) -> bytes:
    return vector.numpy().tobytes()


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=20), st.integers(0, 2**32))
def test_it_is_the_mean(weights: list[float], seed: int) -> None:
    given_parts = parts(len(weights), 33, seed)
    exact = torch.stack([part.double() * weight for part, weight in zip(given_parts, weights, strict=True)]).sum(0) / sum(weights)
    largest = max(float(part.abs().max()) for part in given_parts)
    error = float((weighted_mean(given_parts, weights).double() - exact).abs().max())
    assert error <= (len(weights) + 2) * 2**-23 * largest


def test_the_same_parts_give_the_same_bits_and_are_left_alone() -> None:
    given_parts, weights = parts(7), [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    before = [part.clone() for part in given_parts]
    first = bits(weighted_mean(given_parts, weights))
    assert bits(weighted_mean([part.clone() for part in given_parts], weights)) == first
    assert all(torch.equal(old, new) for old, new in zip(before, given_parts, strict=True))


def test_bits_do_not_depend_on_how_the_vector_is_cut() -> None:
    given_parts, weights = parts(5, 1000), [1.0, 2.0, 3.0, 4.0, 5.0]
    whole = weighted_mean(given_parts, weights)
    pieces = [weighted_mean([part[i : i + 13] for part in given_parts], weights) for i in range(0, 1000, 13)]
    assert bits(torch.cat(pieces)) == bits(whole)


def test_the_fold_is_multiply_then_add_in_the_order_given() -> None:
    given_parts, weights = parts(4), [0.1, 0.7, 0.9, 0.3]
    total = sum(weights)
    folded = given_parts[0] * (weights[0] / total)
    for part, weight in zip(given_parts[1:], weights[1:], strict=True):
        folded = folded + part * (weight / total)
    assert bits(weighted_mean(given_parts, weights)) == bits(folded)
    backwards = weighted_mean(given_parts[::-1], weights[::-1])
    assert bits(backwards) != bits(folded)  # or the order would not need to be agreed upon


def test_one_part_is_itself() -> None:
    (part,) = parts(1)
    assert bits(weighted_mean([part], [17.0])) == bits(part)


@given(st.lists(st.floats(1e-300, 1e9), min_size=1, max_size=40), st.sampled_from([LARGEST, -LARGEST]))
def test_the_mean_of_finite_numbers_is_finite(weights: list[float], number: float) -> None:
    assert bool(torch.isfinite(weighted_mean([torch.full((3,), number)] * len(weights), weights)).all())


def test_rounding_up_at_the_edge_does_not_become_infinite() -> None:
    """Ten times fp32(1 / 10) is more than 1: members could otherwise use that to stop a reducer."""
    found = weighted_mean([torch.full((1,), LARGEST)] * 10, [1.0] * 10)
    assert float(found) == pytest.approx(LARGEST, rel=1e-5)


@pytest.mark.parametrize(
    ("count", "weights"),
    [(0, []), (2, [1.0]), (1, [1.0, 1.0]), (1, [0.0]), (2, [1.0, -1.0]), (1, [float("nan")]), (2, [1.0, float("inf")])],
)
def test_odd_weights_are_refused(count: int, weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        weighted_mean(parts(count, 3), weights)
