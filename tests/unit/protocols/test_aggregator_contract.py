"""What every aggregator has to do, whichever rule it follows."""

from __future__ import annotations

import math

import pytest
import torch

from protocols.aggregation import AGGREGATOR_NAMES, Aggregator, NonFinitePart, aggregator_named
from protocols.aggregation.mean import weighted_mean
from protocols.codecs import codec_named
from protocols.parts import TILE_ELEMS, Part

SEED = bytes(range(32))
RULES: dict[str, Aggregator] = {
    "mean": aggregator_named("mean"),
    "centered_clip": aggregator_named("centered_clip"),
    "centered_clip 5": aggregator_named("centered_clip", radius=5.0),
    "geometric_median": aggregator_named("geometric_median"),
    "coordinate_median": aggregator_named("coordinate_median"),
    "trimmed_mean": aggregator_named("trimmed_mean", trim=3),
    "krum": aggregator_named("krum", byzantine=3),
    "multi_krum": aggregator_named("multi_krum", byzantine=3, keep=4),
    "bucketed mean": aggregator_named("mean", bucket=2, seed=SEED),
    "bucketed centered_clip": aggregator_named("centered_clip", bucket=2, seed=SEED),
    "bucketed coordinate_median": aggregator_named("coordinate_median", bucket=2, seed=SEED),
}
BUCKETED = {name for name in RULES if name.startswith("bucketed")}
ROBUST = sorted(set(RULES) - BUCKETED - {"mean"})
SCALED = sorted(set(RULES) - {"centered_clip 5"})
ELEMS = 400
WEIGHTS = [1.0, 2.0, 1.0, 0.5, 1.5, 1.0, 2.0, 1.0, 1.0, 1.25]

every_rule = pytest.mark.parametrize("name", RULES)


def parts(elems: int = ELEMS, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(elems, generator=generator) for _ in WEIGHTS]


def value(name: str, given_parts: list[torch.Tensor], weights: list[float] = WEIGHTS) -> torch.Tensor:
    return RULES[name].aggregate(given_parts, weights).value_E


def test_every_rule_is_here() -> None:
    assert {rule.name.removeprefix("bucketed_") for rule in RULES.values()} == set(AGGREGATOR_NAMES)


@every_rule
def test_it_is_deterministic_and_leaves_the_parts_alone(name: str) -> None:
    given_parts = parts()
    first, second = (RULES[name].aggregate([part.clone() for part in given_parts], WEIGHTS) for _ in range(2))
    RULES[name].aggregate(given_parts, WEIGHTS)
    assert first.value_E.numpy().tobytes() == second.value_E.numpy().tobytes()
    assert (first.coefficients_G, first.radius, first.converged) == (second.coefficients_G, second.radius, True)
    assert all(torch.equal(part, before) for part, before in zip(given_parts, parts(), strict=True))


@every_rule
def test_coefficients_are_the_value_bit_for_bit(name: str) -> None:
    found = RULES[name].aggregate(parts(), WEIGHTS)
    if found.coefficients_G is None:
        assert "median" in name or "trimmed" in name
        return
    taken = [(part, coefficient) for part, coefficient in zip(parts(), found.coefficients_G, strict=True) if coefficient > 0.0]
    again_E = weighted_mean([part for part, _ in taken], [coefficient for _, coefficient in taken])
    assert again_E.numpy().tobytes() == found.value_E.numpy().tobytes()


@every_rule
def test_it_writes_where_it_is_told(name: str) -> None:
    out_E = torch.full((ELEMS,), math.nan)
    found = RULES[name].aggregate(parts(), WEIGHTS, out_E)
    assert found.value_E is out_E
    assert torch.equal(out_E, value(name, parts()))


@pytest.mark.parametrize("name", sorted(set(RULES) - BUCKETED))
def test_the_order_of_parts_does_not_matter_but_for_rounding(name: str) -> None:
    order = [3, 7, 0, 9, 1, 8, 2, 6, 5, 4]
    permuted_E = value(name, [parts()[index] for index in order], [WEIGHTS[index] for index in order])
    assert torch.allclose(permuted_E, value(name, parts()), atol=1e-5)


@every_rule
def test_a_shift_of_all_parts_shifts_the_result(name: str) -> None:
    shift_E = 10.0 * parts(seed=1)[0]
    assert torch.allclose(value(name, [part + shift_E for part in parts()]), value(name, parts()) + shift_E, atol=5e-5)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("factor", [1e-12, -1.0, 1e3, 1e20])
