"""Krum: parts that are close to many others (Blanchard et al. 2017, arXiv 1703.02757)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from protocols.aggregation.gram import Doubles, squared_distances
from protocols.aggregation.spanning import Combination, SpanningRule
from protocols.errors import ConfigError


class MultiKrum(SpanningRule):
    """The weighted mean of the `keep` parts with the least scores.

    A part's score is the sum of the squared distances to its G - byzantine - 2 nearest others. Weights are claims and count for nothing
    until the parts are chosen. Of parts with the same score the first ones are taken.

    Args:
        byzantine: how many parts may be anything, at least 0.
        keep: how many to average, at least 1.
        waived: take groups too small for the guarantee as well, to reproduce what others have measured there.

    Raises:
        ConfigError: other numbers.
    """

    name = "multi_krum"
    vanishing = False

    def __init__(self, byzantine: int, keep: int, *, waived: bool = False) -> None:
        if byzantine < 0 or keep < 1:
            raise ConfigError(f"{self.name} needs byzantine at least 0 and keep at least 1.")
        self._byzantine = byzantine
        self._keep = keep
        self._waived = waived

    def check_count(self, count: int) -> None:
        """The guarantee holds for G >= 2 byzantine + 3 parts, of which at most G - byzantine - 2 are averaged."""
        least = max(self._byzantine + 2 + self._keep, 2 * self._byzantine + 3)
        if self._waived:
            least = max(self._byzantine + 3, self._keep)
        if count < least:
            raise ConfigError(
                f"{self.name} with {self._byzantine} byzantine parts, keeping {self._keep}, needs {least} parts and has {count}: "
                "lower byzantine or keep, or raise the size of groups."
            )

    def combine(self, gram_GG: Doubles, weights_G: Sequence[float]) -> Combination:
        """See `SpanningRule.combine`."""
        squares_GG = squared_distances(gram_GG)
        np.fill_diagonal(squares_GG, np.inf)
        neighbours = len(squares_GG) - self._byzantine - 2
        scores_G = np.sort(squares_GG, axis=1)[:, :neighbours].sum(axis=1)
        kept = set(np.argsort(scores_G, kind="stable")[: self._keep].tolist())
        coefficients_G = tuple(weight if index in kept else 0.0 for index, weight in enumerate(weights_G))
        return Combination(coefficients_G, math.inf, converged=True)


class Krum(MultiKrum):
    """The one part with the least score.

    Args:
        byzantine: how many parts may be anything, at least 0.
        waived: see `MultiKrum`.
    """

    name = "krum"

    def __init__(self, byzantine: int, *, waived: bool = False) -> None:
        super().__init__(byzantine, 1, waived=waived)
