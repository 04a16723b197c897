"""A small verified swarm on the simulator in which some members attack from the second epoch on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from peers.attacks.protocol import attacker_named
from peers.attacks.ring import Ring
from peers.attacks.vectors import VECTOR_ATTACKS, vector_attack_named
from peers.attacks.view import AttackView
from peers.averaging.averager import Averaged
from peers.averaging.trust_rules import TrustRules
from peers.conduct import Conduct
from peers.testing import make_key
from peers.training_peer import Replayed, ReplayRequest
from peers.transport.simulated import LinkSpec
from protocols.aggregation import aggregator_named
from protocols.errors import RoundError
from protocols.ids import Epoch, PeerId
from tests.helpers.averaging_swarm import SimulatedSwarm, averaged, contribution, rules

ELEMS, BLOCK_ELEMS = 800, 100
MOST_SAMPLES = 100.0
FIRST_ATTACK = 1
FAR_S = 0.4


def peer_of(number: int) -> PeerId:
    """Key of a simulated member."""
    return PeerId(make_key(number).public_key().public_bytes_raw())


@dataclass(frozen=True)
class Scene:
    """Who is there.

    Args:
        count: members, numbered from 0.
        attackers: numbers of those that attack.
        victims: numbers of those that are picked on.
        auditors: drawn in each epoch.
        seed: of everything random.
        far: numbers of those whose messages take `FAR_S` each way.
    """

    count: int = 8
    attackers: tuple[int, ...] = (1, 4, 6)
    victims: tuple[int, ...] = (0, 2)
    auditors: int = 1
    seed: int = 0
    far: tuple[int, ...] = ()

    @property
    def honest(self) -> tuple[int, ...]:
        """The others."""
        return tuple(number for number in range(self.count) if number not in self.attackers)


@dataclass
class Played:
    """What came of it.

    Args:
        scene: who was there.
        bans: of each honest member's ledger: banned member -> offence.
        results: of each epoch: what the honest members hold, those that ended well.
        epochs: that were played.
        judgements: whom anybody found guilty of what, banned or not.
    """

    scene: Scene
    bans: list[dict[int, str]]
    results: list[list[torch.Tensor]]
    epochs: int = 0
    judgements: set[tuple[int, str]] = field(default_factory=set)

    def everybody_bans(self, offence: str) -> bool:
        """Whether every honest member bans all attackers for this, and nobody else."""
        return all(found == dict.fromkeys(self.scene.attackers, offence) for found in self.bans)

    def nobody_is_banned(self) -> bool:
        """Whether all ledgers are empty."""
        return not any(self.bans)


def aggregate_of(numbers: tuple[int, ...]) -> torch.Tensor:
    """What an honest swarm makes of these members' contributions."""
    blocks = [[contribution(number, ELEMS)[start : start + BLOCK_ELEMS] for number in numbers] for start in range(0, ELEMS, BLOCK_ELEMS)]
    return torch.cat([aggregator_named("centered_clip").aggregate(parts, [1.0] * len(numbers)).value_E for parts in blocks])


def _view(epoch: int, own_D: torch.Tensor, scene: Scene, rng: np.random.Generator) -> AttackView:
    honest_GD = torch.stack([contribution(number, ELEMS) for number in scene.honest])
    return AttackView(epoch, own_D, 1.0, scene.count, len(scene.attackers), rng, lambda: -own_D, lambda: own_D.flip(0), (), honest_GD)


async def play(attack: str, scene: Scene, epochs: int, until: Callable[[Played], bool] = lambda _played: False, **settings: str) -> Played:
    """Let a swarm live.

    Args:
        attack: by name; or "none".
        scene: who is there.
        epochs: at most so many.
        until: stops earlier.
        settings: `codec` and `aggregator`.
    """
    trust = TrustRules(settings.pop("aggregator", "centered_clip"), auditors=scene.auditors, most_samples=MOST_SAMPLES)
    numbers = {peer_of(number): number for number in range(scene.count)}
    rng = np.random.default_rng(scene.seed)
    members, victims = (frozenset(map(peer_of, chosen)) for chosen in (scene.attackers, scene.victims))
    ring = Ring(members, victims, BLOCK_ELEMS, rng, Epoch(FIRST_ATTACK))
    conducts: dict[int, Conduct] = {number: attacker_named(attack, peer_of(number), ring) for number in scene.attackers}

    async def replayer(wanted: ReplayRequest) -> Replayed | None:
        return Replayed(contribution(numbers[wanted.peer], ELEMS))

    averaging = rules(settings.pop("codec", "fp32"), BLOCK_ELEMS, trust=trust)
    played = Played(scene, [], [])
    async with SimulatedSwarm(scene.count, averaging=averaging, seed=scene.seed, conducts=conducts, replayer=replayer) as swarm:
        for number in scene.far:
            swarm.network.set_host(peer_of(number), LinkSpec(latency_s=FAR_S))
        for epoch in range(epochs):
            banned = {number for found in played.bans for number in found}
            present = [number for number in range(scene.count) if number not in banned]
            _brief(ring, attack, epoch, scene, present)
            outcomes = await swarm.round(ELEMS, epoch=epoch, who=present)
            await _settled(swarm, present)
            played.results.append([done.vector_D.clone() for done in averaged(_of(outcomes, present, scene))])
            ledgers = [swarm.members[number].ledger for number in scene.honest]
            played.bans = [{numbers[ban.accused]: ban.offence.value for ban in ledger.bans} for ledger in ledgers]
            guardings = [guarding for number in scene.honest if (guarding := swarm.members[number].averager.guarding)]
            played.judgements |= {(numbers[peer], found.value) for guarding in guardings for peer, found in guarding.court.judged}
            played.epochs += 1
            if until(played):
                break
    return played


