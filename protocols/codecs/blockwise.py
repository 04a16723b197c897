"""What int8 and the 4-bit codecs have in common: groups of elements with a scale each, elements as small integers times that scale.

Format: all scales, 16 bits each, then all codes (`grouping.py` has their order, `linear.py` and `exponent.py` their bits).

A scale has 8 exponent and 8 mantissa bits: those of a positive fp32 number whose lower 15 bits are zero, little-endian. None is below
2^-126. So an integer of 7 bits times a scale *is* an fp32 number: decoding rounds nothing, and no two machines can differ in it.

The scale of a group follows from its largest magnitude, and is chosen so that this becomes the largest integer there is. In a decoded group
it is therefore exactly that integer times the scale, which gives the same scale again: decoding is a projection. A group where that does
not hold is no encoding and is refused. Only with the smallest scale may all integers be smaller.

Work goes tile by tile, so that what is written by one call is in a core's cache for the next, and calls into torch and numpy are few for
the elements they treat. Either one is used where it is quicker.

Legend: E elements of a block, T of a tile, G groups of B elements.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from protocols.codecs.base import BytesLike, FixedLengthCodec
from protocols.codecs.full import bytes_view, view_as
from protocols.codecs.grouping import Grouping
from protocols.parts import TILE_ELEMS, tiles

DROPPED_BITS = np.uint32(15)
SMALLEST_SCALE = 0x0100
"""2^-126: neither scales nor decoded numbers are ever subnormal."""

_CHECKED_TILES = 8
"""Bytes are few: checking several tiles in one call saves calls."""

FP32_MAX = float(np.finfo(np.float32).max)

Magnitudes = NDArray[np.float32]
ScaleBits = NDArray[np.uint16]
Bytes = NDArray[np.uint8]


def nibbles(grouping: Grouping, bytes_NT: Bytes, tile_elems: int, spare: int) -> Bytes:
    """The 4-bit codes of one tile, or of N full ones, a byte each, G x B; what fills it up is the spare code."""
    codes = np.full((*bytes_NT.shape[:-1], grouping.groups(tile_elems) * grouping.group_elems), spare, dtype=np.uint8)
    (_, lower), (_, upper) = grouping.places(tile_elems)
    np.bitwise_and(bytes_NT, np.uint8(15), out=codes[..., lower])
    np.right_shift(bytes_NT[..., : tile_elems // 2], np.uint8(4), out=codes[..., upper])
    return codes.reshape(-1, grouping.group_elems)


def largest_rows(magnitudes_GB: Bytes) -> Bytes:
    """Largest byte of each row."""
    largest_G: Bytes = torch.from_numpy(magnitudes_GB).amax(1).numpy()
    return largest_G


def scale_values(bits_G: ScaleBits) -> Magnitudes:
    """The scales that these bits stand for."""
    return (bits_G.astype(np.uint32) << DROPPED_BITS).view(np.float32)


class BlockwiseCodec(FixedLengthCodec):
    """A codec of small integers; a subclass says which.

    Class attributes:
        grouping: which elements share a scale.
        top: largest integer that an element may become.
        top_code: magnitude of its code.
        scale_step: bits of scales are multiples of this.
        limit: larger magnitudes are cut off.
        unit: an integer 1 is this number in `read_codes`; a power of two.
        spare: the upper half of the last byte of an odd block, if a byte has two codes.
    """

    grouping: Grouping
    top: int
    top_code: int
    scale_step: int = 1
    limit: float = FP32_MAX
    unit: float = 1.0
    spare: int = 0

    def __init__(self) -> None:
        self.largest_scale = int(np.array(self.limit / self.top, dtype=np.float32).view(np.uint32) >> DROPPED_BITS)
        """Bits of it. Rounded down: `top` times it does not exceed the limit."""

    @abstractmethod
    def encode_tiles(self, sources_GB: Sequence[torch.Tensor], bits_G: ScaleBits, bytes_E: Bytes, elems: int) -> None:
        """Write the scales of all groups and the codes of all elements.

        Raises:
            ValueError: an element is NaN or infinite.
        """

    @abstractmethod
    def read_codes(self, bytes_T: Bytes, tile_elems: int) -> torch.Tensor:
        """A tile's numbers, G x B, in a type that widens to fp32 exactly; may be a view of the bytes."""

    @abstractmethod
    def largest_codes(self, bytes_NT: Bytes, tile_elems: int) -> Bytes:
        """Largest magnitude of a code in each group of one tile, or of N full ones; above `top_code` if a code stands for nothing."""

    def encoded_bytes(self, elems: int) -> int:
        """Two bytes a group, and the codes."""
        return 2 * self.grouping.groups(elems) + self.grouping.code_bytes(elems)

    def encode(self, block_E: torch.Tensor) -> BytesLike:
        """Encode E finite elements.

        Raises:
            ValueError: an element is NaN or infinite.
        """
        source_E = block_E.detach().contiguous()
        elems = source_E.numel()
        if not elems:
            return b""
        data = np.empty(self.encoded_bytes(elems), dtype=np.uint8)
        scale_bytes = 2 * self.grouping.groups(elems)
        sources_GB = [self.grouping.grouped(source_T) for source_T in tiles(source_E)]
        self.encode_tiles(sources_GB, data[:scale_bytes].view("<u2"), data[scale_bytes:], elems)
        return bytes_view(data)

    def open(self, data: BytesLike, elems: int) -> BlockwiseBlock:
        """Check scales and codes.

        Raises:
            ValueError: wrong length, a scale that is NaN or infinite or that groups with such codes do not have, a code that stands for
                nothing.
        """
        bytes_E = view_as(data, torch.uint8, self.encoded_bytes(elems)).numpy()
        scale_bytes = 2 * self.grouping.groups(elems)
        bits_G = bytes_E[:scale_bytes].view("<u2")
        if elems:
            self._check_scales(bits_G)
        block = BlockwiseBlock(self, bytes_E[scale_bytes:], scale_values(bits_G), elems)
        if elems:
            self._check_codes(block, bits_G)
        return block

    def _check_scales(self, bits_G: ScaleBits) -> None:
        if int(bits_G.max()) > self.largest_scale or int(bits_G.min()) < SMALLEST_SCALE:
            raise ValueError("a scale is NaN or infinite" if not np.isfinite(scale_values(bits_G)).all() else "a scale is out of range")
        if self.scale_step > 1 and int(np.bitwise_or.reduce(bits_G)) % self.scale_step:
            raise ValueError("a scale is no power of two")

    def _check_codes(self, block: BlockwiseBlock, bits_G: ScaleBits) -> None:
        largest_G = self._largest_codes(block)
        spare = int(block.bytes_E[-1]) >> 4 if self.grouping.halves and block.elems % 2 else self.spare
        if int(largest_G.max()) > self.top_code or spare != self.spare:
            raise ValueError("a code stands for nothing")
        if bool(((largest_G != self.top_code) & (bits_G != SMALLEST_SCALE)).any()):
            raise ValueError("a scale is larger than its group needs")

    def _largest_codes(self, block: BlockwiseBlock) -> Bytes:
        width, (full_tiles, rest) = self.grouping.tile_bytes, divmod(block.elems, TILE_ELEMS)
        whole = block.bytes_E[: full_tiles * width].reshape(full_tiles, width)
        found = [self.largest_codes(whole[at : at + _CHECKED_TILES], TILE_ELEMS) for at in range(0, full_tiles, _CHECKED_TILES)]
        if rest:
            found.append(self.largest_codes(block.bytes_E[full_tiles * width :], rest))
        return np.concatenate(found)


class BlockwiseBlock:
    """An opened block of small integers.

    Args:
        codec: what it was encoded with.
        bytes_E: its codes.
        scales_G: its scales.
        elems: its elements.
    """

    def __init__(self, codec: BlockwiseCodec, bytes_E: Bytes, scales_G: Magnitudes, elems: int) -> None:
        self.codec = codec
        self.bytes_E = bytes_E
        self.factors_G = torch.from_numpy(scales_G / np.float32(codec.unit)).unsqueeze(1)
        self.elems = elems

    def read(self, start: int, out_T: torch.Tensor) -> None:
        """Integer times scale; exact."""
        groups = self.codec.grouping.tile_groups
        width = self.codec.grouping.tile_bytes
        for index, tile_T in enumerate(tiles(out_T), start // TILE_ELEMS):
            codes_GB = self.codec.read_codes(self.bytes_E[index * width : (index + 1) * width], tile_T.numel())
            factors_G = self.factors_G[index * groups : (index + 1) * groups]
            if tile_T.numel() == TILE_ELEMS:
                tile_T.view(codes_GB.shape).copy_(codes_GB).mul_(factors_G)
            else:
                self.codec.grouping.ungroup(codes_GB.to(torch.float32).mul_(factors_G), tile_T)
