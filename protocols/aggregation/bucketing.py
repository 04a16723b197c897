"""Bucketing: average small random groups first (Karimireddy et al. 2022, arXiv 2006.09365).

Honest parts that differ by nature become alike, at the price of more buckets with an outlier in them: f outliers spoil up to f buckets.

Legend: G parts; B buckets; E elements of a block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from protocols.aggregation.base import Aggregated, Aggregator
from protocols.aggregation.coordinatewise import CoordinatewiseRule
from protocols.aggregation.gram import Doubles
from protocols.aggregation.mean import Mean, common_elems, refuse_non_finite, weighted_mean
from protocols.aggregation.spanning import Combination, SpanningRule
from protocols.errors import ConfigError
from protocols.parts import Part

Rule = Mean | SpanningRule | CoordinatewiseRule

SEED_BYTES = 32


def bucketed(rule: Rule, size: int, seed: bytes) -> Aggregator:
    """The rule, on weighted means of `size` parts each; the last bucket may be smaller. The mean of means is the mean, and stays it.

    Args:
        rule: any rule.
        size: parts of a bucket, at least 1.
        seed: 32 bytes nobody could know before the parts were fixed; another seed, other buckets.

    Raises:
        ConfigError: a size below 1, or a seed of another length.
    """
    if size < 1:
        raise ConfigError("A bucket needs at least one part: set bucket to 1 or more.")
    if len(seed) != SEED_BYTES:
        raise ConfigError(f"Bucketing needs a seed of {SEED_BYTES} bytes.")
    if isinstance(rule, SpanningRule):
        return _BucketedSpan(rule, size, seed)
    return rule if isinstance(rule, Mean) else _BucketedCoordinates(rule, size, seed)


def buckets_of(count: int, size: int, seed: bytes) -> list[list[int]]:
    """The parts of each bucket, in ascending order: parts ordered by SHA-256 of seed and index, cut every `size`."""
    order = sorted(range(count), key=lambda index: hashlib.sha256(seed + index.to_bytes(8, "big")).digest())
    return [sorted(order[first : first + size]) for first in range(0, count, size)]


class _BucketedSpan(SpanningRule):
    """Averages inner products in place of parts: no bucket is ever computed."""

    vanishing = False

    def __init__(self, rule: SpanningRule, size: int, seed: bytes) -> None:
        self.name = f"bucketed_{rule.name}"
        self._rule, self._size, self._seed = rule, size, seed

    def check_count(self, count: int) -> None:
        """The rule needs enough buckets."""
        self._rule.check_count(-(-count // self._size))

    def combine(self, gram_GG: Doubles, weights_G: Sequence[float]) -> Combination:
        """See `SpanningRule.combine`."""
        buckets = buckets_of(len(weights_G), self._size, self._seed)
        totals_B = [sum(weights_G[index] for index in bucket) for bucket in buckets]
        shares_BG = np.zeros((len(buckets), len(weights_G)))
        for row_G, bucket, total in zip(shares_BG, buckets, totals_B, strict=True):
            row_G[bucket] = [weights_G[index] / total for index in bucket]
        found = self._rule.combine(shares_BG @ gram_GG @ shares_BG.T, totals_B)
        coefficients_G = np.asarray(found.coefficients_G) @ shares_BG
        return Combination(tuple(coefficients_G.tolist()), found.radius, found.converged)


class _BucketedCoordinates(Aggregator):
    """For rules that need to see numbers: each bucket is averaged tile by tile, when it is read."""

    vanishing = False

    def __init__(self, rule: CoordinatewiseRule, size: int, seed: bytes) -> None:
        self.name = f"bucketed_{rule.name}"
        self._rule, self._size, self._seed = rule, size, seed

    def aggregate(self, parts_GE: Sequence[Part], weights_G: Sequence[float], out_E: torch.Tensor | None = None) -> Aggregated:
        """See `Aggregator.aggregate`."""
        elems = common_elems(parts_GE, weights_G)
        refuse_non_finite(parts_GE)
        buckets = buckets_of(len(parts_GE), self._size, self._seed)
        means: list[Part] = []
        totals: list[float] = []
        for bucket in buckets:
            weights = [weights_G[index] for index in bucket]
            means.append(_Bucket(elems, [parts_GE[index] for index in bucket], weights))
            totals.append(sum(weights))
        return self._rule.aggregate(means, totals, out_E)


@dataclass(slots=True)
class _Bucket:
    """An `EncodedBlock` that is the mean of parts."""

    elems: int
    parts: list[Part]
    weights: list[float]

    def read(self, start: int, out_T: torch.Tensor) -> None:
        """Average a tile."""
        tiles = [part[start : start + out_T.numel()] if isinstance(part, torch.Tensor) else torch.empty_like(out_T) for part in self.parts]
        for part, tile_T in zip(self.parts, tiles, strict=True):
            if not isinstance(part, torch.Tensor):
                part.read(start, tile_T)
        weighted_mean(tiles, self.weights, out_T)
