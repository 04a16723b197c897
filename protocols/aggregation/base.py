"""The seam of aggregators: blocks of several senders, and their weights, to one block.

Legend: G parts, one for each sender; E elements of a block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from protocols.parts import Part


class NonFinitePart(ValueError):
    """A part holds an infinity or no number at all: it has no place in any aggregate, and its sender is to blame.

    Args:
        part: its index among the parts.
    """

    def __init__(self, part: int) -> None:
        super().__init__(f"part {part} holds a number that is not finite")
        self.part = part


@dataclass(frozen=True, slots=True)
class Aggregated:
    """What a rule made of the parts.

    Args:
        value_E: the aggregate, fp32.
        coefficients_G: `value_E` is bit for bit `weighted_mean` of the parts whose coefficient is above 0, in order, with these as weights.
            None where the rule does not combine whole parts (coordinate median, trimmed mean).
        radius: of clipping, same unit as the parts; infinite where the rule does not clip; 0 if most parts are equal.
        converged: False if the rule stopped at its limit of iterations; the caller says so.
    """

    value_E: torch.Tensor
    coefficients_G: tuple[float, ...] | None
    radius: float
    converged: bool


class Aggregator(ABC):
    """A rule. It keeps no state: the same parts and weights in the same order give the same aggregate on the same machine.

    Across machines the coefficients may differ in their last digits, the value for given coefficients may not: who wants to check a value
    bit for bit takes the coefficients from whoever computed it, and checks that they are right to within rounding.

    Attributes:
        name: as in a run's spec.
        vanishing: at the result v, sum_i w_i min(1, radius / |g_i - v|) (g_i - v) = 0, but for what fp32 rounds away of v. Verification
            relies on it.
    """

    name: str
    vanishing: bool

    @abstractmethod
    def aggregate(self, parts_GE: Sequence[Part], weights_G: Sequence[float], out_E: torch.Tensor | None = None) -> Aggregated:
        """Aggregate.

        Args:
            parts_GE: G vectors of E fp32 elements, or encoded blocks that a codec has opened.
            weights_G: G finite, positive weights.
            out_E: where the value goes, E contiguous fp32 elements that overlap no part; a new vector if None. After an error its
                elements are undefined.

        Raises:
            NonFinitePart: a part holds an infinity or no number.
            ValueError: no parts, lengths that differ, or a weight that is not positive and finite.
            ConfigError: the rule cannot work with so few parts.
        """


def clip_factor(distance: float, radius: float) -> float:
    """min(1, radius / distance): what a difference of that length is multiplied with so that it is no longer than `radius`."""
    return 1.0 if distance <= radius else radius / distance
