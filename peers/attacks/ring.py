"""What attackers of one run know together, and what each of them is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from peers.conduct import Conduct
from protocols.ids import BlockIndex, Epoch, PeerId
from protocols.trust.statements import Charge


@dataclass
class Ring:
    """Attackers that work together: they see each other's memory, and what they could see by listening in everywhere.

    Args:
        members: all of them.
        victims: honest members that they pick on.
        block_elems: elements in a block.
        rng: drawn from by all.
        first_epoch: in which they begin; until then they are honest.

    Attributes:
        vectors: what everybody contributes in this epoch, attackers' own as they send it; for those who need it.
        weights: what each counts for.
        sent: what attackers contribute instead of their gradients.
        lies: what a reducer among them has made of a block, and the radius that it stated, in this epoch.
    """

    members: frozenset[PeerId]
    victims: frozenset[PeerId]
    block_elems: int
    rng: np.random.Generator
    first_epoch: Epoch = Epoch(0)  # noqa: RUF009
    vectors: Mapping[PeerId, torch.Tensor] = field(default_factory=dict)
    weights: Mapping[PeerId, float] = field(default_factory=dict)
    sent: Mapping[PeerId, tuple[torch.Tensor, float]] = field(default_factory=dict)
    lies: dict[BlockIndex, tuple[Epoch, torch.Tensor, float]] = field(default_factory=dict)

    def direction(self, elems: int) -> torch.Tensor:
        """A random one of length 1."""
        drawn_E: torch.Tensor = torch.from_numpy(self.rng.standard_normal(elems, dtype=np.float32))
        length = float(drawn_E.norm())
        return drawn_E.div_(length)


class Attacker(Conduct):
    """Honest until the ring begins; as a juror it always finds for its own ring and against everybody else.

    Args:
        me: who it is.
        ring: whom it works with.
    """

    name: ClassVar[str]

    def __init__(self, me: PeerId, ring: Ring) -> None:
        self.me = me
        self.ring = ring
        self.epoch = Epoch(0)

    @property
    def attacks(self) -> bool:
        """Whether it has begun."""
        return self.epoch >= self.ring.first_epoch

    def contribution(self, epoch: Epoch, own_D: torch.Tensor, weight: float) -> tuple[torch.Tensor, float]:
        """Takes note of the epoch."""
        self.epoch = epoch
        return own_D, weight

    def finds(self, charge: Charge, guilty: bool) -> bool | None:
        """Loyal to its ring."""
        return charge.accused not in self.ring.members if self.attacks else guilty


class VectorAttacker(Attacker):
    """Contributes what the ring says (`vectors.py`), and is honest beside."""

    name = "vector"

    def contribution(self, epoch: Epoch, own_D: torch.Tensor, weight: float) -> tuple[torch.Tensor, float]:
        """See `Conduct.contribution`."""
        super().contribution(epoch, own_D, weight)
        return self.ring.sent.get(self.me, (own_D, weight)) if self.attacks else (own_D, weight)
