"""The codec seam. Contract, tested over every codec by `tests/contracts/test_codec.py`:

- `encode` is deterministic: the same block gives the same bytes, on any machine with IEEE fp32 arithmetic;
- `decode(encode(x))` has x's length and differs from x by at most `worst_error(x)` in each element;
- decoding is a projection: encoding a decoded block gives the same bytes again;
- `decode` refuses every byte string that is not exactly an encoding of `elems` finite elements;
- an encoding's length is one of `lengths(elems)`: exactly one for a `FixedLengthCodec`, else bounded by `max_encoded_bytes`.

Whoever averages need not decode first: `open` checks an encoding once, and tiles of it are decoded when they are needed, while they are
in a core's cache (`protocols.aggregation.mean.weighted_mean` takes opened blocks).

Legend: E elements of a block.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch

from protocols.parts import Part, read_part

BytesLike = bytes | bytearray | memoryview


class Codec(ABC):
    """Turns an fp32 block into bytes and back."""

    name: str
    """As in `RunSpec.averaging.codec`."""

    @property
    def results(self) -> Codec:
        """How reducers return blocks, and members bring them to a later round; by itself, unless it says otherwise."""
        return self

    @abstractmethod
    def max_encoded_bytes(self, elems: int) -> int:
        """Length that no encoding of a block of that many elements exceeds."""

    def lengths(self, elems: int) -> range:
        """Lengths that such an encoding may have. Whoever receives one refuses any other before it takes a byte."""
        return range(min(elems, 1), self.max_encoded_bytes(elems) + 1)

    @abstractmethod
    def encode(self, block_E: torch.Tensor) -> BytesLike:
        """Encode E finite fp32 elements; may share memory with the block, which must not change while the encoding is in use.

        Raises:
            ValueError: an element is NaN or infinite; only from codecs that see it without another pass over the block.
        """

    @abstractmethod
    def open(self, data: BytesLike, elems: int) -> Part:
        """Check an encoding without decoding it; what it returns shares memory with writable `data`.

        Raises:
            ValueError: not exactly an encoding of `elems` finite elements.
        """

    @abstractmethod
    def worst_error(self, block_E: torch.Tensor) -> float:
        """Largest absolute error that any element may have after a round trip: a bound from the largest magnitude."""

    def error_norm(self, block_E: torch.Tensor) -> float:
        """Largest 2-norm of what a round trip may have changed in a block, given the block or what it was decoded to.

        One huge element says nothing of what happened to others: whoever goes by the largest one lets a liar choose what it is allowed.
        """
        return self.worst_error(block_E) * math.sqrt(block_E.numel())

    def decode(self, data: BytesLike, elems: int) -> torch.Tensor:
        """Decode to a vector of `elems` fp32 elements; may share memory with `data`, so treat it as read-only.

        Raises:
            ValueError: as `open`.
        """
        part = self.open(data, elems)
        if isinstance(part, torch.Tensor):
            return part
        block_E = torch.empty(elems)
        part.read(0, block_E)
        return block_E

    def decode_into(self, data: BytesLike, out_E: torch.Tensor) -> None:
        """Decode to where the block belongs: `out_E`, contiguous fp32 of the block's length. Nothing is written if `data` is refused.

        Raises:
            ValueError: as `open`.
        """
        read_part(self.open(data, out_E.numel()), 0, out_E)


class FixedLengthCodec(Codec):
    """A codec whose lengths depend on nothing but the number of elements."""

    @abstractmethod
    def encoded_bytes(self, elems: int) -> int:
        """Exact length of an encoded block of that many elements."""

    def max_encoded_bytes(self, elems: int) -> int:
        """The exact length."""
        return self.encoded_bytes(elems)

    def lengths(self, elems: int) -> range:
        """Only the exact one."""
        exact = self.encoded_bytes(elems)
        return range(exact, exact + 1)


def norm64(block_E: torch.Tensor) -> float:
    """2-norm, in fp64: squares of fp32 numbers need not fit fp32."""
    return float(torch.linalg.vector_norm(block_E.detach(), dtype=torch.float64))


def largest_magnitude(block_E: torch.Tensor) -> float:
    """The largest |x|, 0 if there are no elements, NaN if one is NaN."""
    if not block_E.numel():
        return 0.0
    lowest, highest = torch.aminmax(block_E.detach())
    return max(float(highest), -float(lowest))
