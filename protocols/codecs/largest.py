"""Which elements of a chunk are its largest: found without sorting the chunk.

A chunk is folded: of elements that lie some distance apart only the largest counts. The k-th largest of these maxima is a threshold that at
least k elements reach, and few more do. Only those are looked at again.

Legend: N chunks of C elements, W maxima or candidates of a chunk, P places that are kept.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

CHUNK_ELEMS = 4096
"""The largest chunk; divides a tile. SparseLoCo's (arXiv 2508.15706)."""

SMALLEST_KEPT = 2.0**-126
"""Smaller magnitudes, the subnormal ones, are never kept."""

_FOLDS = 16
Places = NDArray[np.int64]


def largest_places(source_NC: torch.Tensor, most: int) -> Places:
    """Places, ascending over all chunks, of the `most` largest magnitudes of each chunk; the first ones of equal magnitudes.

    Args:
        source_NC: contiguous fp32, C at most `CHUNK_ELEMS`.
        most: kept of each chunk, at most C; fewer where fewer elements reach `SMALLEST_KEPT`.

    Raises:
        ValueError: an element is NaN or infinite.
    """
    chunks, elems = source_NC.shape
    magnitudes_NC = source_NC.abs()
    folds = _FOLDS if elems % _FOLDS == 0 and elems // _FOLDS >= most else 1
    maxima_NW = magnitudes_NC.view(chunks, folds, elems // folds).amax(1)  # of a NaN and a number: NaN
    if not bool(torch.isfinite(maxima_NW).all()):
        raise ValueError("an element is NaN or infinite")
    rank = elems // folds - most
    thresholds_N = np.maximum(np.partition(maxima_NW.numpy(), rank, axis=1)[:, rank], np.float32(SMALLEST_KEPT))
    magnitudes = magnitudes_NC.numpy()
    places_P = np.flatnonzero(magnitudes >= thresholds_N[:, None])
    chunks_P = places_P // elems
    counts_N = np.bincount(chunks_P, minlength=chunks)
    if int(counts_N.max(initial=0)) <= most:
        return places_P
    slots_P = np.arange(places_P.size) - (np.cumsum(counts_N) - counts_N)[chunks_P]
    found_NW = np.zeros((chunks, int(counts_N.max())), dtype=np.float32)
    found_NW[chunks_P, slots_P] = magnitudes.reshape(-1)[places_P]
    return places_P[_first(found_NW, most)[chunks_P, slots_P]]


def _first(found_NW: NDArray[np.float32], most: int) -> NDArray[np.bool_]:
    """Which of each row's numbers, zeros aside, are the `most` largest ones; of the smallest of these the first ones."""
    rank = found_NW.shape[1] - most
    least_N = np.partition(found_NW, rank, axis=1)[:, rank, None]
    above_NW, same_NW = found_NW > least_N, (found_NW == least_N) & (found_NW > 0)
    left_N = most - above_NW.sum(1, keepdims=True)
    kept_NW: NDArray[np.bool_] = above_NW | same_NW & (np.cumsum(same_NW, axis=1, dtype=np.int32) <= left_N)
    return kept_NW
