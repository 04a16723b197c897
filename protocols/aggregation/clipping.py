"""Where clipped differences cancel: CenteredClip and the geometric median, solved on inner products.

Legend: G parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from protocols.aggregation.gram import Doubles, centred, medoid, squared_distances
from protocols.aggregation.spanning import Combination, SpanningRule
from protocols.errors import ConfigError

MAX_ITERATIONS = 1000
"""Each costs some G^2 operations, whatever the length of a block."""
TOLERANCE = 1e-7
"""How long the mean of the clipped differences may still be, as a part of the radius."""
OBSERVED_FACTOR = 1.0
GEOMETRIC_SMOOTHING = 1e-3
_EPS = float(np.finfo(np.float64).eps)
_ROUNDING = 2.0**-46


class CenteredClip(SpanningRule):
    """The point at which differences, clipped to a radius, cancel (arXiv 2106.11257, CenteredClip run to its fixed point).

    Args:
        radius: of clipping, above 0. If None it is observed: `factor` times the distance within which more than half of the parts lie
            around the most central part, so it follows the parts' spread and their length.
        factor: see `radius`.

    Raises:
        ConfigError: a radius or factor that is not positive and finite.
    """

    name = "centered_clip"
    vanishing = True

    def __init__(self, radius: float | None = None, factor: float = OBSERVED_FACTOR) -> None:
        if not 0.0 < factor < math.inf or (radius is not None and not 0.0 < radius < math.inf):
            raise ConfigError("centered_clip needs a radius and a factor above 0: leave the radius out to have it observed.")
        self._radius = radius
        self._factor = factor

    def combine(self, gram_GG: Doubles, weights_G: Sequence[float]) -> Combination:
        """See `SpanningRule.combine`."""
        centre, spread = medoid(squared_distances(gram_GG))
        return clipped_centre(gram_GG, weights_G, centre, self._factor * spread if self._radius is None else self._radius)


class GeometricMedian(SpanningRule):
    """The point with the least weighted sum of distances to the parts, smoothed near each of them (arXiv 1912.13445).

    Smoothing replaces a distance below `smoothing` times the observed spread by a parabola. What is left is CenteredClip with that very
    short radius, and is solved as such. It claims no vanishing sum of differences: its radius may be close to what fp32 rounds away.

    Args:
        smoothing: as a part of the distance within which more than half of the parts lie around the most central part; above 0, at most 1.

    Raises:
        ConfigError: another smoothing.
    """

    name = "geometric_median"
    vanishing = False

    def __init__(self, smoothing: float = GEOMETRIC_SMOOTHING) -> None:
        if not 0.0 < smoothing <= 1.0:
            raise ConfigError("geometric_median needs a smoothing above 0 and at most 1.")
        self._smoothing = smoothing

    def combine(self, gram_GG: Doubles, weights_G: Sequence[float]) -> Combination:
        """See `SpanningRule.combine`."""
        centre, spread = medoid(squared_distances(gram_GG))
        return clipped_centre(gram_GG, weights_G, centre, self._smoothing * spread)


def clipped_centre(gram_GG: Doubles, weights_G: Sequence[float], centre: int, radius: float) -> Combination:
    """The v with sum_i w_i min(1, radius / |g_i - v|) (g_i - v) = 0.

    It is the least point of a convex function (squares of distances up to the radius, their lengths beyond), and a mean of the parts with
    weights w_i min(1, radius / |g_i - v|). Taking that mean for the next v never increases the function, and all of it happens with G
    coefficients: distances to v follow from inner products. The paper's step is the same direction, shorter.

    Args:
        gram_GG: inner products.
        weights_G: w.
        centre: index of the part to start from, the origin of all differences.
        radius: at least 0; with 0, which parts equal to the centre cause, the result is their mean.

    Returns:
        Coefficients w_i min(1, radius / |g_i - v|): with no part clipped they are the weights themselves.
    """
    claimed_G = np.asarray(weights_G, dtype=np.float64)
    about_GG = centred(gram_GG, centre)
    squares_G = about_GG.diagonal().clip(min=0.0)
    noise_G = _ROUNDING * (gram_GG.diagonal() + gram_GG[centre, centre])
    factors_G = _factors(squares_G, noise_G, radius)
    converged = radius == 0.0
    for _ in range(0 if converged else MAX_ITERATIONS):
        pulls_G = claimed_G * factors_G
        shares_G = pulls_G / pulls_G.sum()
        products_G = about_GG @ shares_G
        factors_G = _factors(about_GG.diagonal() - 2.0 * products_G + shares_G @ products_G, noise_G, radius)
        left_G = claimed_G * factors_G
        left_G -= left_G.sum() * shares_G
        rounding = _EPS * float(shares_G @ np.sqrt(squares_G))
        left = math.sqrt(max(0.0, float(left_G @ about_GG @ left_G))) / float(claimed_G.sum())
        if left <= max(TOLERANCE * radius, 4.0 * rounding):
            converged = 4.0 * rounding <= TOLERANCE * radius  # or else the parts pulled v so far away that the radius is lost in rounding
            break
    return Combination(tuple((claimed_G * factors_G).tolist()), radius, converged)


def _factors(squares_G: Doubles, noise_G: Doubles, radius: float) -> Doubles:
    """min(1, radius / distance) of each part; 1 where the distance is lost in rounding."""
    near_G = (squares_G <= radius * radius) | (squares_G <= noise_G)
    distances_G = np.sqrt(np.where(near_G, 1.0, squares_G))
    factors_G: Doubles = np.where(near_G, 1.0, radius / distances_G)
    return factors_G
