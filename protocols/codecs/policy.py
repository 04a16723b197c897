"""Which codec for which block.

Small blocks cost little on the wire and, in many models, hold what is sensitive: the end of the vector, or everything in a tiny model.
Training Transformers Together, section "Communication", sends tensors up to 2^16 elements in fp16 and larger ones in 8 bits; here the unit
is the block of the flat vector, and small ones stay exact.
"""

from __future__ import annotations

import torch

from protocols.codecs.base import BytesLike, Codec
from protocols.parts import Part

SMALL_BLOCK_ELEMS = 2**16


class SizeAdaptiveCodec(Codec):
    """One codec for small blocks, another one for large blocks. The choice needs nothing but the number of elements, so all members make
    the same one.

    Args:
        name: of the policy.
        small: for blocks of at most `limit_elems`.
        large: for the others.
        limit_elems: elements of the largest small block.
    """

    def __init__(self, name: str, small: Codec, large: Codec, limit_elems: int = SMALL_BLOCK_ELEMS) -> None:
        self.name = name
        self._small = small
        self._large = large
        self._limit_elems = limit_elems

    def chosen(self, elems: int) -> Codec:
        """The codec for blocks of that many elements."""
        return self._small if elems <= self._limit_elems else self._large

    def max_encoded_bytes(self, elems: int) -> int:
        """As the chosen codec has it."""
        return self.chosen(elems).max_encoded_bytes(elems)

    def lengths(self, elems: int) -> range:
        """As the chosen codec has it."""
        return self.chosen(elems).lengths(elems)

    def encode(self, block_E: torch.Tensor) -> BytesLike:
        """As the chosen codec does."""
        return self.chosen(block_E.numel()).encode(block_E)

    def open(self, data: BytesLike, elems: int) -> Part:
        """As the chosen codec does."""
        return self.chosen(elems).open(data, elems)

    def error_norm(self, block_E: torch.Tensor) -> float:
        """As the chosen codec has it."""
        return self.chosen(block_E.numel()).error_norm(block_E)

    def worst_error(self, block_E: torch.Tensor) -> float:
        """As the chosen codec has it."""
        return self.chosen(block_E.numel()).worst_error(block_E)
