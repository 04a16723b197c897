"""Rules that look at each coordinate alone. Nobody can check their result from inner products.

Legend: G parts; E elements of a block; S elements of a slice, worked on at a time.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch

from protocols.aggregation.base import Aggregated, Aggregator, NonFinitePart
from protocols.aggregation.mean import common_elems, is_finite
from protocols.errors import ConfigError
from protocols.parts import TILE_ELEMS, Part, read_part

_SLICE_ELEMS = 2**13
_ROUNDING = 1e-12
"""Sums of shares that differ from a half by less are a half."""


class CoordinatewiseRule(Aggregator):
    """Reads the parts once, sorts every coordinate, and keeps weights beside the numbers."""

    vanishing = False

    def aggregate(self, parts_GE: Sequence[Part], weights_G: Sequence[float], out_E: torch.Tensor | None = None) -> Aggregated:
        """See `Aggregator.aggregate`."""
        elems = common_elems(parts_GE, weights_G)
        self.check_count(len(parts_GE))
        result_E = torch.empty(elems) if out_E is None else out_E
        shares_G = torch.tensor(weights_G, dtype=torch.float64)
        shares_G /= shares_G.sum()
        tile_GT = torch.empty(len(parts_GE), min(TILE_ELEMS, elems))
        for start in range(0, elems, TILE_ELEMS):
            tiles = tile_GT[:, : min(TILE_ELEMS, elems - start)]
            for index, part in enumerate(parts_GE):
                read_part(part, start, tiles[index])
                if not is_finite(tiles[index]):
                    raise NonFinitePart(index)
            for first in range(0, tiles.shape[1], _SLICE_ELEMS):
                sorted_SG, order_SG = tiles[:, first : first + _SLICE_ELEMS].T.contiguous().sort(dim=1)
                chosen_S = self.pick(sorted_SG, shares_G[order_SG])
                result_E[start + first : start + first + chosen_S.numel()] = chosen_S
        return Aggregated(result_E, None, math.inf, converged=True)

    @abstractmethod
    def check_count(self, count: int) -> None:
        """Refuse too few parts.

        Raises:
            ConfigError: too few.
        """

    @abstractmethod
    def pick(self, sorted_SG: torch.Tensor, shares_SG: torch.Tensor) -> torch.Tensor:
        """One number for each coordinate.

        Args:
            sorted_SG: the parts' numbers, ascending.
            shares_SG: the weight of each, fp64; each row sums to 1.

        Returns:
            S numbers, fp32 or fp64.
        """


class CoordinateMedian(CoordinatewiseRule):
    """The weighted median of each coordinate: the middle between the lower and the upper one.

    The two differ only where some parts weigh exactly half. Their middle treats a vector and its opposite alike, the lower one alone would
    pull an even number of parts down.
    """

    name = "coordinate_median"

    def check_count(self, count: int) -> None:
        """Any number will do."""

    def pick(self, sorted_SG: torch.Tensor, shares_SG: torch.Tensor) -> torch.Tensor:
        """See `CoordinatewiseRule.pick`."""
        below_SG = shares_SG.cumsum(1)
        last = sorted_SG.shape[1] - 1
        ends = ((below_SG < 0.5 - _ROUNDING).sum(1).clamp_(max=last), (below_SG <= 0.5 + _ROUNDING).sum(1).clamp_(max=last))
        low_S, high_S = (sorted_SG.gather(1, end_S[:, None])[:, 0].double() for end_S in ends)
        return (low_S + high_S) / 2


class TrimmedMean(CoordinatewiseRule):
    """The weighted mean of each coordinate without its `trim` least and `trim` greatest numbers.

    What is cut is counted by parts and not by weight: weights are claims.

    Args:
        trim: at least 0.

    Raises:
        ConfigError: less.
    """

    name = "trimmed_mean"

    def __init__(self, trim: int) -> None:
        if trim < 0:
            raise ConfigError("trimmed_mean needs a trim of at least 0.")
        self._trim = trim

    def check_count(self, count: int) -> None:
        """One has to be left."""
        if count <= 2 * self._trim:
            raise ConfigError(f"trimmed_mean with trim {self._trim} needs {2 * self._trim + 1} parts and has {count}: lower trim.")

    def pick(self, sorted_SG: torch.Tensor, shares_SG: torch.Tensor) -> torch.Tensor:
        """See `CoordinatewiseRule.pick`."""
        kept = slice(self._trim, sorted_SG.shape[1] - self._trim)
        return (sorted_SG[:, kept] * shares_SG[:, kept]).sum(1) / shares_SG[:, kept].sum(1)