def _of(outcomes: list[Averaged | RoundError], present: list[int], scene: Scene) -> list[Averaged | RoundError]:
    return [outcome for number, outcome in zip(present, outcomes, strict=True) if number in scene.honest]


def _brief(ring: Ring, attack: str, epoch: int, scene: Scene, present: list[int]) -> None:
    """Tell the ring what it can see."""
    ring.vectors = {peer_of(number): contribution(number, ELEMS) for number in present}
    ring.weights = dict.fromkeys(ring.vectors, 1.0)
    if attack in VECTOR_ATTACKS and epoch >= FIRST_ATTACK:
        lies = vector_attack_named(attack)
        views = {number: _view(epoch, contribution(number, ELEMS), scene, ring.rng) for number in scene.attackers}
        ring.sent = {peer_of(number): lies.contribution(view) for number, view in views.items()}


async def _settled(swarm: SimulatedSwarm, present: list[int]) -> None:
    guardings = [guarding for number in present if (guarding := swarm.members[number].averager.guarding)]
    while busy := [task for guarding in guardings for task in guarding.auditing.busy]:
        await asyncio.wait(busy)
    await asyncio.sleep(1.0)
    for number in present:
        swarm.members[number].directory.suspects.clear()


def parts_left_out(played: Played, epoch: int) -> list[int | None] | None:
    """Whose part is missing in each block: of an attacker, or of nobody; None if the honest members do not all hold the same.

    Raises:
        AssertionError: a block is no such aggregate.
    """
    held = played.results[epoch]
    if len({vector_D.numpy().tobytes() for vector_D in held}) != 1 or len(held) != len(played.scene.honest):
        return None
    everybody = tuple(range(played.scene.count))
    possible = {left: aggregate_of(tuple(n for n in everybody if n != left)) for left in (None, *played.scene.attackers)}
    missing: list[int | None] = []
    for start in range(0, ELEMS, BLOCK_ELEMS):
        block = slice(start, start + BLOCK_ELEMS)
        fitting = [left for left, whole_D in possible.items() if torch.allclose(held[0][block], whole_D[block], rtol=0.0, atol=1e-5)]
        assert len(fitting) == 1, f"block at {start} is the aggregate of no known parts"
        missing.append(fitting[0])
    return missing


async def time_passes(seconds: float) -> None:
    """Virtual time."""
    await asyncio.sleep(seconds)


def same_without_some_attackers(played: Played, epoch: int) -> bool:
    """Whether all honest members hold the same, each block of it the aggregate of everybody but some of the attackers."""
    held, attackers = played.results[epoch], played.scene.attackers
    subsets = [{n for i, n in enumerate(attackers) if chosen >> i & 1} for chosen in range(1 << len(attackers))]
    possible = [aggregate_of(tuple(n for n in range(played.scene.count) if n not in left)) for left in subsets]
    blocks = [slice(start, start + BLOCK_ELEMS) for start in range(0, ELEMS, BLOCK_ELEMS)]
    same = len({vector_D.numpy().tobytes() for vector_D in held}) == 1 and len(held) == len(played.scene.honest)
    return same and all(any(torch.allclose(held[0][b], whole[b], rtol=0.0, atol=1e-5) for whole in possible) for b in blocks)


def right_bytes(played: Played, expected_D: torch.Tensor, epoch: int) -> bool:
    """Whether all honest members hold the same in an epoch, and that this is the aggregate to within rounding."""
    held = played.results[epoch]
    same = len({vector_D.numpy().tobytes() for vector_D in held}) == 1 and len(held) == len(played.scene.honest)
    return same and bool(torch.allclose(held[0], expected_D, rtol=0.0, atol=1e-5))
