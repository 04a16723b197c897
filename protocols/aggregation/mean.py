"""Weighted mean of blocks, the same bits wherever it is computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_LARGEST = torch.finfo(torch.float32).max
_TILE_ELEMS = 2**16
"""Elements folded at a time: a tile of the sum and one of a scaled part stay in a core's cache while all parts pass by."""


def weighted_mean(parts_GE: Sequence[torch.Tensor], weights_G: Sequence[float], out_E: torch.Tensor | None = None) -> torch.Tensor:
    """sum_g w_g x_g / sum_g w_g, in the order given.

    The sum is folded member by member with separate multiply and add (no fused multiply-add) and normalised weights, so two reducers
    given the same parts in the same order produce the same bytes, on any machine with IEEE fp32. The mean of finite numbers is finite:
    normalised weights may add up to one unit in the last place above 1, and what that pushes past the largest number is cut back to it.

    Args:
        parts_GE: G vectors of E fp32 elements.
        weights_G: G finite, positive weights (samples).
        out_E: where the mean goes, E fp32 elements that overlap no part; a new vector if None.

    Returns:
        The mean, E fp32 elements.

    Raises:
        ValueError: no parts, lengths that differ, or a weight that is not positive and finite.
    """
    if not parts_GE or len(parts_GE) != len(weights_G):
        raise ValueError("a mean needs as many weights as parts, and at least one")
    if not all(0.0 < weight < float("inf") for weight in weights_G):
        raise ValueError("weights must be positive and finite")
    elems = parts_GE[0].numel()
    if any(part_E.shape != (elems,) for part_E in parts_GE):
        raise ValueError("the parts of a mean differ in length")
    total = sum(weights_G)
    result_E = torch.empty(elems) if out_E is None else out_E
    scratch = torch.empty(min(_TILE_ELEMS, elems))
    for start in range(0, elems, _TILE_ELEMS):
        tile = result_E[start : start + _TILE_ELEMS]
        scaled = scratch[: tile.numel()]
        torch.mul(parts_GE[0][start : start + _TILE_ELEMS], weights_G[0] / total, out=tile)
        for part_E, weight in zip(parts_GE[1:], weights_G[1:], strict=True):
            torch.mul(part_E[start : start + _TILE_ELEMS], weight / total, out=scaled)
            tile.add_(scaled)
        tile.clamp_(-_LARGEST, _LARGEST)
    return result_E
