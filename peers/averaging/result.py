"""The averaged vector of a round as it fills up, block by block."""

from __future__ import annotations

import torch

from protocols.frames import BlockBytes
from protocols.ids import BlockIndex
from protocols.layout import Blocks
from protocols.messages import block_hash, content_hash


class RoundResult:
    """What we hold of a round's result.

    Args:
        blocks: how it is cut.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.averaged_D = torch.empty(blocks.size_elems, dtype=torch.float32)
        self.masks: dict[BlockIndex, int] = {}
        self.contents: list[bytes] = [b""] * blocks.count
        self.hashes: list[bytes] = [b""] * blocks.count

    def put(self, item: BlockBytes, decoded_E: torch.Tensor) -> None:
        """Keep one reduced block. Runs in the pool."""
        start, stop = self.blocks.span(item.block)
        if decoded_E.data_ptr() != self.averaged_D[start:stop].data_ptr():  # a lossless codec decodes what was reduced in place to itself
            self.averaged_D[start:stop] = decoded_E
        self.masks[item.block] = item.contributors
        self.contents[item.block] = content_hash(item.data)
        self.hashes[item.block] = block_hash(self.contents[item.block], item.contributors)
