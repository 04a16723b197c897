"""The averaged vector of a round as it fills up, block by block."""

from __future__ import annotations

import sys

import torch

from peers.memory import KeptMemory
from protocols.codecs import Codec
from protocols.codecs.full import Fp32Codec
from protocols.content import block_hash, content_hash
from protocols.frames import BlockBytes, BytesLike
from protocols.ids import BlockIndex
from protocols.layout import Blocks
from protocols.parts import Part, read_part


class RoundResult:
    """What we hold of a round's result.

    Args:
        blocks: how it is cut.
        codec: how blocks travel.
        memory: where the vector lies.
    """

    def __init__(self, blocks: Blocks, codec: Codec, memory: KeptMemory) -> None:
        self.blocks = blocks
        self._codec = codec
        self._memory = memory
        self._in_place = isinstance(codec, Fp32Codec) and sys.byteorder == "little"
        self.averaged_D = memory.vector(blocks.size_elems)
        self.masks: dict[BlockIndex, int] = {}
        self.contents: list[bytes] = [b""] * blocks.count
        self.hashes: list[bytes] = [b""] * blocks.count
        self._lengths: list[int] = [0] * blocks.count

    def without_vector(self) -> RoundResult:
        """One that holds nothing, for whoever needs ours no longer."""
        return RoundResult(Blocks(1, 1), self._codec, self._memory)

    @property
    def encoded_bytes(self) -> int:
        """What the blocks that were put here took on the wire."""
        return sum(self._lengths)

    def buffer_for(self, block: BlockIndex, total_bytes: int) -> BytesLike:
        """Where an encoded block is received: in its place, if its encoding is what is kept there. What was held there is lost."""
        if not self._in_place:
            return self._memory.array(total_bytes).data
        self.hashes[block] = b""
        start, stop = self.blocks.span(block)
        return self.averaged_D[start:stop].numpy().data.cast("B") if stop > start else b""

    def put(self, item: BlockBytes, part_E: Part) -> None:
        """Keep one reduced block, given as its codec has opened it. Runs in the pool."""
        start, stop = self.blocks.span(item.block)
        place_E = self.averaged_D[start:stop]
        if not isinstance(part_E, torch.Tensor) or part_E.data_ptr() != place_E.data_ptr():  # or it is in its place already
            read_part(part_E, 0, place_E)
        self.masks[item.block] = item.contributors
        self._lengths[item.block] = memoryview(item.data).nbytes
        self.contents[item.block] = item.content or content_hash(item.data)
        self.hashes[item.block] = block_hash(self.contents[item.block], item.contributors)
