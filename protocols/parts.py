"""A block as those who average see it: a vector, or an encoding that a codec has checked and that is decoded where it is needed.

Legend: E elements of a block, T elements of a tile.
"""

from __future__ import annotations

from typing import Protocol

import torch

TILE_ELEMS = 2**17
"""Elements worked on at a time: few enough for a core's cache, many enough for what a call into torch costs. Part of the formats of those
codecs that group elements or pack several into a byte: they do it within a tile."""


class EncodedBlock(Protocol):
    """A block that has been checked and is still encoded; shares memory with the bytes, which must not change."""

    elems: int

    def read(self, start: int, out_T: torch.Tensor) -> None:
        """Decode the T elements from `start`, a multiple of `TILE_ELEMS`, into `out_T`.

        Args:
            start: first element.
            out_T: contiguous fp32; ends at a multiple of `TILE_ELEMS` or where the block ends.
        """


Part = torch.Tensor | EncodedBlock
"""A block that can be read: E fp32 elements, or still encoded."""


def read_part(part: Part, start: int, out_T: torch.Tensor) -> None:
    """Copy or decode the elements from `start` into `out_T`, see `EncodedBlock.read`."""
    if isinstance(part, torch.Tensor):
        out_T.copy_(part[start : start + out_T.numel()])
    else:
        part.read(start, out_T)


def tiles(vector_E: torch.Tensor) -> list[torch.Tensor]:
    """Views of a vector, `TILE_ELEMS` elements each; the last one may be shorter, and there is none without elements."""
    return [vector_E[start : start + TILE_ELEMS] for start in range(0, vector_E.numel(), TILE_ELEMS)]
