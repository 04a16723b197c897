"""Where clipped differences cancel: CenteredClip and the geometric median, solved on inner products.

Legend: G parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protocols.aggregation.gram import NOISE, Doubles, centred, majority_centre, spread, squared_distances
from protocols.aggregation.spanning import Combination, SpanningRule
from protocols.errors import ConfigError

MAX_ITERATIONS = 1000
"""Each costs some G^2 operations, whatever the length of a block."""
TOLERANCE = 1e-7
"""How long the mean of the clipped differences may still be, as a part of the radius."""
OBSERVED_FACTOR = 1.0
"""Of the distance between two parts. Parts that differ by noise alone are 0.7 of it from their mean, so nothing honest is clipped and the
result is the mean bit for bit; and up to 1.07 seven huge outliers of sixteen move it no further than they move the geometric median, while
small ones (IPM, ALIE) move it no further than the mean. `python -m scripts.bench.aggregators` measures both."""
GEOMETRIC_SMOOTHING = 1e-3
PLAIN_ITERATIONS = 10
"""Mostly enough without Newton's method, which costs more for each."""
_EPS = float(np.finfo(np.float64).eps)
_CURVATURE = 1e-9
_FAR = 1e6


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
        squares_GG = squared_distances(gram_GG)
        radius = self._factor * spread(squares_GG) if self._radius is None else self._radius
        return clipped_centre(gram_GG, squares_GG, weights_G, radius)


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
        squares_GG = squared_distances(gram_GG)
        return clipped_centre(gram_GG, squares_GG, weights_G, self._smoothing * spread(squares_GG))


def clipped_centre(gram_GG: Doubles, squares_GG: Doubles, weights_G: Sequence[float], radius: float) -> Combination:
    """The v with sum_i w_i min(1, radius / |g_i - v|) (g_i - v) = 0.

    It is the least point of a convex function (squares of distances up to the radius, their lengths beyond), and a mean of the parts with
    weights w_i min(1, radius / |g_i - v|). Taking that mean for the next v never increases the function, and all of it happens with G
    coefficients: distances to v follow from inner products. The paper's step is the same direction, shorter. Where steps are slow, between
    two far clusters for one, Newton's method takes over as long as it comes closer.

    Args:
        gram_GG: inner products.
        squares_GG: squared distances.
        weights_G: w.
        radius: at least 0; with 0, which means that most parts are equal, the result is their mean.

    Returns:
        Coefficients w_i min(1, radius / |g_i - v|): with no part clipped they are the weights themselves.
    """
    claimed_G = np.asarray(weights_G, dtype=np.float64)
    centre = _start(squares_GG, claimed_G, radius)
    field = _Field(gram_GG, claimed_G, centre, radius)
    point = field.at(np.eye(len(weights_G))[centre])
    for iteration in range(MAX_ITERATIONS):
        if radius == 0.0 or point.left <= TOLERANCE * radius or point.left <= point.rounding:
            break
        following = field.at(point.pulls_G / point.pulls_G.sum())
        if iteration >= PLAIN_ITERATIONS:
            following = min(following, field.at(field.newton(point)), key=lambda candidate: candidate.left)
        point = following
    # If rounding hides what is left, the parts have pulled v so far away that no digits remain for the radius.
    converged = radius == 0.0 or max(point.left, point.rounding) <= TOLERANCE * radius
    return Combination(tuple(point.pulls_G.tolist()), radius, converged)


def _start(squares_GG: Doubles, claimed_G: Doubles, radius: float) -> int:
    """The part with the least weighted sum of distances: outliers make it one of theirs only with half of the weight.

    Distances count up to a million spreads, or huge ones would take all digits from the others.
    """
    if radius == 0.0:
        return majority_centre(squares_GG)
    farthest = _FAR * max(radius, spread(squares_GG))
    return int((np.sqrt(squares_GG).clip(max=farthest) @ claimed_G).argmin())


@dataclass(frozen=True, slots=True)
class _Point:
    """A v = sum_i shares_i g_i.

    Args:
        shares_G: sum to 1; those that Newton's method tries may be negative.
        pulls_G: w_i min(1, radius / |g_i - v|).
        left: length of the mean of the clipped differences.
        rounding: below this, `left` is noise.
    """

    shares_G: Doubles
    pulls_G: Doubles
    left: float
    rounding: float


class _Field:
    """The parts as one of them sees them."""

    def __init__(self, gram_GG: Doubles, claimed_G: Doubles, centre: int, radius: float) -> None:
        self._about_GG = centred(gram_GG, centre)
        self._squares_G = self._about_GG.diagonal().clip(min=0.0)
        self._lengths_G = np.sqrt(self._squares_G)
        self._noise_G = NOISE * (gram_GG.diagonal() + gram_GG[centre, centre])
        self._claimed_G = claimed_G
        self._radius = radius

    def at(self, shares_G: Doubles) -> _Point:
        """What pulls at a point."""
        products_G = self._about_GG @ shares_G
        squares_G = self._squares_G - 2.0 * products_G + shares_G @ products_G
        near_G = squares_G <= np.maximum(self._noise_G, self._radius * self._radius)
        pulls_G = self._claimed_G * np.where(near_G, 1.0, self._radius / np.sqrt(np.where(near_G, 1.0, squares_G)))
        left_G = pulls_G - pulls_G.sum() * shares_G
        left = math.sqrt(max(0.0, float(left_G @ self._about_GG @ left_G))) / float(self._claimed_G.sum())
        return _Point(shares_G, pulls_G, left, 4.0 * _EPS * float(abs(shares_G) @ self._lengths_G))

    def newton(self, point: _Point) -> Doubles:
        """Where all pulls would vanish if they changed as fast as they do at the point.

        With d_i = g_i - v, the function's second derivative is sum_i pulls_i (1 - [i is clipped] d_i d_i' / |d_i|^2). A step
        sum_i y_i d_i makes that a system of G equations for y_i |d_i|, in which only the angles between differences occur. Where all are
        clipped the function may be straight in some direction: a trace of curvature keeps the step finite, and the plain step stands in
        if rounding has taken that away too.
        """
        products_G = self._about_GG @ point.shares_G
        between_GG = self._about_GG - products_G[:, None] - products_G[None, :] + point.shares_G @ products_G
        squares_G = between_GG.diagonal()
        lengths_G = np.sqrt(np.where(squares_G > self._noise_G, squares_G, 1.0))
        bends_G = np.where(point.pulls_G < self._claimed_G, point.pulls_G, 0.0)
        stiffness_G = np.full(len(bends_G), float(point.pulls_G.sum()) * (1.0 + _CURVATURE))
        angles_GG = between_GG / lengths_G[:, None] / lengths_G[None, :]
        try:
            steps_G = np.linalg.solve(np.diag(stiffness_G) - bends_G[:, None] * angles_GG, point.pulls_G * lengths_G) / lengths_G
        except np.linalg.LinAlgError:
            steps_G = point.pulls_G / stiffness_G
        found_G: Doubles = (1.0 - steps_G.sum()) * point.shares_G + steps_G
        return found_G
