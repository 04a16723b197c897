"""int8 and int4: steps of equal size. Read `blockwise.py` first.

A group's scale is s = M/top, rounded up by a factor below 1 + 2^-8, where M is its largest magnitude. The integer of M is still `top` then:
M/s is above `top` - 1/2.

Legend: E elements of a block, T of a tile, G groups of B elements.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from protocols.codecs.base import largest_magnitude
from protocols.codecs.blockwise import (
    DROPPED_BITS,
    SMALLEST_SCALE,
    BlockwiseCodec,
    Bytes,
    Magnitudes,
    ScaleBits,
    largest_rows,
    nibbles,
    scale_values,
)
from protocols.codecs.grouping import Grouping
from protocols.parts import TILE_ELEMS, tiles

_ROUND_UP = np.uint32(2**DROPPED_BITS - 1)
_WORST = 0.5 + 2.0**-16
"""Steps that a rounded element may be off. x/s is computed as x times the rounded 1/s: two roundings of 2^-24, of a number below 128."""


class _LinearCodec(BlockwiseCodec):
    """Rounds x/s to the nearest integer, to the even one from the middle."""

    @abstractmethod
    def write_codes(self, rounded_GB: torch.Tensor, bytes_T: Bytes, tile_elems: int) -> None:
        """Write a tile of integers, in fp32 and free to be overwritten, as codes."""

    def scales_for(self, magnitudes_G: Magnitudes) -> ScaleBits:
        """The scales of groups whose largest magnitudes these are."""
        raised_G = (magnitudes_G / np.float32(self.top)).view(np.uint32)
        raised_G += _ROUND_UP
        raised_G >>= DROPPED_BITS
        return np.minimum(np.maximum(raised_G, SMALLEST_SCALE), self.largest_scale).astype(np.uint16)

    def encode_tiles(self, sources_GB: Sequence[torch.Tensor], bits_G: ScaleBits, bytes_E: Bytes, elems: int) -> None:
        """All scales, then all codes: what is done for groups costs as many calls for a tile as for a block.

        Raises:
            ValueError: an element is NaN or infinite.
        """
        bits_G[:] = self.scales_for(_magnitudes(sources_GB))
        inverse_G = torch.from_numpy(np.float32(1) / scale_values(bits_G)).unsqueeze(1)
        scratch_GB = torch.empty_like(sources_GB[0])
        groups, width = self.grouping.tile_groups, self.grouping.tile_bytes
        for index, source_GB in enumerate(sources_GB):
            factors = inverse_G[index * groups : (index + 1) * groups]
            scaled_GB = torch.mul(source_GB, factors, out=scratch_GB[: len(source_GB)])
            packed = bytes_E[index * width : (index + 1) * width]
            self.write_codes(scaled_GB.round_(), packed, min(TILE_ELEMS, elems - index * TILE_ELEMS))

    def worst_error(self, block_E: torch.Tensor) -> float:
        """(1/2 + 2^-16) times the scale of the largest element, at most max(2^-126, (1 + 2^-8) M/top)."""
        if not block_E.numel():
            return 0.0
        scale = scale_values(self.scales_for(np.array([largest_magnitude(block_E)], dtype=np.float32)))
        return _WORST * float(scale[0])

    def error_norm(self, block_E: torch.Tensor) -> float:
        """By the scale of each group."""
        if not block_E.numel():
            return 0.0
        magnitudes_G = _magnitudes([self.grouping.grouped(source_T) for source_T in tiles(block_E.detach())])
        steps = float(np.linalg.norm(scale_values(self.scales_for(magnitudes_G)).astype(np.float64)))
        return min(_WORST * steps * math.sqrt(self.grouping.group_elems), super().error_norm(block_E))


class Int8Codec(_LinearCodec):
    """8.06 bits an element: integers -127 to 127 in groups of 256, two's complement; -128 stands for nothing.

    With M the largest magnitude of a group, the error is at most (1/2 + 2^-16) max(2^-126, (1 + 2^-8) M/127): about M/253.
    """

    name = "int8"
    grouping = Grouping(256, halves=False)
    top = 127
    top_code = 127

    def write_codes(self, rounded_GB: torch.Tensor, bytes_T: Bytes, tile_elems: int) -> None:
        """Narrow."""
        torch.from_numpy(bytes_T.view(np.int8)).copy_(rounded_GB.view(-1)[:tile_elems])

    def read_codes(self, bytes_T: Bytes, tile_elems: int) -> torch.Tensor:
        """As they are."""
        return self.grouping.grouped(torch.from_numpy(bytes_T.view(np.int8)))

    def largest_codes(self, bytes_NT: Bytes, tile_elems: int) -> Bytes:
        """-128 has itself as its magnitude, which is 128 without a sign."""
        whole = bytes_NT.ndim > 1
        codes_GB = bytes_NT.reshape(-1, self.grouping.group_elems) if whole else self.read_codes(bytes_NT, tile_elems).numpy()
        return largest_rows(np.abs(codes_GB.view(np.int8)).view(np.uint8))


class Int4Codec(_LinearCodec):
    """4.13 bits an element: integers -7 to 7 in groups of 128; code c + 8 stands for c, and 0 for nothing.

    With M the largest magnitude of a group, the error is at most (1/2 + 2^-16) max(2^-126, (1 + 2^-8) M/7): about M/14.
    """

    name = "int4"
    grouping = Grouping(128, halves=True)
    top = 7
    top_code = 7
    spare = 8

    def write_codes(self, rounded_GB: torch.Tensor, bytes_T: Bytes, tile_elems: int) -> None:
        """Combine both halves in fp32, where that is exact, and narrow once."""
        rounded = rounded_GB.view(-1)
        (_, lower), (_, upper) = self.grouping.places(tile_elems)
        rounded[: tile_elems // 2].add_(rounded[upper], alpha=16)
        torch.from_numpy(bytes_T.view(np.int8)).copy_(rounded[lower])
        bytes_T += np.uint8(0x88)

    def read_codes(self, bytes_T: Bytes, tile_elems: int) -> torch.Tensor:
        """Split and centre."""
        codes_GB = nibbles(self.grouping, bytes_T, tile_elems, self.spare).view(np.int8)
        codes_GB -= np.int8(8)
        return torch.from_numpy(codes_GB)

    def largest_codes(self, bytes_NT: Bytes, tile_elems: int) -> Bytes:
        """8 for the code that stands for nothing."""
        codes_GB = self.read_codes(bytes_NT, tile_elems).numpy()
        return largest_rows(np.abs(codes_GB, out=codes_GB).view(np.uint8))


def _magnitudes(sources_GB: Sequence[torch.Tensor]) -> Magnitudes:
    """Largest magnitude of each group of all tiles.

    Raises:
        ValueError: one of them is NaN or infinite.
    """
    found = [(source_GB.amax(1).numpy(), source_GB.amin(1).numpy()) for source_GB in sources_GB]
    magnitudes_G: Magnitudes = np.abs(np.concatenate([np.maximum(high_G, -low_G) for high_G, low_G in found]))  # no -0
    if not np.isfinite(magnitudes_G).all():
        raise ValueError("an element is NaN or infinite")
    return magnitudes_G
