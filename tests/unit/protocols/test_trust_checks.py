"""Figures in a direction that nobody foresaw: honest results pass whatever the codec and rule, false ones do not (papers.md B.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.aggregation import aggregator_named
from protocols.aggregation.mean import weighted_mean
from protocols.codecs import CODEC_NAMES, codec_named
from protocols.ids import BlockIndex
from protocols.parts import TILE_ELEMS, Part
from protocols.trust.checks import (
    BlockFacts,
    Direction,
    Figures,
    block_norm,
    codec_error,
    doubt_differs,
    doubts,
    drawn_block,
    figures_differ,
    figures_of,
    reductions_differ,
    residual,
    suspicious,
    tolerance,
    unverifiable,
)

COIN, BLOCK = b"c" * 32, BlockIndex(3)
G, E = 16, 2000


def coin_of(number: int) -> bytes:
    return number.to_bytes(4, "little") * 8


def parts_of(elems: int = E, scale: float = 1.0, seed: int = 0, count: int = G) -> list[torch.Tensor]:
    """As gradients: half of their norm is common to all."""
    generator = torch.Generator().manual_seed(seed)
    common_E = 0.5 * torch.randn(elems, generator=generator)
    return [scale * (common_E + torch.randn(elems, generator=generator)) for _ in range(count)]


@dataclass
class Reduced:
    """A block as everybody sees it: parts through the codec, the aggregate through the codec as well."""

    parts_GE: list[Part]
    value_E: torch.Tensor
    radius: float
    weights_G: tuple[float, ...]
    codec: str
    clipped: bool

    @property
    def facts(self) -> BlockFacts:
        return BlockFacts(
            self.weights_G, self.radius, block_norm(self.value_E), codec_error(codec_named(self.codec), self.value_E), self.clipped
        )

    def figures(self, coin: bytes = COIN) -> list[Figures]:
        return [figures_of(part_E, self.value_E, coin, BLOCK) for part_E in self.parts_GE]

    def suspicious(self, coin: bytes = COIN) -> bool:
        return suspicious(self.figures(coin), self.facts)


def reduced(raw_GE: Sequence[torch.Tensor], rule: str = "centered_clip", codec: str = "fp32", weights: Sequence[float] = ()) -> Reduced:
    how = codec_named(codec)
    elems = raw_GE[0].numel()
    parts_GE = [how.open(bytes(how.encode(part_E)), elems) for part_E in raw_GE]
    weights_G = tuple(weights) or (1.0,) * len(parts_GE)
    aggregated = aggregator_named(rule).aggregate(parts_GE, weights_G)
    value_E = how.decode(bytes(how.encode(aggregated.value_E)), elems)
    return Reduced(parts_GE, value_E, aggregated.radius or 1e-30, weights_G, codec, rule == "centered_clip")


every_rule = pytest.mark.parametrize("rule", ["mean", "centered_clip"])


@every_rule
@pytest.mark.parametrize("codec", CODEC_NAMES)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_an_honest_result_is_in_order(rule: str, codec: str, scale: float) -> None:
    if codec in ("fp16", "bf16") or "int" in codec or codec == "e3m0":
        scale = min(max(scale, 1e-3), 1e3)  # what half precision can hold
    for seed in range(4):
        weights = [1.0 + number % 3 for number in range(G)]
        block = reduced(parts_of(scale=scale, seed=seed), rule, codec, weights)
        assert not any(block.suspicious(bytes([number]) * 32) for number in range(16)), seed


@every_rule
@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_an_honest_result_of_a_large_block_is_in_order(rule: str, codec: str) -> None:
    block = reduced(parts_of(elems=2**20 + 77, count=4), rule, codec)
    assert not any(block.suspicious(bytes([number]) * 32) for number in range(2))


@every_rule
def test_an_honest_result_among_liars_is_in_order(rule: str) -> None:
    """What seven of sixteen send may be anything: the aggregate is one all the same."""
    raw_GE = parts_of()
    for outlier in range(7):
        raw_GE[outlier] = -1000.0 * raw_GE[outlier]
    block = reduced(raw_GE, rule)
    assert not any(block.suspicious(bytes([number]) * 32) for number in range(16))


@every_rule
def test_honest_figures_leave_next_to_nothing(rule: str) -> None:
    """papers.md B.3: at most 1e-5 for a direction of norm 1. Ours has a norm of sqrt(E)."""
    worst = 0.0
    for seed in range(8):
        block = reduced(parts_of(seed=seed), rule)
        worst = max(worst, residual(block.figures(), block.facts) * G / math.sqrt(E))
    assert worst < 1e-5


def test_tampering_leaves_what_was_published() -> None:
    """Residuals of one falsified result, in directions of norm 1, summed over 16 members (papers.md B.3, tol for verification 2)."""
    block = reduced(parts_of())
    generator = torch.Generator().manual_seed(1)
    published = {1e-4: 5e-5, 1e-3: 6e-4, 1e-2: 5e-3, 1e-1: 4e-2}
    medians, first_percentile = {}, {}
    for relative in published:
        found = []
        for number in range(300):
            noise_E = torch.randn(E, generator=generator)
            error_E = noise_E * (relative * block_norm(block.value_E) / block_norm(noise_E))
            found.append(abs(Direction(coin_of(number), BLOCK, E).project(0, error_E)) * G / math.sqrt(E) / block_norm(block.value_E))
        found.sort()
        medians[relative], first_percentile[relative] = found[150], found[3]
    # Published figures are for results of some norm; ours is 1 here, so orders of magnitude are what can agree.
    ratios = [medians[relative] / published[relative] for relative in published]
    assert max(ratios) / min(ratios) < 1.6
    assert 0.01 < first_percentile[1e-2] / medians[1e-2] < 0.1


@pytest.mark.parametrize(("relative", "least"), [(1e-1, 0.995), (1e-2, 0.99), (1e-3, 0.95), (1e-4, 0.5)])
def test_tampering_is_seen(relative: float, least: float) -> None:
    """Errors are far above what an honest result leaves, unless they happen to be almost orthogonal to the direction."""
    block = reduced(parts_of())
    honest_E = block.value_E
    generator = torch.Generator().manual_seed(2)
    seen = 0
    for number in range(200):
        noise_E = torch.randn(E, generator=generator)
        block.value_E = honest_E + noise_E * (relative * block_norm(honest_E) / block_norm(noise_E))
        seen += block.suspicious(coin_of(number))
    assert seen / 200 >= least


def test_an_error_in_one_element_is_seen_in_every_direction() -> None:
    block = reduced(parts_of())
    block.value_E = block.value_E.clone()
    block.value_E[7] += 0.01 * block_norm(block.value_E)
    assert all(block.suspicious(coin_of(number)) for number in range(50))


def test_what_a_codec_may_change_cannot_be_seen_and_more_can() -> None:
    block = reduced(parts_of(), "mean", "int8")
    honest_E = block.value_E
    step_E = torch.sign(torch.randn(E, generator=torch.Generator().manual_seed(3)))
    worst = codec_named("int8").worst_error(honest_E)
    for times, seen in ((0.05, False), (400.0, True)):
        block.value_E = honest_E + times * worst * step_E
        found = [block.suspicious(coin_of(number)) for number in range(40)]
        assert sum(found) >= 36 if seen else not any(found), times


@pytest.mark.parametrize("radius", [1e-30, 1e-6, 0.2, 4.0, 1e6, math.inf])
def test_a_reducer_cannot_choose_the_radius(radius: float) -> None:
    """So short that nothing of a sum is left, or so long that nothing is clipped, in units of what was observed."""
    block = reduced(parts_of())
    block.radius *= radius
    assert all(block.suspicious(coin_of(number)) for number in range(10))
    block.value_E = -2.0 * block.value_E
    assert all(block.suspicious(coin_of(number)) for number in range(10))


@settings(derandomize=True, max_examples=60)
@given(st.integers(1, 12), st.data())
def test_whatever_parts_there_are_their_radius_fits(count: int, data: st.DataObject) -> None:
    scales = [data.draw(st.sampled_from([0.0, 1.0, 1.0, 1.0, -1.0, 3.0, 1000.0])) for _ in range(count)]
    raw_GE = [scale * part_E for scale, part_E in zip(scales, parts_of(elems=200, count=count), strict=True)]
    assert not reduced(raw_GE).suspicious()


# Odd blocks


@pytest.mark.parametrize("rule", ["mean", "centered_clip"])
def test_blocks_of_zeros_equal_parts_and_one_contributor_are_in_order(rule: str) -> None:
    for raw_GE in ([torch.zeros(E)] * G, [parts_of()[0]] * G, [parts_of()[0]], [torch.zeros(E)]):
        assert not reduced(raw_GE, rule).suspicious()


@pytest.mark.parametrize("rule", ["mean", "centered_clip"])
def test_a_false_result_of_zeros_or_of_one_contributor_is_seen(rule: str) -> None:
    for raw_GE in ([torch.zeros(E)] * G, [parts_of()[0]]):
        block = reduced(raw_GE, rule)
        block.value_E = block.value_E + 0.001 * torch.ones(E)
        seen = sum(block.suspicious(coin_of(number)) for number in range(40))
        assert seen >= 36


def test_an_empty_block_is_in_order() -> None:
    empty = torch.empty(0)
    figures = [figures_of(empty, empty, COIN, BLOCK)] * 3
    assert figures[0] == Figures(0.0, 0.0, 0.0)
    assert block_norm(empty) == 0.0
    assert not suspicious(figures, BlockFacts((1.0,) * 3, math.inf, 0.0, codec_error(codec_named("int8"), empty)))


@pytest.mark.parametrize("scale", [1e30, 3e37])
def test_huge_parts_have_finite_figures(scale: float) -> None:
    """Their squares do not fit fp32."""
    raw_GE = [scale * part_E / part_E.abs().max() for part_E in parts_of(elems=TILE_ELEMS + 5, count=3)]
    block = reduced(raw_GE, "mean")
    figures = block.figures()
    assert all(math.isfinite(value) for item in figures for value in (item.projection, item.distance, item.length))
    assert figures[0].length == pytest.approx(float(torch.linalg.vector_norm(raw_GE[0].double())), rel=1e-6)
    assert not block.suspicious()


def test_wide_figures_are_those_of_the_same_parts_made_small() -> None:
    raw_GE = parts_of(elems=TILE_ELEMS + 5, count=2)
    small, huge = (figures_of(s * raw_GE[0], s * raw_GE[1], COIN, BLOCK) for s in (1.0, 2.0**110))
    assert huge.projection / 2.0**110 == pytest.approx(small.projection, rel=1e-5)
    assert huge.distance / 2.0**110 == pytest.approx(small.distance, rel=1e-5)
    assert huge.length / 2.0**110 == pytest.approx(small.length, rel=0.01)  # estimated where squares fit


# Directions


def signs(coin: bytes = COIN, block: BlockIndex = BLOCK, elems: int = 9000) -> torch.Tensor:
    """z itself, from its products with the vectors of the standard basis."""
    direction = Direction(coin, block, elems)
    starts = range(0, elems, 4096)
    return torch.cat([torch.tensor(_row(direction, start, min(4096, elems - start))) for start in starts])


def _row(direction: Direction, start: int, count: int) -> list[float]:
    return [direction.project(start, unit_S) for unit_S in torch.eye(count)]


def test_a_direction_is_of_signs_and_of_one_coin_and_block() -> None:
    one_E = signs()
    assert set(one_E.tolist()) == {-1.0, 1.0}
    assert torch.equal(one_E, signs())
    for other_E in (signs(b"d" * 32), signs(block=BlockIndex(4))):
        assert abs(float(torch.dot(one_E[:4096], other_E[:4096]))) < 6 * math.sqrt(4096)
        assert not torch.equal(one_E, other_E)


def test_stretches_add_up_to_the_whole() -> None:
    elems = 3 * 2**15 + 77
    direction, vector_E = Direction(COIN, BLOCK, elems), parts_of(elems, count=1)[0]
    whole = direction.project(0, vector_E)
    pieces = math.fsum(direction.project(start, vector_E[start : start + 2**15]) for start in range(0, elems, 2**15))
    assert pieces == pytest.approx(whole, abs=1e-5 * block_norm(vector_E))


def test_a_projection_is_about_a_norm_and_never_more_than_eight() -> None:
    for elems in (50, 4096, 50_000):
        vector_E = parts_of(elems, count=1)[0]
        found = [Direction(coin_of(number), BLOCK, elems).project(0, vector_E) / block_norm(vector_E) for number in range(300)]
        assert max(map(abs, found)) < 8
        assert 0.8 < math.sqrt(sum(value**2 for value in found) / 300) < 1.2
        assert sum(abs(value) > 0.1 for value in found) > 255


# Verifications 1 and 3


def test_figures_that_are_said_are_those_of_the_part() -> None:
    block = reduced(parts_of())
    found = block.figures()[0]
    assert not figures_differ(found, found)
    close = Figures(found.projection + 2e-5 * found.distance, found.distance * (1 + 2e-5))
    assert not figures_differ(close, found)
    for false in (Figures(found.projection + 0.01 * found.distance, found.distance), Figures(found.projection, found.distance * 1.01)):
        assert figures_differ(false, found)
        assert figures_differ(false, found, margin=2.0)
    edge = Figures(found.projection, found.distance * (1 + 1.5e-4))
    assert figures_differ(edge, found)
    assert not figures_differ(edge, found, margin=2.0)
    assert figures_differ(Figures(1.0, 0.0), Figures(0.0, 0.0))


def test_sums_in_another_order_are_the_same_figures() -> None:
    """Machines add up in different orders; that is far below what is allowed."""
    part_E, result_E = parts_of(elems=2**20 + 9, count=2)
    found = figures_of(part_E, result_E, COIN, BLOCK)
    difference_E = part_E - result_E
    again = Direction(COIN, BLOCK, difference_E.numel()).project(0, difference_E)
    exact = Figures(again, float(torch.linalg.vector_norm(difference_E.double())))
    assert abs(found.projection - exact.projection) < 1e-5 * exact.distance
    assert not figures_differ(found, exact)


def test_who_is_closer_to_nothing_than_to_the_result_doubts_it() -> None:
    assert not doubts(1.0, 1.0)
    assert doubts(1.0001, 1.0)
    assert not doubts(0.0, 0.0)
    block = reduced(parts_of())
    assert not any(doubts(item.distance, item.length) for item in block.figures())
    block.value_E = -block.value_E
    assert all(doubts(item.distance, item.length) for item in block.figures())


def test_a_false_doubt_is_one_where_it_is_clear() -> None:
    far, near, edge = Figures(0.0, 2.0, 1.0), Figures(0.0, 0.5, 1.0), Figures(0.0, 1.0005, 1.0)
    assert doubt_differs(False, far)
    assert not doubt_differs(True, far)
    assert doubt_differs(True, near)
    assert not doubt_differs(False, near)
    assert not doubt_differs(True, edge)
    assert not doubt_differs(False, edge)
    clear = Figures(0.0, 1.0015, 1.0)
    assert doubt_differs(False, clear)
    assert not doubt_differs(False, clear, margin=2.0)


def test_a_false_reduction_is_one_and_an_honest_one_is_not() -> None:
    for codec in ("fp32", "int8"):
        block = reduced(parts_of(), "mean", codec)
        spread = max(item.distance for item in block.figures())
        again_E = weighted_mean(list(reversed(block.parts_GE)), list(block.weights_G))
        how = codec_named(codec)
        again_E = how.decode(bytes(how.encode(again_E)), E)
        assert not reductions_differ(block.value_E, again_E, block.facts, spread)
        lie_E = block.value_E + 0.5 * block_norm(block.value_E) / math.sqrt(E) * torch.ones(E)
        assert reductions_differ(lie_E, again_E, block.facts, spread)
    assert not reductions_differ(torch.empty(0), torch.empty(0), BlockFacts((1.0,), math.inf, 0.0, 0.0), 0.0)


def test_an_infinite_radius_clips_nothing_and_a_small_one_everything() -> None:
    figures = [Figures(3.0, 10.0), Figures(-3.0, 1.0)]
    wide, narrow = (BlockFacts((1.0, 1.0), radius, 1.0, 0.0) for radius in (math.inf, 1.0))
    assert residual(figures, wide) == 0.0
    assert residual(figures, narrow) == pytest.approx((3.0 - 0.3) / 2)
    assert tolerance(figures, narrow) < tolerance(figures, wide)


def test_blocks_whose_sums_cannot_vanish() -> None:
    contributors = {BlockIndex(2): (0, 1), BlockIndex(0): (0, 2), BlockIndex(1): ()}
    assert unverifiable(contributors, frozenset({0, 1})) == (BlockIndex(0),)
    assert unverifiable(contributors, frozenset()) == (BlockIndex(0), BlockIndex(2))
    assert unverifiable(contributors, frozenset({0, 1, 2})) == ()


def test_each_block_is_drawn_as_often_as_any_other() -> None:
    blocks = [BlockIndex(number) for number in (1, 4, 6, 9)]
    drawn = [drawn_block(coin_of(number), blocks) for number in range(2000)]
    assert all(400 < drawn.count(block) < 600 for block in blocks)
    assert drawn_block(COIN, blocks[:1]) == 1


# Huge numbers


@pytest.mark.parametrize("codec", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("huge", [1e4, 1e18, 1e30, 3e38])
def test_one_huge_element_does_not_make_a_false_block_tolerable(codec: str, huge: float) -> None:
    """Neither by a norm that does not fit fp32, nor by an error that a codec might have made of it."""
    honest = reduced(parts_of(elems=2**16), codec=codec)
    false_E = honest.value_E.clone()
    false_E[7] = huge
    how = codec_named(codec)
    false_E = how.decode(how.encode(false_E), false_E.numel())
    facts = BlockFacts((1.0,), math.inf, block_norm(honest.value_E), codec_error(how, honest.value_E))
    assert math.isfinite(block_norm(false_E))
    assert reductions_differ(false_E, honest.value_E, facts, honest.radius)
    assert not reductions_differ(honest.value_E, honest.value_E, facts, honest.radius)
    honest.value_E = false_E
    assert honest.suspicious()


@pytest.mark.parametrize("lie", [Figures(1.7e308, 1.0), Figures(-1.7e308, 1.0), Figures(0.0, 1.7e308)])
def test_figures_whose_sum_overflows_are_suspicious_and_false(lie: Figures) -> None:
    """Of several liars: one alone overflows nothing."""
    block = reduced(parts_of())
    figures = block.figures()
    for radius in (block.radius, math.inf):
        block.radius = radius
        assert suspicious([lie, lie, *figures[2:]], block.facts)
    assert figures_differ(lie, figures[0])
