"""The codec seam. Contract, tested over every codec by `tests/contracts/test_codec.py`:

- `encode` is deterministic: the same block gives the same bytes;
- `decode(encode(x))` has x's length and differs from x by at most `worst_error(x)` in each element;
- decoding is a projection: encoding a decoded block gives the same bytes again;
- `decode` refuses every byte string that is not exactly an encoding of `elems` finite elements.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Codec(Protocol):
    """Turns an fp32 block into bytes and back."""

    @property
    def name(self) -> str:
        """Name in `RunSpec.averaging.codec`."""

    def encoded_bytes(self, elems: int) -> int:
        """Exact length of an encoded block of that many elements."""

    def encode(self, block_E: torch.Tensor) -> bytes | bytearray | memoryview:
        """Encode E finite fp32 elements; may share memory with the block, which must not change while the encoding is in use."""

    def decode(self, data: bytes | bytearray | memoryview, elems: int) -> torch.Tensor:
        """Decode to a vector of `elems` fp32 elements; may share memory with `data`, so treat it as read-only.

        Raises:
            ValueError: wrong length, or an element that is NaN or infinite.
        """

    def worst_error(self, block_E: torch.Tensor) -> float:
        """Largest absolute error of any element after a round trip."""
