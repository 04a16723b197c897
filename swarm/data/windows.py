"""Random access to many byte arrays as if they were one.

Letters: N bytes in all, B windows, T bytes in a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray


class ByteSequence:
    """Byte arrays, in memory or memory-mapped, end to end.

    Args:
        parts: uint8 arrays of one dimension.
    """

    def __init__(self, parts: Sequence[NDArray[np.uint8]]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._parts else 0

    def windows(self, offsets: Sequence[int], length: int) -> torch.Tensor:
        """Bytes [offset, offset + length) for each offset.

        Returns:
            tokens_BT, int64, B = len(offsets), T = length.

        Raises:
            IndexError: a window that does not lie inside.
        """
        tokens_BT = np.empty((len(offsets), length), dtype=np.int64)
        for row_T, offset in zip(tokens_BT, offsets, strict=True):
            if offset < 0 or offset + length > len(self):
                raise IndexError(f"the window [{offset}, {offset + length}) leaves the {len(self)} bytes")
            self._copy(offset, row_T)
        return torch.from_numpy(tokens_BT)

    def _copy(self, offset: int, row_T: NDArray[np.int64]) -> None:
        index = int(np.searchsorted(self._ends, offset, side="right"))
        filled = 0
        while filled < len(row_T):
            part = self._parts[index]
            start = offset + filled - (int(self._ends[index]) - len(part))
            piece = part[start : start + len(row_T) - filled]
            row_T[filled : filled + len(piece)] = piece
            filled += len(piece)
            index += 1
