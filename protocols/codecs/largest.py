"""Which elements of a chunk are its largest: found without sorting the chunk.

A chunk is folded: of elements that lie some distance apart only the largest counts. The k-th largest of these maxima is a threshold that at
least k elements reach, and few more do. Only those are sorted.

Legend: N chunks of C elements, W maxima of a folded chunk, P places that are kept.
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
_PLACE_BITS = np.uint64(12)
_CHUNK_SHIFT = np.uint64(12 + 31)
_LARGEST_BITS = np.uint64(2**31 - 1)

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
    if int(np.bincount(places_P // elems, minlength=chunks).max(initial=0)) <= most:
        return places_P
    return _first(places_P, magnitudes, most)


def _first(places_P: Places, magnitudes_NC: NDArray[np.float32], most: int) -> Places:
    """Of these places, those of the `most` largest magnitudes of each chunk."""
    elems = magnitudes_NC.shape[1]
    chunks_P, rest_P = np.divmod(places_P.astype(np.uint64), np.uint64(elems))
    descending_P = _LARGEST_BITS - magnitudes_NC.reshape(-1)[places_P].view(np.uint32)
    keys_P = np.sort(chunks_P << _CHUNK_SHIFT | descending_P << _PLACE_BITS | rest_P)
    chunks_P = keys_P >> _CHUNK_SHIFT
    ranks_P = np.arange(keys_P.size) - np.searchsorted(chunks_P, chunks_P)
    kept_P = keys_P[ranks_P < most]
    found: Places = np.sort((kept_P >> _CHUNK_SHIFT) * np.uint64(elems) + (kept_P & np.uint64(2**12 - 1))).astype(np.int64)
    return found
