"""Members that stay away or leave a group: what hivemind's `test_averaging.py` asks of too few peers and of a cancelled step.

Stricter here: a round needs more than half of those who are there, when it begins and when it ends; whoever is left holds the same bytes,
and members that failed or stopped take part again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

import pytest
import torch

from peers.averaging.averager import Averaged
from peers.simulation import run_simulated
from protocols.errors import LocalProtocolError, RoundError
from protocols.ids import Epoch
from protocols.messages import Join
from tests.helpers.averaging_swarm import STATE_HASH, SimulatedSwarm, averaged, same_bytes

SIZE_ELEMS = 300


@pytest.mark.parametrize("comers", [(0,), (3,), (0, 1), (0, 2)])
def test_too_few_members_fail_in_bounded_time(comers: tuple[int, ...]) -> None:
    """`test_too_few_peers`: the others are there and do not come. Each of them is asked to lead and may take its time, twice over."""

    async def main() -> None:
        async with SimulatedSwarm(4) as swarm:
            outcomes = await swarm.round(SIZE_ELEMS, who=comers)
            assert all(isinstance(outcome, RoundError) and "of 4 live members joined" in str(outcome) for outcome in outcomes), outcomes
            assert asyncio.get_running_loop().time() < 2 * 4 * swarm.averaging.join_timeout_s

    run_simulated(main(), seed=1)


@pytest.mark.parametrize("comers", [(0,), (3,), (0, 1)])
def test_whoever_failed_for_want_of_others_may_come_again_with_them(comers: tuple[int, ...]) -> None:
    async def main() -> None:
        async with SimulatedSwarm(4) as swarm:
            assert averaged(await swarm.round(SIZE_ELEMS, who=comers)) == []
            again = averaged(await swarm.round(SIZE_ELEMS))
            assert len(again) == 4
            assert same_bytes(again)
            assert {outcome.weight for outcome in again} == {4.0}

    run_simulated(main(), seed=1)


async def stopping_at(swarm: SimulatedSwarm, stoppers: Sequence[int], moment_s: float) -> list[Averaged | RoundError]:
    """A round in which some members stop averaging at a moment and stay; outcomes of the others."""
    loop = asyncio.get_running_loop()
    stopped: list[float] = []
    for number in stoppers:
        join = Join(Epoch(0), STATE_HASH, 1.0, 1_000_000)
        task = loop.create_task(swarm.members[number].averager.average_epoch(join, swarm.vector(number, SIZE_ELEMS)))
        task.add_done_callback(lambda done: stopped.append(loop.time()) if done.cancelled() else None)
        loop.call_at(moment_s, task.cancel)
    outcomes = await swarm.round(SIZE_ELEMS, who=[number for number in range(4) if number not in stoppers])
    assert stopped == [moment_s] * len(stoppers)
    return outcomes


@pytest.mark.parametrize("stopper", range(4))
@pytest.mark.parametrize("moment_s", [0.0, 0.01, 0.03, 0.05, 0.08, 0.12])
def test_one_member_that_stops_at_any_moment_is_gone_at_once_and_the_others_average(stopper: int, moment_s: float) -> None:
    """`test_averaging_cancel`; whatever was under way, it takes part in the next epoch as if nothing had been."""

    async def main() -> None:
        async with SimulatedSwarm(4) as swarm:
            done = averaged(await stopping_at(swarm, [stopper], moment_s))
            assert len(done) == 3
            assert same_bytes(done)
            assert done[0].weight >= 3 - 1e-9
            next_epoch = averaged(await swarm.round(SIZE_ELEMS, epoch=1))
            assert len(next_epoch) == 4
            assert {outcome.weight for outcome in next_epoch} == {4.0}

    run_simulated(main(), seed=1)


@pytest.mark.parametrize("moment_s", [0.0, 0.01, 0.03, 0.05, 0.08, 0.12])
@pytest.mark.parametrize("stoppers", [(0, 1), (0, 2), (1, 3), (2, 3)])
def test_half_of_the_members_that_stop_leave_no_majority_behind(stoppers: tuple[int, int], moment_s: float) -> None:
    """`test_averaging_cancel` lets the other half average without them. Here it fails as one, for the half that left might do the same; if
    everybody's blocks were through, it ends with the mean of all.
    """

    async def main() -> None:
        async with SimulatedSwarm(4) as swarm:
            outcomes = await stopping_at(swarm, stoppers, moment_s)
            if done := averaged(outcomes):
                assert len(done) == 2
                assert same_bytes(done)
                assert {outcome.weight for outcome in done} == {4.0}
            else:
                assert all(re.match("only [12] of 4", str(outcome)) for outcome in outcomes), outcomes
            assert len(averaged(await swarm.round(SIZE_ELEMS, epoch=1))) == 4

    run_simulated(main(), seed=1)


def test_a_vector_without_elements_is_refused_at_once() -> None:
    async def main() -> None:
        async with SimulatedSwarm(2) as swarm:
            with pytest.raises(LocalProtocolError, match="no elements"):
                await swarm.members[0].averager.average_epoch(Join(Epoch(0), STATE_HASH, 1.0, 1_000_000), torch.zeros(0))
            assert len(averaged(await swarm.round(SIZE_ELEMS))) == 2

    run_simulated(main(), seed=1)
