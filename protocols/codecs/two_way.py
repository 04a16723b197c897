"""One codec for what members contribute, and another for what reducers return.

A mean of many members' sparse blocks has more elements that matter than any of them, so fewer may go up than come back.
"""

from __future__ import annotations

import torch

from protocols.codecs.base import BytesLike, Codec
from protocols.parts import Part


class TwoWayCodec(Codec):
    """Contributions as the one codec has them, in all that a codec can do; results as the other.

    Args:
        name: as in a run.
        up: of contributions.
        back: of results.
    """

    def __init__(self, name: str, up: Codec, back: Codec) -> None:
        self.name = name
        self._up = up
        self._back = back

    @property
    def results(self) -> Codec:
        """The other one."""
        return self._back

    def max_encoded_bytes(self, elems: int) -> int:
        """Of a contribution."""
        return self._up.max_encoded_bytes(elems)

    def lengths(self, elems: int) -> range:
        """Of a contribution."""
        return self._up.lengths(elems)

    def encode(self, block_E: torch.Tensor) -> BytesLike:
        """See `Codec.encode`."""
        return self._up.encode(block_E)

    def open(self, data: BytesLike, elems: int) -> Part:
        """See `Codec.open`."""
        return self._up.open(data, elems)

    def worst_error(self, block_E: torch.Tensor) -> float:
        """See `Codec.worst_error`."""
        return self._up.worst_error(block_E)

    def error_norm(self, block_E: torch.Tensor) -> float:
        """See `Codec.error_norm`."""
        return self._up.error_norm(block_E)
