"""E3M0: a sign and three exponent bits. Read `blockwise.py` first.

Legend: T elements of a tile, G groups of B elements.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
import torch

from protocols.codecs.base import largest_magnitude, norm64
from protocols.codecs.blockwise import BlockwiseCodec, Bytes, ScaleBits, largest_rows, nibbles
from protocols.codecs.grouping import Grouping
from protocols.parts import TILE_ELEMS, tiles

_UPPER = 1 if sys.byteorder == "little" else 0
_INFINITY = 0x7F80
_HALF_MANTISSA = np.int16(0x0040)
_MANTISSA_BITS = np.int16(7)
"""Of the upper 16 bits of an fp32 number. They decide everything here: a magnitude goes up to the next power of two if its mantissa, of
which they hold the upper bits, is at least a half."""

_TOP_CODE = np.int16(7)
_SMALLEST_TOP = np.int16(7)
"""Exponent bits of a group's largest power, at least: a 64th of it is no subnormal number."""

_LARGEST_TOP = np.int16(246)
"""At most: 2^119."""


class E3M0Codec(BlockwiseCodec):
    """4.06 bits an element (Streaming DiLoCo, arXiv 2501.18512, sends its outer gradients so).

    Integers are 0 and the powers of two from 1 to 64, with a sign: in a code, above the exponent e, which is 0 for 0 and else stands for
    2^(e-1). A magnitude goes to the nearer of two powers, from the middle to the larger, and below 3/4 to 0 (below 1/2 with the smallest
    scale, where it is subnormal). A group's scale s is a power of two, at least 2^-126, such that the largest magnitude M goes to 64. So
    numbers keep a relative precision over a range of 64: the error of x is at most max(abs(x)/3, 3/4 s), and s at most M/48. Magnitudes
    beyond 2^119 are cut off.
    """

    name = "e3m0"
    grouping = Grouping(256, halves=True)
    top = 64
    top_code = int(_TOP_CODE)
    scale_step = 0x0100
    limit = 2.0 ** (int(_LARGEST_TOP) - 127)
    unit = 2.0**-14
    """The smallest normal fp16 number: there a power's exponent bits are its code."""

    def encode_tiles(self, sources_GB: Sequence[torch.Tensor], bits_G: ScaleBits, bytes_E: Bytes, elems: int) -> None:
        """One pass over the source; everything else happens to the upper half of its bits.

        Raises:
            ValueError: an element is NaN or infinite.
        """
        groups, width = self.grouping.tile_groups, self.grouping.tile_bytes
        for index, source_GB in enumerate(sources_GB):
            scales = bits_G[index * groups : (index + 1) * groups]
            packed = bytes_E[index * width : (index + 1) * width]
            self._encode_tile(source_GB, scales, packed, min(TILE_ELEMS, elems - index * TILE_ELEMS))

    def _encode_tile(self, source_GB: torch.Tensor, bits_G: ScaleBits, bytes_T: Bytes, tile_elems: int) -> None:
        upper_GB = np.ascontiguousarray(source_GB.numpy().view(np.int16)[:, _UPPER::2])
        magnitudes_GB = torch.from_numpy(upper_GB & np.int16(0x7FFF))
        largest_G = magnitudes_GB.amax(1).numpy()
        if int(largest_G.max()) >= _INFINITY:
            raise ValueError("an element is NaN or infinite")
        tops_G = (largest_G + _HALF_MANTISSA) >> _MANTISSA_BITS
        tops_G = np.minimum(np.maximum(tops_G, _SMALLEST_TOP), _LARGEST_TOP)
        bits_G[:] = (tops_G - (_TOP_CODE - np.int16(1))) << np.int16(8)
        offsets_G = _HALF_MANTISSA - ((tops_G - _TOP_CODE) << _MANTISSA_BITS)  # makes exponents codes, and rounds them
        magnitudes_GB += torch.from_numpy(offsets_G).unsqueeze(1)
        exponents_GB = magnitudes_GB.numpy()
        exponents_GB >>= _MANTISSA_BITS
        magnitudes_GB.clamp_(0, int(_TOP_CODE))
        codes_GB = upper_GB.view(np.uint16)
        codes_GB >>= np.uint16(12)
        codes_GB &= np.uint16(8)
        codes_GB |= exponents_GB.view(np.uint16)
        codes, ((_, lower), (_, upper)) = codes_GB.reshape(-1), self.grouping.places(tile_elems)
        codes[: tile_elems // 2] |= codes[upper] * np.uint16(16)
        torch.from_numpy(bytes_T.view(np.int8)).copy_(torch.from_numpy(codes[lower].view(np.int16)))

    def read_codes(self, bytes_T: Bytes, tile_elems: int) -> torch.Tensor:
        """The fp16 numbers with these bits."""
        bits = np.zeros(self.grouping.groups(tile_elems) * self.grouping.group_elems, dtype=np.int16)
        wide_T = bytes_T.astype(np.int16)
        (_, lower), (_, upper) = self.grouping.places(tile_elems)
        # In both, the sign comes first and the exponent next; what comes then is masked.
        np.multiply(wide_T, np.int16(1 << 12), out=bits[lower])
        np.multiply(wide_T[: tile_elems // 2], np.int16(1 << 8), out=bits[upper])
        bits >>= np.int16(2)
        bits &= np.int16(-0x6400)  # sign and lower exponent bits: 0x9C00
        return torch.from_numpy(bits).view(torch.float16).view(-1, self.grouping.group_elems)

    def largest_codes(self, bytes_NT: Bytes, tile_elems: int) -> Bytes:
        """The largest exponent."""
        codes_GB = nibbles(self.grouping, bytes_NT, tile_elems, self.spare)
        codes_GB &= np.uint8(7)
        return largest_rows(codes_GB)

    def error_norm(self, block_E: torch.Tensor) -> float:
        """Half of each element that is left, a third of what it was, and 3/4 of the scale of its group."""
        groups = [self.grouping.grouped(source_T).abs().amax(1) for source_T in tiles(block_E.detach())]
        scales = math.hypot(*(norm64(group_G) for group_G in groups)) / 48
        subnormal = (2.0**-126 + max(0.0, largest_magnitude(block_E) - self.limit)) * math.sqrt(block_E.numel())
        found = math.hypot(norm64(block_E) / 2, 0.75 * scales * math.sqrt(self.grouping.group_elems)) + subnormal
        largest = largest_magnitude(block_E)
        return min(found, (largest / 2 + 2.0**-126) * math.sqrt(block_E.numel())) if largest <= self.limit else found

    def worst_error(self, block_E: torch.Tensor) -> float:
        """A third of the largest magnitude, and what the limit cuts off."""
        largest = largest_magnitude(block_E)
        return max(largest / 3, 0.75 * 2.0**-126 if largest else 0.0) + max(0.0, largest - self.limit)