def test_a_multiple_of_all_parts_multiplies_the_result(name: str, factor: float) -> None:
    assert torch.allclose(value(name, [part * factor for part in parts()]) / factor, value(name, parts()), atol=1e-5)


@every_rule
def test_a_multiple_of_all_weights_changes_nothing(name: str) -> None:
    assert torch.allclose(value(name, parts(), [7.0 * weight for weight in WEIGHTS]), value(name, parts()), atol=1e-5)


@every_rule
def test_parts_that_are_all_equal_are_the_result(name: str) -> None:
    for part in (parts()[0], torch.zeros(ELEMS), torch.full((ELEMS,), torch.finfo(torch.float32).max)):
        assert torch.allclose(value(name, [part] * len(WEIGHTS)), part, rtol=1e-6)


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("outlier", [50.0, 1e6, 1e30, -torch.finfo(torch.float32).max])
@pytest.mark.parametrize("alike", [True, False])
def test_three_outliers_of_ten_do_not_carry_it_away(name: str, outlier: float, *, alike: bool) -> None:
    honest = parts()[3:]
    attack = [torch.full((ELEMS,), outlier) if alike else torch.sign(part) * outlier for part in parts(seed=2)[:3]]
    honest_E = torch.stack(honest).mean(0)
    spread = max(float((part - honest_E).norm()) for part in honest)
    assert float((value(name, attack + honest, [1.0] * 10) - honest_E).norm()) <= 1.5 * spread


def test_one_outlier_carries_the_mean_away() -> None:
    assert float(value("mean", [torch.full((ELEMS,), 1e6), *parts()[1:]]).min()) > 1e4  # or the test above would not mean much


@pytest.mark.parametrize(("codec_name", "elems"), [("int8", 1), ("bf16", 700), ("int8", TILE_ELEMS + 40_000)])
@every_rule
def test_encoded_parts_are_their_decoded_selves(name: str, codec_name: str, elems: int) -> None:
    codec = codec_named(codec_name)
    encoded: list[Part] = [codec.open(codec.encode(part), elems) for part in parts(elems)]
    decoded: list[Part] = []
    for block in encoded:
        assert not isinstance(block, torch.Tensor)
        decoded.append(torch.cat([_read(block, start, min(TILE_ELEMS, elems - start)) for start in range(0, elems, TILE_ELEMS)]))
    mixed = [*encoded[:5], *decoded[5:]]
    expected = RULES[name].aggregate(decoded, WEIGHTS)
    for given_parts in (encoded, mixed):
        found = RULES[name].aggregate(given_parts, WEIGHTS)
        assert torch.equal(found.value_E, expected.value_E)
        assert (found.coefficients_G, found.radius) == (expected.coefficients_G, expected.radius)


def _read(block: Part, start: int, count: int) -> torch.Tensor:
    assert not isinstance(block, torch.Tensor)
    tile_T = torch.empty(count)
    block.read(start, tile_T)
    return tile_T


@every_rule
@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", [0, ELEMS - 1])
def test_what_is_no_finite_number_is_refused_and_named(name: str, number: float, place: int) -> None:
    given_parts = parts()
    given_parts[6][place] = number
    with pytest.raises(NonFinitePart, match="part 6 ") as refused:
        RULES[name].aggregate(given_parts, WEIGHTS)
    assert refused.value.part == 6


@every_rule
def test_odd_weights_and_lengths_are_refused(name: str) -> None:
    for weights in ([], [*WEIGHTS[:-1], 0.0], [*WEIGHTS[:-1], math.nan], WEIGHTS[:-1]):
        with pytest.raises(ValueError, match="weights"):
            RULES[name].aggregate(parts(), weights)
    with pytest.raises(ValueError, match="length"):
        RULES[name].aggregate([*parts()[:-1], torch.zeros(ELEMS + 1)], WEIGHTS)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["mean", "centered_clip", "geometric_median", "coordinate_median"])
def test_one_part_is_itself_and_two_meet_in_the_middle(name: str, count: int) -> None:
    given_parts = parts()[:count]
    found = RULES[name].aggregate(given_parts, [1.0] * count)
    assert found.converged
    if count == 1 or name != "geometric_median":  # between two, every point of the line has the same sum of distances
        assert torch.allclose(found.value_E, torch.stack(given_parts).mean(0), atol=1e-6)
