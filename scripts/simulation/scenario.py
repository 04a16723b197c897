"""What is simulated. Everything random is drawn from the seed, each kind from dice of its own: a change in one leaves the others alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from peers.attacks.protocol import PROTOCOL_ATTACKS
from peers.attacks.reducers import Collude, LyingReducer, TwoFacedReducer
from peers.transport.simulated_network import LinkSpec
from protocols.grid import Grid, grid_for

_BYTES_PER_MBIT = 1e6 / 8
_JITTER = 0.1
"""Largest extra delay of a message, of a member's own latency."""

REDUCERS = frozenset(name for name, attack in PROTOCOL_ATTACKS.items() if issubclass(attack, LyingReducer | TwoFacedReducer | Collude))
"""Attacks of members that reduce."""


@dataclass(frozen=True)
class Scenario:
    """A swarm and what happens to it.

    Args:
        peers: members.
        rounds: averaging rounds, made up to whole epochs.
        crash_rate: probability that a member dies in a round; it is back when the next epoch begins.
        loss: probability that a message has to be sent again.
        rtt_ms: least and largest round-trip time of a member to anybody; uniform. Between two it is that of the slower.
        mbit: least and largest speed of a member's link in each direction, Mbit/s; uniform in its logarithm.
        clients: share of members that nobody can dial.
        max_group: most members of a group.
        elems: elements of everybody's vector.
        blocks: blocks that it is cut into.
        seed: of all dice.
        attackers: how many members attack.
        attacks: what they do, in turn.
        auditors: drawn in each group of a first round; 0 where nobody verifies.
    """

    peers: int
    rounds: int
    crash_rate: float
    loss: float
    rtt_ms: tuple[float, float]
    mbit: tuple[float, float]
    clients: float
    max_group: int
    elems: int
    blocks: int
    seed: int
    attackers: int = 0
    attacks: tuple[str, ...] = ()
    auditors: int = 0

    def dice(self, kind: str) -> random.Random:
        """Dice of one kind."""
        return random.Random(f"{self.seed} {kind}")  # the point is that it can be predicted

    @cached_property
    def undialable(self) -> frozenset[int]:
        """Numbers of the members that nobody can dial."""
        return frozenset(self.dice("clients").sample(range(self.peers), round(self.clients * self.peers)))

    @cached_property
    def grid(self) -> Grid:
        """Of every epoch: all members are always announced."""
        return grid_for(self.peers - len(self.undialable), len(self.undialable), self.max_group)

    @property
    def epochs(self) -> int:
        """Enough for the rounds."""
        return -(-self.rounds // len(self.grid.sides))

    @property
    def all_samples(self) -> float:
        """Of an epoch."""
        return sum(map(self.weight, range(self.peers)))

    def links(self) -> list[LinkSpec]:
        """Of every member, by number."""
        dice = self.dice("links")
        slow, fast = (np.log(speed) for speed in self.mbit)
        found = []
        for _ in range(self.peers):
            latency_s = dice.uniform(*self.rtt_ms) / 2000
            speed = float(np.exp(dice.uniform(slow, fast))) * _BYTES_PER_MBIT
            found.append(LinkSpec(latency_s, latency_s * _JITTER, float(int(speed)), self.loss))
        return found

    @cached_property
    def attacking(self) -> dict[int, str]:
        """What each attacker does, by its number. Those that attack as reducers are of the fastest fifth: others seldom have to reduce."""
        names = [self.attacks[i % len(self.attacks)] for i in range(self.attackers)]
        names.sort(key=lambda name: name not in REDUCERS)
        reducers = sum(name in REDUCERS for name in names)
        links, dice = self.links(), self.dice("attackers")
        fastest_first = sorted(range(self.peers), key=lambda number: -links[number].bandwidth_bytes_per_s)
        chosen = dice.sample(fastest_first[: max(reducers, self.peers // 5)], reducers)
        chosen += dice.sample([number for number in range(self.peers) if number not in chosen], self.attackers - reducers)
        return dict(zip(chosen, names, strict=True))

    def contribution(self, epoch: int, member: int, samples: float | None = None) -> NDArray[np.float32]:
        """What a member brings: from N(0, 1), shape (D,). Over other samples than its own it would be another vector."""
        other = () if samples in (None, self.weight(member)) else (2**16 + int(samples or 0),)
        return np.random.default_rng((self.seed, epoch, member, *other)).standard_normal(self.elems, dtype=np.float32)

    @staticmethod
    def weight(member: int) -> float:
        """Samples behind it."""
        return float(1 + member % 4)
