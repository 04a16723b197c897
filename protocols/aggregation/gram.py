"""Inner products of parts: all that rules which combine whole parts need to know of them.

Legend: G parts; E elements of a block; S elements of a slice, the columns of one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from protocols.aggregation.base import NonFinitePart
from protocols.parts import TILE_ELEMS, Part

Doubles = NDArray[np.float64]

_SLICE_ELEMS = 2**15
"""Columns of a matrix product: G rows of fp64 stay in the caches, and a call costs little beside its work."""
NOISE = 2.0**-46
"""Squared distances below this part of the squared norms they are a difference of are rounding, and count as 0."""


def gram_matrix(parts_GE: Sequence[Part], elems: int) -> Doubles:
    """Inner product of every two parts, (G, G) fp64.

    A product of two fp32 numbers is exact in fp64 and cannot overflow there, so an entry is as precise as its two parts allow, whatever the
    others are: an outlier a thousand or 10^30 times as long takes no digits from the distances among the rest.

    Args:
        parts_GE: G parts of E elements.
        elems: E.

    Raises:
        NonFinitePart: a part holds an infinity or no number.
    """
    count = len(parts_GE)
    gram_GG = torch.zeros(count, count, dtype=torch.float64)
    slice_GS = torch.empty(count, min(_SLICE_ELEMS, elems), dtype=torch.float64)
    decoded = [None if isinstance(part, torch.Tensor) else torch.empty(min(TILE_ELEMS, elems)) for part in parts_GE]
    for start in range(0, elems, TILE_ELEMS):
        tiles = [_tile(part, start, elems, scratch_T) for part, scratch_T in zip(parts_GE, decoded, strict=True)]
        for first in range(0, tiles[0].numel(), _SLICE_ELEMS):
            columns = slice_GS[:, : min(_SLICE_ELEMS, tiles[0].numel() - first)]
            for row_S, tile_T in zip(columns, tiles, strict=True):
                row_S.copy_(tile_T[first : first + _SLICE_ELEMS])
            gram_GG.addmm_(columns, columns.T)
    found_GG: Doubles = gram_GG.numpy()
    odd = np.flatnonzero(~np.isfinite(found_GG.diagonal()))
    if odd.size:
        raise NonFinitePart(int(odd[0]))
    return found_GG


def squared_distances(gram_GG: Doubles) -> Doubles:
    """Squared distance of every two parts, (G, G); 0 where the two are equal to within rounding."""
    norms_G = gram_GG.diagonal()
    sums_GG = norms_G[:, None] + norms_G[None, :]
    squares_GG: Doubles = sums_GG - gram_GG - gram_GG.T
    squares_GG[squares_GG <= NOISE * sums_GG] = 0.0
    return squares_GG


def centred(gram_GG: Doubles, origin: int) -> Doubles:
    """The inner products of the parts' differences to part `origin`."""
    row_G = gram_GG[origin]
    about_GG: Doubles = (gram_GG - row_G[:, None]) - (row_G[None, :] - row_G[origin])
    return about_GG


def majority_centre(squares_GG: Doubles) -> int:
    """The part within whose smallest ball more than half of all parts lie, itself included."""
    return int(_majority_squares(squares_GG).argmin())


def spread(squares_GG: Doubles) -> float:
    """The radius of the smallest ball around a part within which more than half of all parts lie.

    Counted by parts and not by weight: weights are claims. Fewer than half of the parts, however placed, cannot make it larger than the
    largest distance between two of the others.
    """
    return float(np.sqrt(_majority_squares(squares_GG).min()))


def _majority_squares(squares_GG: Doubles) -> Doubles:
    found_G: Doubles = np.sort(squares_GG, axis=1)[:, len(squares_GG) // 2]
    return found_G


def _tile(part: Part, start: int, elems: int, scratch_T: torch.Tensor | None) -> torch.Tensor:
    if isinstance(part, torch.Tensor):
        return part[start : start + TILE_ELEMS]
    if scratch_T is None:
        raise ValueError("an encoded part needs somewhere to be decoded")
    tile_T = scratch_T[: min(TILE_ELEMS, elems - start)]
    part.read(start, tile_T)
    return tile_T
