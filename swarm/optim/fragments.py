"""Which tensors are averaged in which epoch, where a model is averaged in fragments (Streaming DiLoCo, arXiv 2501.18512, section 2.2).

*Strided*: block i of the transformer belongs to fragment i mod P, so that each fragment has early and late layers. What belongs to no block
(embeddings, last norm) goes where there is least, largest first, so that every fragment takes about as many bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from protocols.errors import ConfigError
from protocols.ids import Epoch

_BLOCK = re.compile(r"\.(\d+)\.")
"""The first number among a parameter's names: `transformer.h.3.mlp...`."""


def fragments_of(tensors: Mapping[str, torch.Tensor], count: int) -> tuple[tuple[str, ...], ...]:
    """Names of the tensors of each fragment, in the model's order.

    Args:
        tensors: by name.
        count: P, at least 1.

    Raises:
        ConfigError: more fragments than there are blocks and tensors outside of blocks.
    """
    blocks: dict[str, list[str]] = {}
    for name in tensors:
        found = _BLOCK.search(f".{name}.")
        blocks.setdefault(f"block {found[1]}" if found else name, []).append(name)
    if not 1 <= count <= len(blocks):
        raise ConfigError(f"The model has {len(blocks)} parts and cannot be averaged in {count} fragments: lower outer.fragments.")
    elems = [0] * count
    place: dict[str, int] = {}
    numbered = [names for key, names in blocks.items() if key.startswith("block ")]
    loose = sorted((names for key, names in blocks.items() if not key.startswith("block ")), key=lambda names: -_size(tensors, names))
    for index, names in enumerate([*numbered, *loose]):
        fragment = index % count if index < len(numbered) else min(range(count), key=elems.__getitem__)
        elems[fragment] += _size(tensors, names)
        place.update(dict.fromkeys(names, fragment))
    return tuple(tuple(name for name in tensors if place[name] == fragment) for fragment in range(count))


def fragment_at(epoch: Epoch, count: int) -> int:
    """The one that closes an epoch: each in turn."""
    return epoch % count


def _size(tensors: Mapping[str, torch.Tensor], names: list[str]) -> int:
    return sum(tensors[name].numel() for name in names)
