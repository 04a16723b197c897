"""Which elements of a block share a scale, and how many bytes their codes take.

Legend: E elements of a block, T of a tile, G groups of B elements. A tile whose last group is not full is worked on as if zeros filled it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from protocols.parts import TILE_ELEMS


@dataclass(frozen=True, slots=True)
class Grouping:
    """How tiles are cut into groups. Groups do not reach beyond a tile; those of the halves of a tile do not reach beyond a half.

    Args:
        group_elems: B, elements of a full group; divides half a tile.
        halves: two codes share a byte, one of the first half of the tile (the larger one), one of the second. So neighbours in a byte are
            no neighbours in the tile, and all work is on long runs.
    """

    group_elems: int
    halves: bool

    @property
    def tile_bytes(self) -> int:
        """Bytes that the codes of a full tile take."""
        return TILE_ELEMS // (1 + self.halves)

    @property
    def tile_groups(self) -> int:
        """Groups of a full tile."""
        return TILE_ELEMS // self.group_elems

    def groups(self, elems: int) -> int:
        """How many groups a block has."""
        tiles, rest = divmod(elems, TILE_ELEMS)
        return tiles * self.tile_groups + sum(self._groups_in(piece) for piece in self._pieces(rest))

    def code_bytes(self, elems: int) -> int:
        """How many bytes the codes of a block take."""
        return -(-elems // (1 + self.halves))

    def places(self, tile_elems: int) -> list[tuple[slice, slice]]:
        """The pieces of a tile: where each is among its elements, and where once every piece before it is filled up to whole groups."""
        found, start, filled = [], 0, 0
        for length in self._pieces(tile_elems):
            found.append((slice(start, start + length), slice(filled, filled + length)))
            start += length
            filled += self._groups_in(length) * self.group_elems
        return found

    def grouped(self, source_T: torch.Tensor) -> torch.Tensor:
        """A tile as G x B: a view if all its groups are full for sure, else a copy that zeros fill up."""
        if source_T.numel() == TILE_ELEMS:
            return source_T.view(-1, self.group_elems)
        filled = source_T.new_zeros(self.groups(source_T.numel()) * self.group_elems)
        for piece, place in self.places(source_T.numel()):
            filled[place] = source_T[piece]
        return filled.view(-1, self.group_elems)

    def ungroup(self, filled_GB: torch.Tensor, out_T: torch.Tensor) -> None:
        """Copy a tile to `out_T`, without what fills it up."""
        filled = filled_GB.view(-1)
        for piece, place in self.places(out_T.numel()):
            out_T[piece] = filled[place]

    def _pieces(self, tile_elems: int) -> tuple[int, ...]:
        return (tile_elems - tile_elems // 2, tile_elems // 2) if self.halves else (tile_elems,)

    def _groups_in(self, piece_elems: int) -> int:
        return -(-piece_elems // self.group_elems)
