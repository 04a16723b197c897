"""Weighted mean of blocks, the same bits wherever it is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from protocols.aggregation.base import Aggregated, Aggregator, NonFinitePart
from protocols.parts import TILE_ELEMS, Part, read_part

_LARGEST = torch.finfo(torch.float32).max
_SMALL = 2.0**-100
_SHIFT = 2.0**64


def weighted_mean(parts_GE: Sequence[Part], weights_G: Sequence[float], out_E: torch.Tensor | None = None) -> torch.Tensor:
    """sum_g w_g x_g / sum_g w_g, in the order given.

    The sum is folded member by member with separate multiply and add (no fused multiply-add) and normalised weights, so two reducers
    given the same parts in the same order produce the same bytes, on any machine with IEEE fp32. The mean of finite numbers is finite:
    normalised weights may add up to one unit in the last place above 1, and what that pushes past the largest number is cut back to it.

    A tile of the sum and one of a scaled part stay in a core's cache while all parts pass by. Parts that are still encoded are decoded
    there, and never as a whole; the mean is the same as that of their decoded blocks.

    A normalised weight below 2^-100, that of a huge part clipped short, is applied in two steps, or fp32 would lose its digits.

    Args:
        parts_GE: G vectors of E fp32 elements, or encoded blocks that a codec has opened.
        weights_G: G finite, positive weights (samples).
        out_E: where the mean goes, E contiguous fp32 elements that overlap no part; a new vector if None.

    Returns:
        The mean, E fp32 elements.

    Raises:
        ValueError: no parts, lengths that differ, or a weight that is not positive and finite.
    """
    elems = common_elems(parts_GE, weights_G)
    result_E = torch.empty(elems) if out_E is None else out_E
    _fold(parts_GE, weights_G, result_E)
    return result_E


class Mean(Aggregator):
    """The weighted mean: no defence, least error among honest senders."""

    name = "mean"
    vanishing = True

    def aggregate(self, parts_GE: Sequence[Part], weights_G: Sequence[float], out_E: torch.Tensor | None = None) -> Aggregated:
        """See `Aggregator.aggregate`."""
        elems = common_elems(parts_GE, weights_G)
        result_E = torch.empty(elems) if out_E is None else out_E
        if not _fold(parts_GE, weights_G, result_E):
            refuse_non_finite(parts_GE)
        return Aggregated(result_E, tuple(weights_G), math.inf, converged=True)


def common_elems(parts_GE: Sequence[Part], weights_G: Sequence[float]) -> int:
    """The parts' length.

    Raises:
        ValueError: no parts, lengths that differ, or a weight that is not positive and finite.
    """
    if not parts_GE or len(parts_GE) != len(weights_G):
        raise ValueError("a mean needs as many weights as parts, and at least one")
    if not all(0.0 < weight < math.inf for weight in weights_G):
        raise ValueError("weights must be positive and finite")
    elems = _elems(parts_GE[0])
    if elems < 0 or any(_elems(part) != elems for part in parts_GE):
        raise ValueError("the parts of a mean differ in length")
    return elems


def refuse_non_finite(parts_GE: Sequence[Part]) -> None:
    """Look through all parts.

    Raises:
        NonFinitePart: the first that holds an infinity or no number.
    """
    elems = _elems(parts_GE[0])
    tile_T = torch.empty(min(TILE_ELEMS, elems))
    for index, part in enumerate(parts_GE):
        for start in range(0, elems, TILE_ELEMS):
            tile = tile_T[: min(TILE_ELEMS, elems - start)]
            read_part(part, start, tile)
            if not is_finite(tile):
                raise NonFinitePart(index)


def is_finite(tile_T: torch.Tensor) -> bool:
    """Whether all elements are finite numbers, in one pass: no number at all spreads into both ends."""
    least, most = torch.aminmax(tile_T)
    return math.isfinite(least) and math.isfinite(most)


def _fold(parts_GE: Sequence[Part], weights_G: Sequence[float], result_E: torch.Tensor) -> bool:
    """Write the weighted mean; False if that met infinities or no numbers, which all-finite parts cause at most by rounding."""
    elems, total, finite = result_E.numel(), sum(weights_G), True
    scratch_T = torch.empty(min(TILE_ELEMS, elems))
    for start in range(0, elems, TILE_ELEMS):
        tile = result_E[start : start + TILE_ELEMS]
        scaled = scratch_T[: tile.numel()]
        _scale(parts_GE[0], weights_G[0] / total, start, tile)
        for part, weight in zip(parts_GE[1:], weights_G[1:], strict=True):
            _scale(part, weight / total, start, scaled)
            tile.add_(scaled)
        finite = is_finite(tile) and finite
        tile.clamp_(-_LARGEST, _LARGEST)
    return finite


def _elems(part: Part) -> int:
    """Its length; -1 for a tensor that is no vector."""
    if isinstance(part, torch.Tensor):
        return part.numel() if part.dim() == 1 else -1
    return part.elems


def _scale(part: Part, weight: float, start: int, out_T: torch.Tensor) -> None:
    """Write weight times a tile of a part."""
    first, second = (weight, None) if weight >= _SMALL else (1.0 / _SHIFT, weight * _SHIFT)
    if isinstance(part, torch.Tensor):
        torch.mul(part[start : start + TILE_ELEMS], first, out=out_T)
    else:
        part.read(start, out_T)
        out_T.mul_(first)
    if second is not None:
        out_T.mul_(second)
