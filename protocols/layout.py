"""Flat layout: how named tensors lie in one fp32 vector, and how that vector is cut into blocks.

Shapes: flat_D is one fp32 vector of all D elements; block b covers elements [b * block_elems, min((b + 1) * block_elems, D)).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from blake3 import blake3

from protocols.ids import BlockIndex

_DOMAIN = b"swarm.v1.layout"


@dataclass(frozen=True, slots=True)
class Slot:
    """Place of one named tensor in the flat vector.

    Args:
        name: unique name.
        shape: its shape; () for a scalar.
        start_elems: offset of its first element.
    """

    name: str
    shape: tuple[int, ...]
    start_elems: int

    @property
    def size_elems(self) -> int:
        """Number of elements (1 for a scalar)."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class FlatLayout:
    """Order and shapes of the tensors in a flat vector. The order given is the order kept: every member must build it alike."""

    slots: tuple[Slot, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]) -> FlatLayout:
        """Lay out named tensors one after another.

        Raises:
            ValueError: a name appears twice.
        """
        items = tensors.items() if isinstance(tensors, Mapping) else tensors
        slots: list[Slot] = []
        start_elems = 0
        for name, tensor in items:
            slot = Slot(name, tuple(tensor.shape), start_elems)
            slots.append(slot)
            start_elems += slot.size_elems
        if len({slot.name for slot in slots}) != len(slots):
            raise ValueError("two tensors of a layout have the same name")
        return cls(tuple(slots))

    @cached_property
    def size_elems(self) -> int:
        """D: elements in the flat vector."""
        return sum(slot.size_elems for slot in self.slots)

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that name this layout: names, shapes and order."""
        hasher = blake3(_DOMAIN)
        for slot in self.slots:
            name = slot.name.encode()
            hasher.update(len(name).to_bytes(4, "little") + name + len(slot.shape).to_bytes(1, "little"))
            hasher.update(b"".join(size.to_bytes(8, "little") for size in slot.shape))
        return hasher.digest()

    def views(self, flat_D: torch.Tensor) -> dict[str, torch.Tensor]:
        """Name -> view of `flat_D` in the tensor's shape; writing to a view writes to the vector.

        Raises:
            ValueError: `flat_D` is not one-dimensional with D elements.
        """
        self._check(flat_D)
        return {s.name: flat_D[s.start_elems : s.start_elems + s.size_elems].view(s.shape) for s in self.slots}

    def flatten_into(self, tensors: Mapping[str, torch.Tensor], flat_D: torch.Tensor) -> None:
        """Copy every named tensor to its place (from any device and dtype).

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        for name, view in self.views(flat_D).items():
            if name not in tensors or tensors[name].shape != view.shape:
                raise ValueError(f"tensor {name!r} is missing or does not have the shape {tuple(view.shape)}")
            view.copy_(tensors[name].detach())

    def _check(self, flat_D: torch.Tensor) -> None:
        if flat_D.dim() != 1 or flat_D.numel() != self.size_elems:
            raise ValueError(f"expected a vector of {self.size_elems} elements, not a tensor of shape {tuple(flat_D.shape)}")


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a flat vector is cut.

    Args:
        size_elems: D, at least 1.
        block_elems: elements in each block but the last, at least 1.
    """

    size_elems: int
    block_elems: int

    def __post_init__(self) -> None:
        if self.size_elems < 1 or self.block_elems < 1:
            raise ValueError("a vector and its blocks have at least one element")

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.size_elems // self.block_elems)

    def span(self, block: BlockIndex) -> tuple[int, int]:
        """First element and one past the last of a block.

        Raises:
            IndexError: no such block.
        """
        if not 0 <= block < self.count:
            raise IndexError(f"block {block} of {self.count}")
        start = block * self.block_elems
        return start, min(start + self.block_elems, self.size_elems)

    def elems(self, block: BlockIndex) -> int:
        """Elements in a block."""
        start, stop = self.span(block)
        return stop - start
