"""fp32 as it is: 4 bytes an element, little-endian, no error."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from protocols.codecs.base import BytesLike, FixedLengthCodec


def all_finite(vector: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite. One pass in the usual case: such an element makes the sum non-finite, too."""
    return bool(torch.isfinite(vector.sum(dtype=torch.float32))) or bool(torch.isfinite(vector).all())  # the sum itself may overflow


def view_as(data: BytesLike, dtype: torch.dtype, elems: int) -> torch.Tensor:
    """View little-endian bytes as a vector; read-only bytes are copied first, because torch has no read-only tensors.

    Raises:
        ValueError: wrong length.
    """
    view = memoryview(data)
    if view.nbytes != elems * dtype.itemsize:
        raise ValueError(f"{view.nbytes} bytes where {elems * dtype.itemsize} were expected")
    if not elems:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(view) if view.readonly else data, dtype=dtype)


def bytes_view(array: np.ndarray[Any, Any]) -> BytesLike:
    """The bytes of a contiguous array without a copy; an empty one has no buffer to look at."""
    return array.data.cast("B") if array.size else b""


class Fp32Codec(FixedLengthCodec):
    """Identity codec."""

    name = "fp32"

    def encoded_bytes(self, elems: int) -> int:
        """4 bytes an element."""
        return 4 * elems

    def encode(self, block_E: torch.Tensor) -> BytesLike:
        """Little-endian IEEE fp32; shares memory with the block where it can."""
        return bytes_view(block_E.detach().contiguous().numpy().astype("<f4", copy=False))

    def open(self, data: BytesLike, elems: int) -> torch.Tensor:
        """The block itself; shares memory with writable `data`.

        Raises:
            ValueError: wrong length, NaN or infinity.
        """
        block_E = view_as(data, torch.float32, elems)
        if not all_finite(block_E):
            raise ValueError("an element is NaN or infinite")
        return block_E

    def worst_error(self, block_E: torch.Tensor) -> float:
        """Exact: 0."""
        return 0.0
