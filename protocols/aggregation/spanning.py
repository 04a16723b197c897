"""Rules whose result is a combination of whole parts: they need inner products only, and one weighted mean at the end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from protocols.aggregation.base import Aggregated, Aggregator
from protocols.aggregation.gram import Doubles, gram_matrix
from protocols.aggregation.mean import common_elems, weighted_mean
from protocols.parts import Part


@dataclass(frozen=True, slots=True)
class Combination:
    """How much of each part is in the result.

    Args:
        coefficients_G: at least 0, one above.
        radius: of clipping, infinite if none.
        converged: see `Aggregated`.
    """

    coefficients_G: tuple[float, ...]
    radius: float
    converged: bool


class SpanningRule(Aggregator):
    """Reads the parts twice: for their inner products and for the mean."""

    def aggregate(self, parts_GE: Sequence[Part], weights_G: Sequence[float], out_E: torch.Tensor | None = None) -> Aggregated:
        """See `Aggregator.aggregate`."""
        elems = common_elems(parts_GE, weights_G)
        self.check_count(len(parts_GE))
        found = self.combine(gram_matrix(parts_GE, elems), weights_G)
        taken = [index for index, coefficient in enumerate(found.coefficients_G) if coefficient > 0.0]
        value_E = weighted_mean([parts_GE[index] for index in taken], [found.coefficients_G[index] for index in taken], out_E)
        return Aggregated(value_E, found.coefficients_G, found.radius, found.converged)

    def check_count(self, count: int) -> None:
        """Refuse too few parts.

        Raises:
            ConfigError: too few.
        """

    @abstractmethod
    def combine(self, gram_GG: Doubles, weights_G: Sequence[float]) -> Combination:
        """Choose the coefficients.

        Args:
            gram_GG: the parts' inner products.
            weights_G: positive and finite.
        """
