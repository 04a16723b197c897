"""One member of a simulated swarm: what outlives its process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from peers.conduct import HONEST, Conduct
from peers.testing import FixedDirectory, KeyNotary
from protocols.ids import PeerId
from protocols.trust.ledger import Ledger
from scripts.simulation.figures import Vector


@dataclass(eq=False)
class Member:
    """One member; its process may die and start again.

    Args:
        number: from 0.
        notary: its key.
        directory: its view.
        bandwidth_bytes_per_s: of its link; 0 if nobody can dial it.
        conduct: how it behaves.
        ledger: on its disk.
    """

    number: int
    notary: KeyNotary
    directory: FixedDirectory
    bandwidth_bytes_per_s: int
    conduct: Conduct = HONEST
    ledger: Ledger = field(default_factory=Ledger)
    process: asyncio.Task[None] | None = None
    rounds_done: int = 0
    dies_in_round: int | None = None
    dies_after: float = 0.0
    expelled: bool = False
    contribution_D: Vector = field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def peer(self) -> PeerId:
        """Its identity."""
        return self.notary.peer

    @property
    def honest(self) -> bool:
        """Whether it is no attacker."""
        return self.conduct is HONEST
