"""fp32 as it is: 4 bytes an element, little-endian, no error."""

from __future__ import annotations

import torch

BytesLike = bytes | bytearray | memoryview


def read_finite(data: BytesLike, dtype: torch.dtype, elems: int) -> torch.Tensor:
    """View little-endian bytes as a vector; read-only bytes are copied first, because torch has no read-only tensors.

    Raises:
        ValueError: wrong length, or a number that is NaN or infinite.
    """
    view = memoryview(data)
    if view.nbytes != elems * dtype.itemsize:
        raise ValueError(f"{view.nbytes} bytes where {elems * dtype.itemsize} were expected")
    if not elems:
        return torch.empty(0, dtype=dtype)
    vector = torch.frombuffer(bytearray(view) if view.readonly else data, dtype=dtype)
    # One pass in the usual case: a NaN or an infinity makes the sum non-finite, and so, rarely, does an honest overflow.
    if not bool(torch.isfinite(vector.sum(dtype=torch.float32))) and not bool(torch.isfinite(vector).all()):
        raise ValueError("an element is NaN or infinite")
    return vector


class Fp32Codec:
    """Identity codec."""

    name = "fp32"

    def encoded_bytes(self, elems: int) -> int:
        """4 bytes an element."""
        return 4 * elems

    def encode(self, block_E: torch.Tensor) -> BytesLike:
        """Little-endian IEEE fp32; shares memory with the block where it can."""
        return block_E.detach().contiguous().numpy().astype("<f4", copy=False).data.cast("B")

    def decode(self, data: BytesLike, elems: int) -> torch.Tensor:
        """Shares memory with writable `data`.

        Raises:
            ValueError: wrong length, NaN or infinity.
        """
        return read_finite(data, torch.float32, elems)

    def worst_error(self, block_E: torch.Tensor) -> float:
        """Exact: 0."""
        return 0.0
