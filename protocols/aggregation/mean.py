"""Weighted mean of blocks, the same bits wherever it is computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_LARGEST = torch.finfo(torch.float32).max


def weighted_mean(parts_GE: Sequence[torch.Tensor], weights_G: Sequence[float]) -> torch.Tensor:
    """sum_g w_g x_g / sum_g w_g, in the order given.

    The sum is folded member by member with separate multiply and add (no fused multiply-add) and normalised weights, so two reducers
    given the same parts in the same order produce the same bytes, on any machine with IEEE fp32. The mean of finite numbers is finite:
    normalised weights may add up to one unit in the last place above 1, and what that pushes past the largest number is cut back to it.

    Args:
        parts_GE: G vectors of E fp32 elements.
        weights_G: G finite, positive weights (samples).

    Returns:
        A new vector of E fp32 elements.

    Raises:
        ValueError: no parts, lengths that differ, or a weight that is not positive and finite.
    """
    if not parts_GE or len(parts_GE) != len(weights_G):
        raise ValueError("a mean needs as many weights as parts, and at least one")
    if not all(0.0 < weight < float("inf") for weight in weights_G):
        raise ValueError("weights must be positive and finite")
    total = sum(weights_G)
    result_E = parts_GE[0] * (weights_G[0] / total)
    scaled_E = torch.empty_like(result_E)
    for part_E, weight in zip(parts_GE[1:], weights_G[1:], strict=True):
        torch.mul(part_E, weight / total, out=scaled_E)
        result_E.add_(scaled_E)
    return result_E.clamp_(-_LARGEST, _LARGEST)
