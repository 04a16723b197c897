"""Members that stay away or leave a group: what hivemind's `test_averaging.py` asks of too few peers and of a cancelled step.

Stricter here: a round needs more than half of those who are there, when it begins and when it ends; whoever is left holds the same bytes,
and members that failed or stopped take part again.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections.abc import Sequence
from contextlib import suppress

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
    """`test_too_few_peers`: the others are there and do not come. Two of them may take their time, and then we do, twice over."""

    async def main() -> None:
        async with SimulatedSwarm(4) as swarm:
            outcomes = await swarm.round(SIZE_ELEMS, who=comers)
            assert all(isinstance(outcome, RoundError) and "of 4 live members joined" in str(outcome) for outcome in outcomes), outcomes
            assert asyncio.get_running_loop().time() < 2 * 3 * swarm.averaging.join_timeout_s + 1

    run_simulated(main(), seed=1)


@pytest.mark.parametrize("count", [2, 8, 16])
@pytest.mark.parametrize("cut_off", [False, True])
def test_who_is_alone_does_not_wait_for_each_of_the_others(count: int, cut_off: bool) -> None:
    """Nor does it if they are silent instead of not being ready: three silences of each try are all that it costs."""

    async def main() -> None:
        async with SimulatedSwarm(count) as swarm:
            alone, *others = (member.peer for member in swarm.members)
            for other in others:
                if cut_off:
                    swarm.network.blackhole(alone, other)
            (outcome,) = await swarm.round(SIZE_ELEMS, who=[0])
            assert re.match(f"only 1 of {count}", str(outcome))
            patience_s = swarm.averaging.stall_timeout_s if cut_off else swarm.averaging.join_timeout_s
            assert asyncio.get_running_loop().time() < 2 * 3 * patience_s + 1

    run_simulated(main(), seed=1)


def subsets(count: int, sample: int | None = None) -> list[tuple[int, tuple[int, ...]]]:
    """Of so many members, each choice (or every `sample`th) of those who are not enough."""
    sizes = range(1, count // 2 + 1)
    return [(count, comers) for size in sizes for comers in itertools.combinations(range(count), size)][::sample]


@pytest.mark.parametrize(("count", "comers"), [*subsets(3), *subsets(4), *subsets(5), *subsets(6, sample=4)])
@pytest.mark.parametrize("apart_s", [0.0, 1.0])
def test_whoever_failed_for_want_of_others_may_come_again_with_them(count: int, comers: tuple[int, ...], apart_s: float) -> None:
    """Some have seen leaders fail and the others have not, so everybody expects another leader: they end in one group all the same."""

    async def main() -> None:
        async with SimulatedSwarm(count) as swarm:
            assert averaged(await swarm.round(SIZE_ELEMS, who=comers)) == []
            started_s = asyncio.get_running_loop().time()
            again = averaged(await swarm.round(SIZE_ELEMS, after_s=lambda number: apart_s * (7 * number % count) / count))
            assert len(again) == count
            assert same_bytes(again)
            assert {outcome.weight for outcome in again} == {float(count)}
            assert all(outcome.included_us for outcome in again)
            assert asyncio.get_running_loop().time() - started_s < apart_s + swarm.averaging.join_timeout_s

    run_simulated(main(), seed=1)


@pytest.mark.parametrize("count", [3, 4, 5])
@pytest.mark.parametrize("seed", range(8))
def test_members_that_come_again_until_they_succeed_end_with_one_result(count: int, seed: int) -> None:
    """They come at any time, are stopped at any time, and each that has failed or was stopped comes again on its own."""
    dice = random.Random(seed)
    plans = [(10 * dice.random(), [6 * dice.random() ** 3 for _ in range(dice.randint(0, 2))]) for _ in range(count)]

    async def come_again(swarm: SimulatedSwarm, number: int) -> Averaged:
        wait_s, stopped_after_s = plans[number]
        while True:
            stopped_s = wait_s + stopped_after_s.pop() if stopped_after_s else None
            with suppress(TimeoutError):
                async with asyncio.timeout(stopped_s):
                    (outcome,) = await swarm.round(SIZE_ELEMS, who=[number], after_s=lambda _, wait_s=wait_s: wait_s)  # type: ignore[misc]
                if isinstance(outcome, Averaged):
                    return outcome
            wait_s = 0.1 * number

    async def main() -> None:
        async with SimulatedSwarm(count, seed=seed) as swarm:
            outcomes = await asyncio.gather(*(come_again(swarm, number) for number in range(count)))
            assert same_bytes(outcomes)
            assert asyncio.get_running_loop().time() < 60

    run_simulated(main(), seed=seed)


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


@pytest.mark.parametrize("moment_s", [0.0, 0.01, 0.03, 0.05, 0.08, 0.12, 0.2, 1.0])
@pytest.mark.parametrize("stoppers", [(0,), (1,), (2,), (3,), (0, 1), (0, 2), (1, 3), (2, 3), (0, 1, 2), (1, 2, 3), (0, 1, 2, 3)])
def test_members_that_stopped_may_come_again_for_the_same_epoch(stoppers: tuple[int, ...], moment_s: float) -> None:
    """If the others have closed it meanwhile they get the result; else all average."""

    async def main() -> None:
        async with SimulatedSwarm(4) as swarm:
            tries = [asyncio.ensure_future(swarm.round(SIZE_ELEMS, who=[number])) for number in range(4)]
            for number in stoppers:
                asyncio.get_running_loop().call_at(moment_s, tries[number].cancel)
            ended = await asyncio.gather(*tries, return_exceptions=True)
            before = averaged([outcome for found in ended if isinstance(found, list) for outcome in found])
            without = [number for number, found in enumerate(ended) if not (isinstance(found, list) and averaged(found))]
            again = averaged(await swarm.round(SIZE_ELEMS, who=without))
            assert len(again) == len(without)
            assert same_bytes([*before, *again])
            assert {outcome.weight for outcome in again} <= {before[0].weight if before else 4.0}

    run_simulated(main(), seed=1)


def test_a_vector_without_elements_is_refused_at_once() -> None:
    async def main() -> None:
        async with SimulatedSwarm(2) as swarm:
            with pytest.raises(LocalProtocolError, match="no elements"):
                await swarm.members[0].averager.average_epoch(Join(Epoch(0), STATE_HASH, 1.0, 1_000_000), torch.zeros(0))
            assert len(averaged(await swarm.round(SIZE_ELEMS))) == 2

    run_simulated(main(), seed=1)
