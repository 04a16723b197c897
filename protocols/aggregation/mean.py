"""Weighted mean of blocks, the same bits wherever it is computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocols.parts import TILE_ELEMS, Part

_LARGEST = torch.finfo(torch.float32).max


def weighted_mean(parts_GE: Sequence[Part], weights_G: Sequence[float], out_E: torch.Tensor | None = None) -> torch.Tensor:
    """sum_g w_g x_g / sum_g w_g, in the order given.

    The sum is folded member by member with separate multiply and add (no fused multiply-add) and normalised weights, so two reducers
    given the same parts in the same order produce the same bytes, on any machine with IEEE fp32. The mean of finite numbers is finite:
    normalised weights may add up to one unit in the last place above 1, and what that pushes past the largest number is cut back to it.

    A tile of the sum and one of a scaled part stay in a core's cache while all parts pass by. Parts that are still encoded are decoded
    there, and never as a whole; the mean is the same as that of their decoded blocks.

    Args:
        parts_GE: G vectors of E fp32 elements, or encoded blocks that a codec has opened.
        weights_G: G finite, positive weights (samples).
        out_E: where the mean goes, E contiguous fp32 elements that overlap no part; a new vector if None.

    Returns:
        The mean, E fp32 elements.

    Raises:
        ValueError: no parts, lengths that differ, or a weight that is not positive and finite.
    """
    if not parts_GE or len(parts_GE) != len(weights_G):
        raise ValueError("a mean needs as many weights as parts, and at least one")
    if not all(0.0 < weight < float("inf") for weight in weights_G):
        raise ValueError("weights must be positive and finite")
    elems = _elems(parts_GE[0])
    if elems < 0 or any(_elems(part) != elems for part in parts_GE):
        raise ValueError("the parts of a mean differ in length")
    total = sum(weights_G)
    result_E = torch.empty(elems) if out_E is None else out_E
    scratch_T = torch.empty(min(TILE_ELEMS, elems))
    for start in range(0, elems, TILE_ELEMS):
        tile = result_E[start : start + TILE_ELEMS]
        scaled = scratch_T[: tile.numel()]
        _scale(parts_GE[0], weights_G[0] / total, start, tile)
        for part, weight in zip(parts_GE[1:], weights_G[1:], strict=True):
            _scale(part, weight / total, start, scaled)
            tile.add_(scaled)
        tile.clamp_(-_LARGEST, _LARGEST)
    return result_E


def _elems(part: Part) -> int:
    """Its length; -1 for a tensor that is no vector."""
    if isinstance(part, torch.Tensor):
        return part.numel() if part.dim() == 1 else -1
    return part.elems


def _scale(part: Part, weight: float, start: int, out_T: torch.Tensor) -> None:
    """Write weight times a tile of a part."""
    if isinstance(part, torch.Tensor):
        torch.mul(part[start : start + TILE_ELEMS], weight, out=out_T)
    else:
        part.read(start, out_T)
        out_T.mul_(weight)
