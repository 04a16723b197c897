"""fp16 and bf16: 2 bytes an element, little-endian, round to nearest even; what is too large saturates instead of becoming infinite."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
import torch

from protocols.codecs.base import BytesLike, FixedLengthCodec, largest_magnitude, norm64
from protocols.codecs.full import bytes_view, view_as
from protocols.parts import TILE_ELEMS, tiles


class HalfBlock:
    """An opened block of 16-bit floating-point numbers.

    Args:
        half_E: fp16 or bf16, finite.
    """

    def __init__(self, half_E: torch.Tensor) -> None:
        self.half_E = half_E
        self.elems = half_E.numel()

    def read(self, start: int, out_T: torch.Tensor) -> None:
        """Widen; exact."""
        out_T.copy_(self.half_E[start : start + out_T.numel()])


class _HalfCodec(FixedLengthCodec):
    """What the two have in common.

    Class attributes:
        largest: saturates here.
        infinity: its bits; those of every finite magnitude are smaller, those of every NaN larger.
        relative_error, subnormal_error: half a unit in the last place: relative to a normal number, and absolute for all smaller ones.
    """

    dtype: torch.dtype
    largest: float
    infinity: int
    relative_error: float
    subnormal_error: float

    def encoded_bytes(self, elems: int) -> int:
        """2 bytes an element."""
        return 2 * elems

    def encode(self, block_E: torch.Tensor) -> BytesLike:
        """Saturate and round to nearest even."""
        source_E = block_E.detach().contiguous()
        half_E = torch.empty(source_E.numel(), dtype=torch.int16)
        scratch_T = torch.empty(min(TILE_ELEMS, source_E.numel()))
        for source_T, half_T in zip(tiles(source_E), tiles(half_E), strict=True):
            clamped_T = torch.clamp(source_T, -self.largest, self.largest, out=scratch_T[: source_T.numel()])
            self._round(clamped_T, half_T)
        return bytes_view(half_E.numpy().astype("<i2", copy=False))

    @abstractmethod
    def _round(self, clamped_T: torch.Tensor, half_T: torch.Tensor) -> None:
        """Write the 16 bits of each number, which may be overwritten, to `half_T` (int16)."""

    def open(self, data: BytesLike, elems: int) -> HalfBlock:
        """Check that every number is finite.

        Raises:
            ValueError: wrong length, NaN or infinity.
        """
        bits_E = view_as(data, torch.int16, elems)
        scratch_T = torch.empty(min(TILE_ELEMS, elems), dtype=torch.int16)
        for bits_T in tiles(bits_E):
            magnitude_T = torch.bitwise_and(bits_T, 0x7FFF, out=scratch_T[: bits_T.numel()])
            if int(magnitude_T.amax()) >= self.infinity:
                raise ValueError("an element is NaN or infinite")
        return HalfBlock(bits_E.view(self.dtype))

    def worst_error(self, block_E: torch.Tensor) -> float:
        """Half a unit in the last place of the largest element, plus what saturation cuts off."""
        if not block_E.numel():
            return 0.0
        largest = largest_magnitude(block_E)
        return max(min(largest, self.largest) * self.relative_error, self.subnormal_error) + max(0.0, largest - self.largest)

    def error_norm(self, block_E: torch.Tensor) -> float:
        """Half a unit in the last place of each element."""
        cut_off = max(0.0, largest_magnitude(block_E) - self.largest)
        return self.relative_error * norm64(block_E) + (self.subnormal_error + cut_off) * math.sqrt(block_E.numel())


class Fp16Codec(_HalfCodec):
    """IEEE half precision: error at most max(2^-11 |x|, 2^-25) up to 65504, and what is beyond that is cut off."""

    name = "fp16"
    dtype = torch.float16
    largest = 65504.0
    infinity = 0x7C00
    relative_error = 2.0**-11
    subnormal_error = 2.0**-25

    def _round(self, clamped_T: torch.Tensor, half_T: torch.Tensor) -> None:
        half_T.view(torch.float16).copy_(clamped_T)


class Bf16Codec(_HalfCodec):
    """The upper half of fp32: error at most max(2^-8 |x|, 2^-134) up to 2^128 - 2^120, and what is beyond that is cut off."""

    name = "bf16"
    dtype = torch.bfloat16
    largest = 2.0**128 - 2.0**120
    infinity = 0x7F80
    relative_error = 2.0**-8
    subnormal_error = 2.0**-134

    def _round(self, clamped_T: torch.Tensor, half_T: torch.Tensor) -> None:
        """In integers: processors' own instructions for this differ in what they do with subnormal numbers."""
        bits_T = clamped_T.numpy().view(np.uint32)
        odd_T = (bits_T >> np.uint32(16)) & np.uint32(1)
        bits_T += np.uint32(0x7FFF)
        bits_T += odd_T
        half_T.copy_(torch.from_numpy((bits_T >> np.uint32(16)).view(np.int32)))
