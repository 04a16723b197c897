"""Members that attack in a simulated swarm."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from peers.attacks.protocol import attacker_named
from peers.attacks.ring import Attacker, Ring
from peers.attacks.vectors import VECTOR_ATTACKS, vector_attack_named
from peers.attacks.view import AttackView
from protocols.grid import epoch_coin, place
from protocols.ids import Epoch, PeerId, RunId
from scripts.simulation.scenario import Scenario

_REMEMBERED_OWN = 4
"""Epochs after which a delayed gradient is sent."""


class Attackers:
    """All attackers of a swarm. They share what they know; those that are in one group of a first round read all of that group.

    Args:
        scenario: who attacks, and how.
        run: names the grids.
        peers: all members, by number.
    """

    def __init__(self, scenario: Scenario, run: RunId, peers: Sequence[PeerId]) -> None:
        self._scenario, self._run, self._peers = scenario, run, peers
        self._attacks = {peers[number]: name for number, name in scenario.attacking.items()}
        self._members = frozenset(self._attacks)
        self._honest = [peer for peer in peers if peer not in self._members]
        self._victims = frozenset(self._honest[::2])
        self._rng = np.random.default_rng((scenario.seed, 2**32))
        self._vector_attacks = {name: vector_attack_named(name) for name in self._attacks.values() if name in VECTOR_ATTACKS}
        self._past: dict[PeerId, deque[torch.Tensor]] = {}
        idle = self._ring({}, {})
        self.conducts: dict[PeerId, Attacker] = {peer: attacker_named(name, peer, idle) for peer, name in self._attacks.items()}

    def _ring(self, vectors: Mapping[PeerId, torch.Tensor], weights: Mapping[PeerId, float]) -> Ring:
        block_elems = -(-self._scenario.elems // self._scenario.blocks)
        return Ring(self._members, self._victims, block_elems, self._rng, vectors=vectors, weights=weights)

    def prepare(self, epoch: Epoch, banned: frozenset[PeerId], contributions: Mapping[PeerId, torch.Tensor]) -> None:
        """An epoch begins: attackers look at what members of their groups bring, and agree on what they do.

        Args:
            epoch: which.
            banned: who has no place in the grid.
            contributions: honest ones, of everybody who lives.
        """
        numbers = self._scenario.undialable
        there = [(peer, number in numbers) for number, peer in enumerate(self._peers) if peer not in banned]
        dialable, undialable = (frozenset(peer for peer, shy in there if shy is wanted) for wanted in (False, True))
        placement = place(epoch_coin(self._run, epoch), dialable, undialable, self._scenario.max_group)
        rings: dict[tuple[PeerId, ...], Ring] = {}
        for peer in [peer for peer in self._attacks if peer in contributions and peer not in banned]:
            group = tuple(placement.group(peer, 0))
            if group not in rings:
                rings[group] = self._group_ring(epoch, [other for other in group if other in contributions], contributions)
            self.conducts[peer].ring = rings[group]

    def _group_ring(self, epoch: Epoch, group: Sequence[PeerId], contributions: Mapping[PeerId, torch.Tensor]) -> Ring:
        vectors = {peer: contributions[peer] for peer in group}
        honest = [peer for peer in group if peer not in self._members]
        ours = [peer for peer in group if peer in self._members]
        ring = self._ring(vectors, {peer: self._scenario.weight(self._peers.index(peer)) for peer in group})
        honest_GD = torch.stack([vectors[peer] for peer in honest]) if honest else None
        sent = {}
        for peer in ours:
            past = self._past.setdefault(peer, deque(maxlen=_REMEMBERED_OWN))
            attack = self._vector_attacks.get(self._attacks[peer])
            if attack and (honest or not attack.needs_view):
                other = self._other_vector(epoch, peer)
                view = AttackView(
                    epoch=epoch, own_D=vectors[peer], own_weight=ring.weights[peer], n=len(group), f=len(ours), rng=self._rng,
                    label_flipped=other, wrong_samples=other, past=tuple(past), honest_GD=honest_GD, honest_ids=tuple(honest),
                )  # fmt: skip
                sent[peer] = attack.contribution(view)
            past.append(vectors[peer])
        ring.sent = sent
        return ring

    def _other_vector(self, epoch: Epoch, peer: PeerId) -> Callable[[], torch.Tensor]:
        """What its gradient on other samples or labels would be."""
        return lambda: torch.from_numpy(self._scenario.contribution(epoch, self._peers.index(peer), samples=-1))
