"""The integer codecs: int8, and 4 bits in two forms. Read `blockwise.py` first.

Legend: T elements of a tile, G groups of B elements.
"""

from __future__ import annotations

import numpy as np
import torch

from protocols.codecs.blockwise import BlockwiseCodec, Bytes
from protocols.codecs.grouping import Grouping

_MULTIPLY_ERROR = 2.0**-16
"""x/s is computed as x times the rounded 1/s: two roundings of 2^-24 each, of a number below 128."""


def _largest_rows(magnitudes_GB: Bytes) -> Bytes:
    """Largest byte of each row."""
    largest_G: Bytes = torch.from_numpy(magnitudes_GB).amax(1).numpy()
    return largest_G


class Int8Codec(BlockwiseCodec):
    """8.06 bits an element: integers -127 to 127, symmetric, two's complement, in order; -128 stands for nothing.

    Rounds to the nearest integer, to the even one from the middle. With M the largest magnitude of 256 neighbours, the error is at most
    (1/2 + 2^-16) max(2^-126, (1 + 2^-8) M/127): about M/253.
    """

    name = "int8"
    grouping = Grouping(256, halves=False)
    top = 127
    top_code = 127
    rounding = 0.5 + _MULTIPLY_ERROR

    def write_codes(self, scaled_GB: torch.Tensor, bytes_T: Bytes, tile_elems: int) -> None:
        """Round and narrow."""
        torch.from_numpy(bytes_T.view(np.int8)).copy_(scaled_GB.round_().view(-1)[:tile_elems])

    def read_codes(self, bytes_T: Bytes, tile_elems: int) -> torch.Tensor:
        """As they are."""
        return self.grouping.grouped(torch.from_numpy(bytes_T.view(np.int8)))

    def largest_codes(self, bytes_NT: Bytes, tile_elems: int) -> Bytes:
        """-128 has itself as its magnitude, which is 128 without a sign."""
        codes = bytes_NT.view(np.int8)
        codes_GB = self.read_codes(bytes_NT, tile_elems).numpy() if codes.ndim == 1 else codes.reshape(-1, self.grouping.group_elems)
        return _largest_rows(np.abs(codes_GB).view(np.uint8))


