"""Honest members judge nobody, whatever the codec and the aggregator, and whoever is late or dies."""

from __future__ import annotations

import asyncio

import pytest

from peers.averaging.averager import Averager
from peers.averaging.trust_rules import TrustRules
from peers.simulation import run_simulated
from protocols.aggregation import AGGREGATOR_NAMES
from tests.helpers.attack_scene import Played, Scene, play, time_passes
from tests.helpers.averaging_swarm import SimulatedSwarm, averaged, rules, same_bytes

NOBODY = Scene(6, attackers=(), victims=(), auditors=2)


def played(**settings: str) -> Played:
    return run_simulated(play("none", NOBODY, 2, lambda _played: False, **settings), seed=0, limit_s=10000)


def judged(averager: Averager) -> bool:
    return averager.guarding is not None and bool(averager.guarding.court.judged)


def in_peace(found: Played) -> bool:
    same = all(len(held) == 6 and len({vector_D.numpy().tobytes() for vector_D in held}) == 1 for held in found.results)
    return same and found.nobody_is_banned() and not found.judgements


@pytest.mark.parametrize("codec", ["fp32", "fp16", "bf16", "int8", "int4", "e3m0", "adaptive-int8"])
def test_no_codec_makes_honest_members_judge_each_other(codec: str) -> None:
    assert in_peace(played(codec=codec))


@pytest.mark.parametrize("aggregator", AGGREGATOR_NAMES)
def test_no_aggregator_makes_honest_members_judge_each_other(aggregator: str) -> None:
    assert in_peace(played(aggregator=aggregator))


def test_nobody_judges_a_straggler() -> None:
    async def scene() -> None:
        async with SimulatedSwarm(5, averaging=rules(trust=TrustRules())) as swarm:
            for epoch in range(2):
                outcomes = await swarm.round(600, epoch=epoch, after_s=lambda number: 4.0 if number == 3 else 0.0)
                assert len(averaged(outcomes)) == 5
                assert same_bytes(averaged(outcomes))
                await time_passes(5.0)
            assert not any(judged(member.averager) for member in swarm.members)

    run_simulated(scene(), seed=0, limit_s=10000)


@pytest.mark.parametrize("after_s", [0.02, 0.06, 0.1, 0.14, 0.18, 0.22, 0.26, 0.3])
def test_nobody_judges_who_dies_in_a_round(after_s: float) -> None:
    async def scene() -> None:
        async with SimulatedSwarm(5, averaging=rules(trust=TrustRules())) as swarm:
            await swarm.round(600, epoch=0)
            round_ = asyncio.create_task(swarm.round(600, epoch=1))
            await time_passes(after_s)
            swarm.network.crash(swarm.members[2].peer)
            outcomes = await round_
            alive = averaged([outcome for number, outcome in enumerate(outcomes) if number != 2])
            assert len(alive) == 4
            assert same_bytes(alive)
            await time_passes(10.0)
            assert not any(judged(member.averager) for member in swarm.members if member.peer != swarm.members[2].peer)

    run_simulated(scene(), seed=0, limit_s=10000)
