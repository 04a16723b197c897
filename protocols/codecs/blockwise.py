"""What int8 and the 4-bit codecs have in common: groups of elements with a scale each, elements as small integers times that scale.

Format: all scales, 16 bits each, then all codes (`grouping.py` has their order, `integer.py` their bits).

A scale has 8 exponent and 8 mantissa bits: those of a positive fp32 number whose lower 15 bits are zero, little-endian. None is below
2^-126. So an integer of 7 bits times a scale *is* an fp32 number: decoding rounds nothing, and no two machines can differ in it.

A group's scale is s = M/top, rounded up by a factor below 1 + 2^-8: M is the group's largest magnitude, `top` the largest integer. The
integer of M is still `top` after that, so in the decoded group the largest magnitude is exactly `top` s, which gives s again: decoding is a
projection. A group where that does not hold is no encoding and is refused. Only with the smallest scale may all integers be smaller.

Work goes tile by tile, so that all but the first pass over a tile find it in a core's cache, and calls into torch and numpy are few for
the elements they treat. What fits in bytes is left to numpy, which is quicker there.

Legend: E elements of a block, T of a tile, G groups of B elements.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from protocols.codecs.base import BytesLike, Codec, largest_magnitude
from protocols.codecs.full import bytes_view, view_as
from protocols.codecs.grouping import Grouping
from protocols.parts import TILE_ELEMS, tiles

_DROPPED_BITS = np.uint32(15)
_ROUND_UP = np.uint32(2**15 - 1)
_SMALLEST_SCALE = 0x0100
"""2^-126: neither scales nor decoded numbers are ever subnormal."""

_CHECKED_TILES = 8
"""Bytes are few: checking several tiles in one call saves calls."""

FP32_MAX = float(np.finfo(np.float32).max)

Magnitudes = NDArray[np.float32]
ScaleBits = NDArray[np.uint16]
Bytes = NDArray[np.uint8]


def scale_values(bits_G: ScaleBits) -> Magnitudes:
    """The scales that these bits stand for."""
    return (bits_G.astype(np.uint32) << _DROPPED_BITS).view(np.float32)


class BlockwiseCodec(Codec):
    """A codec of small integers; a subclass says which.

    Class attributes:
        grouping: which elements share a scale.
        top: largest integer that an element may become.
        top_code: magnitude of its code.
        rounding: how far an integer may be from the number it stands for.
        limit: larger magnitudes are cut off.
        unit: an integer 1 is this number in `write_codes` and `read_codes`; a power of two.
        spare: the upper half of the last byte of an odd block, if a byte has two codes.
    """

    grouping: Grouping
    top: int
    top_code: int
    rounding: float
    limit: float = FP32_MAX
    unit: float = 1.0
    spare: int = 0

    @abstractmethod
    def write_codes(self, scaled_GB: torch.Tensor, bytes_T: Bytes, tile_elems: int) -> None:
        """Round a tile of fp32 numbers, which may be overwritten, and write its codes."""

    @abstractmethod
    def read_codes(self, bytes_T: Bytes, tile_elems: int) -> torch.Tensor:
        """A tile's numbers, G x B, in a type that widens to fp32 exactly; may be a view of the bytes."""

    @abstractmethod
    def largest_codes(self, bytes_NT: Bytes, tile_elems: int) -> Bytes:
        """Largest magnitude of a code in each group of one tile, or of N full ones; above `top_code` if a code stands for nothing."""

    def encoded_bytes(self, elems: int) -> int:
        """Two bytes a group, and the codes."""
        return 2 * self.grouping.groups(elems) + self.grouping.code_bytes(elems)

    def scales_for(self, magnitudes_G: Magnitudes) -> ScaleBits:
        """The scales of groups whose largest magnitudes these are."""
        raised_G = (magnitudes_G / np.float32(self.top)).view(np.uint32)
        raised_G += _ROUND_UP
        raised_G >>= _DROPPED_BITS
        return np.clip(raised_G, _SMALLEST_SCALE, self._largest_scale).astype("<u2")

    @property
    def _largest_scale(self) -> int:
        """Rounded down: `top` times it does not exceed the limit."""
        return int(np.array(self.limit / self.top, dtype=np.float32).view(np.uint32) >> _DROPPED_BITS)

    def encode(self, block_E: torch.Tensor) -> BytesLike:
        """Encode E finite elements.

        Raises:
            ValueError: an element is NaN or infinite.
        """
        source_E = block_E.detach().contiguous()
        elems = source_E.numel()
        if not elems:
            return b""
        sources_GB = [self.grouping.grouped(source_T) for source_T in tiles(source_E)]
        magnitudes_G = _magnitudes(sources_GB)
        if magnitudes_G.max() > self.limit:
            sources_GB = [source_GB.clamp(-self.limit, self.limit) for source_GB in sources_GB]
            magnitudes_G = np.minimum(magnitudes_G, np.float32(self.limit))
        bits_G = self.scales_for(magnitudes_G)
        data = np.empty(self.encoded_bytes(elems), dtype=np.uint8)
        data[: bits_G.nbytes] = bits_G.view(np.uint8)
        factors_G = torch.from_numpy(np.float32(self.unit) / scale_values(bits_G)).unsqueeze(1)
        self._encode_tiles(sources_GB, factors_G, data[bits_G.nbytes :], elems)
        return bytes_view(data)

    def _encode_tiles(self, sources_GB: Sequence[torch.Tensor], factors_G: torch.Tensor, bytes_E: Bytes, elems: int) -> None:
        scratch_GB = torch.empty_like(sources_GB[0])
        groups, width = self.grouping.tile_groups, self.grouping.tile_bytes
        for index, source_GB in enumerate(sources_GB):
            factors = factors_G[index * groups : (index + 1) * groups]
            scaled_GB = torch.mul(source_GB, factors, out=scratch_GB[: len(source_GB)])
            self.write_codes(scaled_GB, bytes_E[index * width : (index + 1) * width], min(TILE_ELEMS, elems - index * TILE_ELEMS))

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
        if int(bits_G.max()) > self._largest_scale or int(bits_G.min()) < _SMALLEST_SCALE:
            raise ValueError("a scale is NaN or infinite" if not np.isfinite(scale_values(bits_G)).all() else "a scale is out of range")

    def _check_codes(self, block: BlockwiseBlock, bits_G: ScaleBits) -> None:
        largest_G = self._largest_codes(block)
        spare = int(block.bytes_E[-1]) >> 4 if self.grouping.halves and block.elems % 2 else self.spare
        if int(largest_G.max()) > self.top_code or spare != self.spare:
            raise ValueError("a code stands for nothing")
        if bool(((largest_G != self.top_code) & (bits_G != _SMALLEST_SCALE)).any()):
            raise ValueError("a scale is larger than its group needs")

    def _largest_codes(self, block: BlockwiseBlock) -> Bytes:
        width, (full_tiles, rest) = self.grouping.tile_bytes, divmod(block.elems, TILE_ELEMS)
        whole = block.bytes_E[: full_tiles * width].reshape(full_tiles, width)
        found = [self.largest_codes(whole[at : at + _CHECKED_TILES], TILE_ELEMS) for at in range(0, full_tiles, _CHECKED_TILES)]
        if rest:
            found.append(self.largest_codes(block.bytes_E[full_tiles * width :], rest))
        return np.concatenate(found)

    def worst_error(self, block_E: torch.Tensor) -> float:
        """`rounding` times the scale of the largest element, plus what the limit cuts off."""
        if not block_E.numel():
            return 0.0
        largest = largest_magnitude(block_E)
        scale = scale_values(self.scales_for(np.array([min(largest, self.limit)], dtype=np.float32)))
        return self.rounding * float(scale[0]) + max(0.0, largest - self.limit)


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