class _NibbleCodec(BlockwiseCodec):
    """Two codes a byte: one of the first half of the tile in the lower four bits, one of the second half in the upper four."""

    grouping = Grouping(128, halves=True)
    top_code = 7

    def unpacked(self, bytes_NT: Bytes, tile_elems: int) -> Bytes:
        """The codes of one tile, or of N full ones, a byte each, G x B; what fills it up is the spare code."""
        filled_elems = self.grouping.groups(tile_elems) * self.grouping.group_elems
        nibbles = np.full((*bytes_NT.shape[:-1], filled_elems), self.spare, dtype=np.uint8)
        (_, lower), (_, upper) = self.grouping.places(tile_elems)
        np.bitwise_and(bytes_NT, np.uint8(15), out=nibbles[..., lower])
        np.right_shift(bytes_NT[..., : tile_elems // 2], np.uint8(4), out=nibbles[..., upper])
        return nibbles.reshape(-1, self.grouping.group_elems)


class Int4Codec(_NibbleCodec):
    """4.13 bits an element: integers -7 to 7, symmetric; code c + 8 stands for c, and 0 for nothing.

    Rounds to the nearest integer, to the even one from the middle. With M the largest magnitude of 128 neighbours, the error is at most
    (1/2 + 2^-16) max(2^-126, (1 + 2^-8) M/7): about M/14.
    """

    name = "int4"
    top = 7
    rounding = 0.5 + _MULTIPLY_ERROR
    spare = 8

    def write_codes(self, scaled_GB: torch.Tensor, bytes_T: Bytes, tile_elems: int) -> None:
        """Combine both halves as small integers in fp32, which is exact, and narrow once."""
        rounded = scaled_GB.round_().view(-1)
        (_, lower), (_, upper) = self.grouping.places(tile_elems)
        rounded[: tile_elems // 2].add_(rounded[upper], alpha=16)
        torch.from_numpy(bytes_T.view(np.int8)).copy_(rounded[lower])
        bytes_T += np.uint8(0x88)

    def read_codes(self, bytes_T: Bytes, tile_elems: int) -> torch.Tensor:
        """Split and centre."""
        nibbles_GB = self.unpacked(bytes_T, tile_elems).view(np.int8)
        nibbles_GB -= np.int8(8)
        return torch.from_numpy(nibbles_GB)

    def largest_codes(self, bytes_NT: Bytes, tile_elems: int) -> Bytes:
        """8 for the code that stands for nothing."""
        codes_GB = self.read_codes(bytes_NT, tile_elems).numpy()
        return _largest_rows(np.abs(codes_GB, out=codes_GB).view(np.uint8))


class E3M0Codec(_NibbleCodec):
    """4.13 bits an element: a sign and three exponent bits, no mantissa (Streaming DiLoCo, arXiv 2501.18512: outer gradients).

    Exponent 0 stands for a zero with that sign, exponent e for 2^(e-1). Rounds to the nearest of 0, 1, 2, 4, ..., 64, to the larger one
    from the middle, after rounding to eleven significant bits. So small numbers keep a relative precision: with s the scale of 128
    neighbours, the error of x is at most max(|x|/3, s/2) (1 + 2^-9). With M their largest magnitude that is at most
    (16 + 2^-5) max(2^-126, (1 + 2^-8) M/64): about M/4. Magnitudes beyond 2^118 are cut off.
    """

    name = "e3m0"
    top = 64
    rounding = 16.0 + 2.0**-5
    limit = 2.0**118
    unit = 2.0**-14
    """The smallest normal fp16 number: there an integer's exponent bits are its code, and what is below half of it rounds to zero."""

    def write_codes(self, scaled_GB: torch.Tensor, bytes_T: Bytes, tile_elems: int) -> None:
        """The sign and the lower exponent bits of fp16, after half a mantissa has been added to round it away."""
        bits = scaled_GB.to(torch.float16).view(-1).view(torch.int16).numpy().view(np.uint16)
        bits += np.uint16(0x0200)
        bits >>= np.uint16(10)  # 32 sign + exponent
        np.minimum(bits, bits - np.uint16(24), out=bits)  # 8 sign + exponent: without a sign the difference wraps to something larger
        (_, lower), (_, upper) = self.grouping.places(tile_elems)
        bits[: tile_elems // 2] += bits[upper] * np.uint16(16)
        torch.from_numpy(bytes_T.view(np.int8)).copy_(torch.from_numpy(bits[lower].view(np.int16)))

    def read_codes(self, bytes_T: Bytes, tile_elems: int) -> torch.Tensor:
        """The fp16 numbers with these bits."""
        bits = np.zeros(self.grouping.groups(tile_elems) * self.grouping.group_elems, dtype=np.int16)
        wide_T = bytes_T.astype(np.int16)
        (_, lower), (_, upper) = self.grouping.places(tile_elems)
        np.multiply(
            wide_T, np.int16(1 << 12), out=bits[lower]
        )  # both: the sign first, exponent next, then, for one of them, the other code
        np.multiply(wide_T[: tile_elems // 2], np.int16(1 << 8), out=bits[upper])
        bits >>= np.int16(2)
        bits &= np.int16(-0x6400)  # sign and lower exponent bits: 0x9C00
        return torch.from_numpy(bits).view(torch.float16).view(-1, self.grouping.group_elems)

    def largest_codes(self, bytes_NT: Bytes, tile_elems: int) -> Bytes:
        """The largest exponent."""
        codes_GB = self.unpacked(bytes_NT, tile_elems)
        codes_GB &= np.uint8(7)
        return _largest_rows(codes_GB)
