"""Each rule's own properties: where clipped differences cancel, whom Krum takes, what medians and trimming leave, how buckets are cut."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.aggregation import AGGREGATOR_NAMES, Aggregated, aggregator_named, clip_factor, clipping
from protocols.aggregation.bucketing import buckets_of
from protocols.aggregation.mean import weighted_mean
from protocols.errors import ConfigError

SEED = bytes(range(32))
LARGEST = torch.finfo(torch.float32).max


def parts(count: int, elems: int = 300, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(elems, generator=generator) for _ in range(count)]


def clipped_mean_difference(given_parts: list[torch.Tensor], weights: list[float], found: Aggregated) -> float:
    """Its length as a part of the radius; what verification sums up, from scratch and in fp64."""
    sum_E = torch.zeros(given_parts[0].numel(), dtype=torch.float64)
    for part, weight in zip(given_parts, weights, strict=True):
        difference_E = part.double() - found.value_E.double()
        sum_E += weight * clip_factor(float(difference_E.norm()), found.radius) * difference_E
    return float(sum_E.norm()) / sum(weights) / found.radius


def test_centered_clip_of_the_paper() -> None:
    """Three zeros pull with v each, the ten with the radius: 3 v = 1."""
    found = aggregator_named("centered_clip", radius=1.0).aggregate([torch.zeros(1)] * 3 + [torch.full((1,), 10.0)], [1.0] * 4)
    assert float(found.value_E) == pytest.approx(1 / 3, rel=1e-6)
    assert (found.radius, found.converged) == (1.0, True)


@settings(deadline=None)
@given(
    st.integers(1, 12), st.sampled_from([1, 2, 50]), st.sampled_from([0.0, 0.1, 1.0, 1e3, 1e30, LARGEST]),
    st.sampled_from([{"radius": 1.0}, {"radius": 0.1}, {"radius": 20.0}, {}, {"factor": 0.1}]), st.integers(0, 2**32),
)  # fmt: skip
def test_clipped_differences_cancel(count: int, elems: int, blown_up: float, radius: dict[str, Any], seed: int) -> None:
    """Fewer than half of the parts are an attack; all weights are within a factor, so that they are less than half of the weight too."""
    given_parts = parts(count, elems, seed)
    attackers = (count - 1) // 3
    given_parts[:attackers] = [part.sign() * blown_up for part in given_parts[:attackers]]
    weights = [1.0 + 0.3 * (index % 2) for index in range(count)]
    found = aggregator_named("centered_clip", **radius).aggregate(given_parts, weights)
    assert found.converged
    assert bool(torch.isfinite(found.value_E).all())
    if found.radius > 0.0:
        assert clipped_mean_difference(given_parts, weights, found) < 2e-5  # fp32 rounds the value


def test_without_clipping_it_is_the_mean_bit_for_bit() -> None:
    weights = [3.0, 1.0, 4.0, 1.0, 5.0]
    found = aggregator_named("centered_clip", radius=1e6).aggregate(parts(5), weights)
    assert found.coefficients_G == tuple(weights)
    assert torch.equal(found.value_E, weighted_mean(parts(5), weights))
    two = aggregator_named("centered_clip").aggregate(parts(2), [1.0, 1.0])  # the observed radius leaves two alike alone
    assert two.coefficients_G == (1.0, 1.0)


@pytest.mark.parametrize("name", ["centered_clip", "geometric_median"])
def test_parts_that_most_agree_on_are_the_result(name: str) -> None:
    (agreed_E,) = parts(1)
    found = aggregator_named(name).aggregate([*[agreed_E] * 4, *parts(3, seed=1)], [1.0] * 7)
    assert torch.allclose(found.value_E, agreed_E, rtol=1e-6)
    assert (found.radius, found.converged, found.coefficients_G) == (0.0, True, (1.0,) * 4 + (0.0,) * 3)


def test_the_observed_radius_follows_the_spread_and_outliers_do_not_move_it() -> None:
    rule = aggregator_named("centered_clip")
    honest = parts(9, 2000)
    radius = rule.aggregate(honest, [1.0] * 9).radius
    assert radius == pytest.approx(math.sqrt(2 * 2000), rel=0.05)  # a distance between two of them
    assert rule.aggregate([part * 8.0 for part in honest], [1.0] * 9).radius == pytest.approx(8 * radius, rel=1e-9)
    attacked = [*honest, *[torch.full((2000,), 1e30)] * 7]
    assert rule.aggregate(attacked, [1.0] * 16).radius == pytest.approx(radius, rel=0.05)
    assert rule.aggregate(attacked, [1.0] * 9 + [1e6] * 7).radius == rule.aggregate(attacked, [1.0] * 16).radius  # claims do not count


def test_a_rule_that_stops_at_its_limit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    attacked = [*parts(5), *[torch.full((300,), 10.0)] * 2]
    rule = aggregator_named("centered_clip", factor=0.3)
    assert rule.aggregate(attacked, [1.0] * 7).converged
    monkeypatch.setattr(clipping, "MAX_ITERATIONS", 2)
    assert not rule.aggregate(attacked, [1.0] * 7).converged


def test_far_clusters_are_no_slow_walk() -> None:
    """Halves of the weight ten thousand radii apart: plain steps would need as many iterations."""
    near, far = [part * 1e-3 for part in parts(6, 3)], [part * 1e-3 + 5.0 for part in parts(6, 3, seed=1)]
    weights = [1.0 + index / 100 for index in range(12)]
    found = aggregator_named("centered_clip", radius=1e-3).aggregate([*near, *far], weights)
    assert found.converged
    assert float((found.value_E - 5.0).norm()) < 0.01  # where a little more of the weight is


def test_between_two_halves_newtons_method_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    halves = [*[part * 1e-2 for part in parts(6, 3)], *[part * 1e-2 + 5.0 for part in parts(6, 3, seed=1)]]
    rule = aggregator_named("centered_clip", radius=0.01)
    assert rule.aggregate(halves, [1.0] * 12).converged
    monkeypatch.setattr(clipping, "PLAIN_ITERATIONS", clipping.MAX_ITERATIONS)
    assert not rule.aggregate(halves, [1.0] * 12).converged


def test_huge_outliers_do_not_blur_where_to_start() -> None:
    line = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 1e30, 1e30])
    squares_GG = (line[:, None] - line[None, :]) ** 2
    assert clipping._start(squares_GG, np.ones(7), 0.1) == 2
    assert clipping._start(squares_GG, np.array([1.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0]), 0.1) == 4


def test_the_geometric_median_has_the_least_sum_of_distances() -> None:
    given_parts, weights = parts(7), [1.0, 2.0, 1.5, 1.0, 1.0, 0.5, 3.0]
    value_E = aggregator_named("geometric_median").aggregate(given_parts, weights).value_E

    def total(point_E: torch.Tensor) -> float:
        return sum(weight * float((part.double() - point_E).norm()) for part, weight in zip(given_parts, weights, strict=True))

    least = total(value_E.double())
    for shift_E in parts(20, seed=3):
        assert total(value_E.double() + 0.01 * shift_E.double()) > least
    line = [torch.tensor([float(place)]) for place in (0, 1, 5, 100, 1000)]
    assert float(aggregator_named("geometric_median").aggregate(line, [1.0] * 5).value_E) == pytest.approx(5.0, abs=0.1)


def test_krum_takes_the_part_whose_neighbours_are_near() -> None:
    """Seven parts, one byzantine: the four nearest count. Of 0, 1, 2, 3, 4, 5, 100 that takes 3 or 2, whose scores are the same."""
    line = [torch.tensor([float(place)]) for place in (100, 5, 4, 3, 2, 1, 0)]
    found = aggregator_named("krum", byzantine=1).aggregate(line, [2.0] * 7)
    assert found.coefficients_G == (0, 0, 0, 2.0, 0, 0, 0)
    assert float(found.value_E) == 3.0
    kept = aggregator_named("multi_krum", byzantine=1, keep=4).aggregate(line, [1.0, 1.0, 1.0, 1.0, 3.0, 1.0, 1.0])
    assert kept.coefficients_G == (0, 0, 1.0, 1.0, 3.0, 1.0, 0)
    assert float(kept.value_E) == pytest.approx((4 + 3 + 3 * 2 + 1) / 6)  # an average, by weight, and no sum


def test_krum_refuses_groups_too_small_for_its_guarantee_unless_told() -> None:
    with pytest.raises(ConfigError, match="needs 17 parts and has 16"):
        aggregator_named("krum", byzantine=7).aggregate(parts(16), [1.0] * 16)
    with pytest.raises(ConfigError, match="needs 10 parts and has 7"):
        aggregator_named("multi_krum", byzantine=2, keep=6).aggregate(parts(7), [1.0] * 7)
    waived = aggregator_named("krum", byzantine=7, waived=True).aggregate(parts(16), [1.0] * 16)
    assert waived.coefficients_G is not None
    assert sum(waived.coefficients_G) == 1.0
    with pytest.raises(ConfigError, match="needs 10 parts and has 9"):
        aggregator_named("krum", byzantine=7, waived=True).aggregate(parts(9), [1.0] * 9)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9))
def test_the_median_of_equal_weights_is_the_middle(numbers: list[float]) -> None:
    found = aggregator_named("coordinate_median").aggregate([torch.tensor([number]) for number in numbers], [0.1] * len(numbers))
    assert float(found.value_E) == pytest.approx(statistics.median(numbers), rel=1e-6)


def test_the_median_counts_weight() -> None:
    line = [torch.tensor([number]) for number in (3.0, 1.0, 2.0)]
    rule = aggregator_named("coordinate_median")
    assert float(rule.aggregate(line, [5.0, 1.0, 1.0]).value_E) == 3.0
    assert float(rule.aggregate(line, [2.0, 1.0, 1.0]).value_E) == 2.5


def test_trimming_cuts_both_ends_of_every_coordinate() -> None:
    rows = [torch.tensor([9.0, -5.0]), torch.tensor([1.0, 1.0]), torch.tensor([2.0, 7.0]), torch.tensor([4.0, 3.0])]
    assert aggregator_named("trimmed_mean", trim=1).aggregate(rows, [1.0, 1.0, 1.0, 3.0]).value_E.tolist() == [3.5, 2.5]
    with pytest.raises(ConfigError, match="needs 5 parts and has 4"):
        aggregator_named("trimmed_mean", trim=2).aggregate(rows, [1.0] * 4)


@given(st.integers(1, 40), st.integers(1, 7), st.binary(min_size=32, max_size=32))
def test_buckets_hold_every_part_once(count: int, size: int, seed: bytes) -> None:
    buckets = buckets_of(count, size, seed)
    assert sorted(index for bucket in buckets for index in bucket) == list(range(count))
    assert {len(bucket) for bucket in buckets[:-1]} <= {size}


def test_another_seed_cuts_other_buckets() -> None:
    assert buckets_of(16, 2, SEED) == buckets_of(16, 2, SEED)
    assert buckets_of(16, 2, SEED) != buckets_of(16, 2, bytes(32))


@pytest.mark.parametrize("name", ["centered_clip", "geometric_median", "coordinate_median"])
def test_bucketing_is_the_rule_on_means(name: str) -> None:
    given_parts, weights = parts(7), [1.0, 2.0, 1.5, 1.0, 1.0, 0.5, 3.0]
    buckets = buckets_of(7, 2, SEED)
    means = [weighted_mean([given_parts[i] for i in bucket], [weights[i] for i in bucket]) for bucket in buckets]
    expected_E = aggregator_named(name).aggregate(means, [sum(weights[i] for i in bucket) for bucket in buckets]).value_E
    found_E = aggregator_named(name, bucket=2, seed=SEED).aggregate(given_parts, weights).value_E
    assert torch.allclose(found_E, expected_E, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "chosen", "sentence"),
    [
        ("median", {}, "no aggregator 'median'"),
        ("mean", {"radius": 1.0}, "knows none"),
        ("centered_clip", {"tau": 1.0}, "no setting tau"),
        ("centered_clip", {"radius": 0.0}, "above 0"),
        ("centered_clip", {"radius": math.nan}, "above 0"),
        ("centered_clip", {"factor": math.inf}, "above 0"),
        ("centered_clip", {"radius": "1"}, "takes float"),
        ("geometric_median", {"smoothing": 0}, "smoothing"),
        ("krum", {}, "needs byzantine"),
        ("krum", {"byzantine": 1.5}, "takes int"),
        ("krum", {"byzantine": True}, "takes int"),
        ("krum", {"byzantine": -1}, "at least 0"),
        ("krum", {"byzantine": 1, "waived": 1}, "takes bool"),
        ("multi_krum", {"byzantine": 1, "keep": 0}, "keep"),
        ("trimmed_mean", {"trim": -1}, "trim"),
        ("mean", {"bucket": 0}, "bucket"),
        ("mean", {"bucket": 2}, "seed of 32"),
        ("mean", {"bucket": 2, "seed": b"short"}, "seed of 32"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(name: str, chosen: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        aggregator_named(name, **chosen)


def test_every_rule_that_needs_nothing_is_built_by_name_alone() -> None:
    alone = [name for name in AGGREGATOR_NAMES if name not in {"krum", "multi_krum", "trimmed_mean"}]
    assert [aggregator_named(name).name for name in alone] == alone
    assert [name for name in alone if aggregator_named(name).vanishing] == ["mean", "centered_clip"]


@pytest.mark.parametrize(("distance", "radius", "factor"), [(0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (4.0, 1.0, 0.25), (1.0, math.inf, 1.0)])
def test_a_difference_is_clipped_to_the_radius(distance: float, radius: float, factor: float) -> None:
    assert clip_factor(distance, radius) == factor


def test_a_tiny_weight_keeps_its_digits() -> None:
    """A huge part that is clipped short weighs less than the least normal fp32 number, and must still pull with its share."""
    found = weighted_mean([torch.full((1,), LARGEST), torch.zeros(1)], [1.2345678e-42, 1.0])
    assert float(found) == pytest.approx(1.2345678e-42 * LARGEST, rel=1e-6)
