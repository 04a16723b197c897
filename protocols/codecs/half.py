"""fp16: 2 bytes an element, round to nearest even; magnitudes beyond 65504 saturate instead of becoming infinite."""

from __future__ import annotations

import torch

from protocols.codecs.full import BytesLike, bytes_view, read_finite

_LARGEST = 65504.0
_RELATIVE_ERROR = 2.0**-11
_SUBNORMAL_ERROR = 2.0**-25


class Fp16Codec:
    """IEEE half precision."""

    name = "fp16"

    def encoded_bytes(self, elems: int) -> int:
        """2 bytes an element."""
        return 2 * elems

    def encode(self, block_E: torch.Tensor) -> BytesLike:
        """Little-endian IEEE fp16, saturating."""
        half_E = block_E.detach().clamp(-_LARGEST, _LARGEST).to(torch.float16)
        return bytes_view(half_E.contiguous().numpy().astype("<f2", copy=False))

    def decode(self, data: BytesLike, elems: int) -> torch.Tensor:
        """A new fp32 vector.

        Raises:
            ValueError: wrong length, NaN or infinity.
        """
        return read_finite(data, torch.float16, elems).to(torch.float32)

    def worst_error(self, block_E: torch.Tensor) -> float:
        """Half a unit in the last place of the largest element, plus what saturation cuts off."""
        if not block_E.numel():
            return 0.0
        largest = float(block_E.abs().max())
        return max(min(largest, _LARGEST) * _RELATIVE_ERROR, _SUBNORMAL_ERROR) + max(0.0, largest - _LARGEST)
