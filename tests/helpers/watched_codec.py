"""A codec that takes note of what it is asked to do, and when."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import torch

from protocols.codecs.base import BytesLike, Codec
from protocols.parts import Part


@dataclass(frozen=True, slots=True)
class Asked:
    """One block went through.

    Args:
        elems: of the block.
        at_s: by the clock of the running loop.
    """

    elems: int
    at_s: float


@dataclass
class WatchedCodec(Codec):
    """Does what another codec does.

    Args:
        inner: the other one.
        encoded, opened: blocks that it has encoded and opened, in order.
    """

    inner: Codec
    encoded: list[Asked] = field(default_factory=list)
    opened: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = self.inner.name

    def max_encoded_bytes(self, elems: int) -> int:
        return self.inner.max_encoded_bytes(elems)

    def lengths(self, elems: int) -> range:
        return self.inner.lengths(elems)

    def encode(self, block_E: torch.Tensor) -> BytesLike:
        self.encoded.append(Asked(block_E.numel(), asyncio.get_running_loop().time()))
        return self.inner.encode(block_E)

    def open(self, data: BytesLike, elems: int) -> Part:
        self.opened.append(Asked(elems, asyncio.get_running_loop().time()))
        return self.inner.open(data, elems)

    def worst_error(self, block_E: torch.Tensor) -> float:
        return self.inner.worst_error(block_E)
