"""An opened sparse block: a list of elements, of which most are missing.

Legend: E elements of a block, T of a tile, P that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(slots=True)
class SparseBlock:
    """Implements `EncodedBlock`.

    Args:
        places_P: ascending.
        kept_P: the elements there; all others are 0.
        elems: of the block.
    """

    places_P: NDArray[np.int64]
    kept_P: NDArray[np.float32]
    elems: int

    def read(self, start: int, out_T: torch.Tensor) -> None:
        """Zeros, and the kept elements that lie there."""
        first, end = np.searchsorted(self.places_P, (start, start + out_T.numel()))
        out_T.zero_()
        out_T.scatter_(0, torch.from_numpy(self.places_P[first:end] - start), torch.from_numpy(self.kept_P[first:end]))
