"""What the peers of the averaging benchmark average, and how the result is judged.

Legend: D elements of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from protocols.codecs import Codec

SHIFT_ELEMS = 4099
"""Every round the vectors are rotated by this much more, so that a stale result of the round before is seen as an error."""

CHECK_ELEMS = 1 << 20


def vector(seed: int, rank: int, elems: int) -> NDArray[np.float32]:
    """A peer's vector, shape (D,), standard normal, determined by seed and rank."""
    return np.random.default_rng([seed, rank]).standard_normal(elems, dtype=np.float32)


def rotated(vector_D: NDArray[np.float32], round_number: int) -> NDArray[np.float32]:
    """A fresh copy of a peer's vector as it is in a given round, shape (D,)."""
    return np.roll(vector_D, SHIFT_ELEMS * round_number)


def sample_weights(peers: int) -> list[float]:
    """Unequal sample counts, one a peer, so that an unweighted mean is seen as an error."""
    return [16.0 * (1 + rank) for rank in range(peers)]


def write_expected(file: Path, seed: int, elems: int, weights: Sequence[float]) -> None:
    """Write the exact weighted mean before rotation as raw fp64, shape (D,)."""
    mean_D = np.zeros(elems, dtype=np.float64)
    for rank, weight in enumerate(weights):
        mean_D += vector(seed, rank, elems).astype(np.float64) * (weight / sum(weights))
    mean_D.tofile(file)


def error_bound(codec: Codec, seed: int, elems: int, weights: Sequence[float], block_elems: int) -> float:
    """How far any element of a correct round may be from the exact weighted mean: parts and results go through the codec, and fp32 rounds.

    A codec's error grows with the magnitudes in a block, so blocks full of a peer's largest one stand for all of its blocks.
    """

    def worst(magnitude: float) -> float:
        return codec.worst_error(torch.full((min(block_elems, elems),), magnitude))

    largest = [float(np.abs(vector(seed, rank, elems)).max()) for rank in range(len(weights))]
    shares = [weight / sum(weights) for weight in weights]
    parts_off = sum(share * worst(magnitude) for share, magnitude in zip(shares, largest, strict=True))
    mean_largest = sum(share * magnitude for share, magnitude in zip(shares, largest, strict=True)) + parts_off
    return parts_off + worst(mean_largest) + (len(weights) + 2) * 2.0**-24 * mean_largest


def max_abs_error(file: Path, result_D: NDArray[np.float32], round_number: int) -> float:
    """Largest absolute difference between a round's result, shape (D,), and the exact weighted mean in `file`."""
    expected_D: NDArray[np.float64] = np.memmap(file, dtype=np.float64, mode="r")
    elems = expected_D.size
    if result_D.shape != (elems,) or not np.isfinite(result_D).all():
        return float("inf")
    worst = 0.0
    for start in range(0, elems, CHECK_ELEMS):
        where = (np.arange(start, min(start + CHECK_ELEMS, elems)) - SHIFT_ELEMS * round_number) % elems
        worst = max(worst, float(np.abs(result_D[start : start + where.size] - expected_D[where]).max()))
    return worst


def relative_error(file: Path, result_D: NDArray[np.float32], round_number: int) -> float:
    """Euclidean distance of a round's result, shape (D,), from the exact weighted mean in `file`, in units of that mean's norm."""
    expected_D = np.roll(np.fromfile(file, dtype=np.float64), SHIFT_ELEMS * round_number)
    if result_D.shape != expected_D.shape or not np.isfinite(result_D).all():
        return float("inf")
    return float(np.linalg.norm(result_D - expected_D) / np.linalg.norm(expected_D))
