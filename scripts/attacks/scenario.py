"""What one cell of the table is: who trains, who attacks, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from peers.attacks.donors import POISON_DONOR
from peers.attacks.protocol import PROTOCOL_ATTACKS
from peers.attacks.vectors import VECTOR_ATTACKS
from peers.testing import make_key
from protocols.ids import PeerId

NO_ATTACK = "none"
ATTACKS = (*VECTOR_ATTACKS, *PROTOCOL_ATTACKS, POISON_DONOR)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What all cells of a table have in common.

    Args:
        peers: members.
        attackers: how many of them attack.
        epochs: length of a run.
        attack_from: first epoch in which attackers attack; they never stop by themselves.
        samples: that a member takes in an epoch.
    """

    peers: int = 16
    attackers: int = 7
    epochs: int = 240
    attack_from: int = 10
    samples: int = 4

    def members(self) -> tuple[PeerId, ...]:
        """All members, the same in every run."""
        return tuple(PeerId(make_key(number).public_key().public_bytes_raw()) for number in range(self.peers))

    def attackers_of(self, seed: int) -> tuple[PeerId, ...]:
        """Those that attack in the run with this seed, in members' order."""
        chosen = np.random.default_rng((seed, 1)).choice(self.peers, self.attackers, replace=False)
        return tuple(peer for number, peer in enumerate(self.members()) if number in chosen)


@dataclass(frozen=True, slots=True)
class Row:
    """What one run came to.

    Args:
        attack, defence, auditors, seed: the cell; no auditors without verification.
        loss: on held-out text at the end, nats a byte; the mean over honest members' states where they differ.
        loss_clean: the same without an attack, with the plain mean of all members.
        epochs_to_last_ban: from the first epoch with an attack until no attacker was left; None if any stayed.
        attackers_left: attackers that were still members at the end.
        honest_banned: honest members that were not.
        seconds: of wall clock.
        loss_same_members: without an attack, with centered_clip and whoever was left in each epoch of this run.
        reasons: bans by offence; under `poison_donor` what became of newcomers, see `Newcomers.reasons`.
        unequal_epochs: in which honest members did not end with the same bytes.
    """

    attack: str
    defence: str
    auditors: int
    seed: int
    loss: float | None
    loss_clean: float | None
    epochs_to_last_ban: int | None
    attackers_left: int
    honest_banned: int
    seconds: float
    loss_same_members: float | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    unequal_epochs: int = 0

    def as_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return asdict(self)


Progress = Callable[[], None]
"""Called after every epoch of every run."""


class Runner(Protocol):
    """Trains under an attack with one defence. Cells are independent: each could run in another process."""

    def plays(self, attack: str) -> bool:
        """Whether the attack means anything with this defence."""

    def epochs(self, attack: str) -> int:
        """How often `run` will report progress."""

    def run(self, attack: str, seed: int, auditors: int, progress: Progress) -> Row:
        """One cell.

        Args:
            attack: a name of `ATTACKS` that it plays, or `NO_ATTACK`.
            seed: of everything random.
            auditors: members that audit others in each epoch; 0 where nobody verifies.
            progress: see `Progress`.
        """


def finite(loss: float) -> float | None:
    """The loss with as many digits as mean something; None if it is beyond all numbers, which JSON cannot say."""
    return round(loss, 4) if math.isfinite(loss) else None
