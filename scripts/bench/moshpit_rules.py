"""Ways in which n members agree on the mean of their numbers, one round at a time: what `scripts.bench.moshpit_table` compares.

In every round each member fails with probability p: it is skipped and keeps what it holds. All other members of a group end the round with
the group's mean. One number a member is enough, because coordinates do not touch each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import count

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from protocols.grid import Grid, Placement
from protocols.ids import PeerId

Values = NDArray[np.float64]
Rule = Callable[[Values, float, np.random.Generator], Iterator[Values]]
"""(a number of each member, shape (N,); probability to fail; generator) -> everybody's numbers after each round, for ever."""


def all_reduce(values_N: Values, p: float, rng: np.random.Generator) -> Iterator[Values]:
    """One group of all, which starts again whenever anybody fails."""
    while True:
        if rng.random(len(values_N)).min() >= p:
            values_N = np.full_like(values_N, values_N.mean())
        yield values_N


def random_groups(size: int) -> Rule:
    """New groups of about that size each round, drawn at random."""

    def rule(values_N: Values, p: float, rng: np.random.Generator) -> Iterator[Values]:
        groups = -(-len(values_N) // size)
        while True:
            group_N = rng.permutation(np.arange(len(values_N)) % groups)
            yield (values_N := _plain_round(values_N, group_N, p, rng))

    return rule


def fixed_grid(grid: Grid) -> Rule:
    """Moshpit on a grid of given sides: every member in a random cell of its own, one axis after the other (paper, §3 and §4.1)."""

    def rule(values_N: Values, p: float, rng: np.random.Generator) -> Iterator[Values]:
        slots = rng.choice(grid.cells, len(values_N), replace=False)
        groups_dN = _lines(np.array([grid.cell(int(slot)) for slot in slots]), grid)
        for round_index in count():
            yield (values_N := _plain_round(values_N, groups_dN[round_index % len(grid.sides)], p, rng))

    return rule


def adaptive(max_group: int, grid: Grid | None = None) -> Rule:
    """What our members do: a new coin and so a new placement every epoch of d rounds, and these rules within an epoch.

    A vector counts once however many members of a group hold it, with the weight of everything in it. What a member that missed a round
    holds does not fit what the others hold: until a group has given it a result it brings nothing and only receives, in the next epoch too.

    Args:
        max_group: most members of a group.
        grid: a grid other than `protocols.grid.grid_for` would choose, to compare with.
    """

    def rule(values_N: Values, p: float, rng: np.random.Generator) -> Iterator[Values]:
        peers = _peers(len(values_N))
        up_to_date_N = np.ones(len(values_N), bool)
        while True:
            placement = Placement(rng.bytes(32), frozenset(peers), frozenset(), max_group, grid)
            groups_dN = _lines(np.array([placement.cell(peer) for peer in peers]), placement.grid)
            weights_N, holds_N = up_to_date_N.astype(float), np.arange(len(values_N))
            for group_N in groups_dN:
                live_N = rng.random(len(values_N)) >= p
                values_N, weights_N = _weighted_round(values_N, weights_N, holds_N, group_N, live_N)
                up_to_date_N, holds_N = weights_N > 0, group_N
                yield values_N

    return rule


def rounds_of(rule: Rule, start_N: Values, p: float, rng: np.random.Generator, rounds: int) -> list[Values]:
    """Everybody's numbers before and after each of so many rounds."""
    course = [start_N]
    for values_N in rule(start_N, p, rng):
        course.append(values_N)
        if len(course) > rounds:
            return course
    return course


def rounds_until(course: Sequence[Values], variance: float) -> int:
    """Rounds until the variance across members is below that; the number of rounds there are if it never is (paper, §4.1)."""
    return next((index for index, values_N in enumerate(course) if values_N.var() < variance), len(course) - 1)


def _plain_round(values_N: Values, group_N: NDArray[np.intp], p: float, rng: np.random.Generator) -> Values:
    live_N = rng.random(len(values_N)) >= p
    sums_G, counts_G = np.bincount(group_N, values_N * live_N), np.bincount(group_N, live_N)
    return np.where(live_N, sums_G[group_N] / np.maximum(counts_G, 1)[group_N], values_N)


def _weighted_round(
    values_N: Values, weights_N: Values, holds_N: NDArray[np.intp], group_N: NDArray[np.intp], live_N: NDArray[np.bool_]
) -> tuple[Values, Values]:
    """Means of groups over the distinct vectors that live members bring (`holds_N` names them), and the weight behind each mean."""
    bring = np.flatnonzero(live_N & (weights_N > 0))
    _, first = np.unique(group_N[bring] * (len(values_N) + 1) + holds_N[bring], return_index=True)
    bring = bring[first]
    groups = group_N.max() + 1
    weights_G = np.bincount(group_N[bring], weights_N[bring], groups)
    sums_G = np.bincount(group_N[bring], weights_N[bring] * values_N[bring], groups)
    received_N = live_N & (weights_G[group_N] > 0)
    means_G = sums_G / np.where(weights_G > 0, weights_G, 1.0)
    return np.where(received_N, means_G[group_N], values_N), np.where(received_N, weights_G[group_N], 0.0)


def _lines(cells_Nd: NDArray[np.int64], grid: Grid) -> list[NDArray[np.intp]]:
    """For each axis, the number of the line on which each member stands."""
    lines = []
    for axis in range(len(grid.sides)):
        across_Nd = cells_Nd.copy()
        across_Nd[:, axis] = 0
        lines.append(np.ravel_multi_index(tuple(across_Nd.T), grid.sides))
    return lines


@lru_cache(maxsize=16)
def _peers(members: int) -> tuple[PeerId, ...]:
    return tuple(PeerId(blake3(number.to_bytes(4, "little")).digest()) for number in range(members))
