"""Epochs of several rounds: exact and alike everywhere when all goes well; nobody stuck when it does not."""

from __future__ import annotations

import asyncio

import pytest
import torch

from peers.averaging.averager import Averaged
from peers.simulation import run_simulated
from peers.transport.simulated import LinkSpec
from protocols.grid import place
from tests.helpers.averaging_swarm import SimulatedSwarm, averaged, rules, same_bytes

SIZE_ELEMS = 300
LINK = LinkSpec(latency_s=0.02, bandwidth_bytes_per_s=2e5)


def mean_of(swarm: SimulatedSwarm, numbers: range | list[int]) -> torch.Tensor:
    return torch.stack([swarm.vector(number, SIZE_ELEMS).double() for number in numbers]).mean(dim=0)


def error_of(outcome: Averaged, exact: torch.Tensor) -> float:
    return float((outcome.vector_D.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("count", "max_group"), [(5, 4), (9, 4), (16, 4), (17, 4), (23, 5), (30, 8), (64, 4)])
def test_everybody_gets_the_same_bytes_of_the_mean_of_all(count: int, max_group: int) -> None:
    """Also where members are no power of anything, and where no two groups are alike."""

    async def main() -> None:
        async with SimulatedSwarm(count, averaging=rules(max_group=max_group)) as swarm:
            for epoch in range(2):
                done = averaged(await swarm.round(SIZE_ELEMS, epoch=epoch))
                assert len(done) == count
                assert same_bytes(done)
                assert error_of(done[0], mean_of(swarm, range(count))) < 1e-6
                assert {outcome.weight for outcome in done} == {float(count)}
                assert all(outcome.missed == 0 and outcome.included_us for outcome in done)

    run_simulated(main(), seed=1)


def test_weights_count_once_each() -> None:
    weights = [float(1 + number % 5) for number in range(10)]

    async def main() -> None:
        async with SimulatedSwarm(10, averaging=rules(max_group=4)) as swarm:
            done = averaged(await swarm.round(SIZE_ELEMS, weights=weights))
            exact = sum(w * swarm.vector(n, SIZE_ELEMS).double() for n, w in enumerate(weights)) / sum(weights)
            assert isinstance(exact, torch.Tensor)
            assert same_bytes(done)
            assert error_of(done[0], exact) < 1e-6
            assert {outcome.weight for outcome in done} == {sum(weights)}

    run_simulated(main(), seed=1)


@pytest.mark.parametrize("clients", [(0,), (0, 1, 2, 3)])
def test_members_that_nobody_can_dial_and_helpers_have_their_place(clients: tuple[int, ...]) -> None:
    weights = [0.0 if number in (8, 9) else 1.0 for number in range(12)]
    bandwidths = [0 if number in clients else 1_000_000 for number in range(12)]

    async def main() -> None:
        async with SimulatedSwarm(12, averaging=rules(max_group=4), clients=clients) as swarm:
            done = averaged(await swarm.round(SIZE_ELEMS, weights=weights, bandwidths=bandwidths))
            assert len(done) == 12
            assert same_bytes(done)
            assert error_of(done[0], mean_of(swarm, [n for n in range(12) if weights[n]])) < 1e-6

    run_simulated(main(), seed=1)


@pytest.mark.parametrize("victim", range(0, 9, 2))
@pytest.mark.parametrize("moment_s", [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4])
def test_a_crash_in_any_round_leaves_everybody_else_with_a_result(victim: int, moment_s: float) -> None:
    async def main() -> None:
        async with SimulatedSwarm(9, link=LINK, averaging=rules(max_group=4)) as swarm:
            asyncio.get_running_loop().call_later(moment_s, swarm.network.crash, swarm.members[victim].peer)
            doomed = asyncio.ensure_future(swarm.round(SIZE_ELEMS, who=[victim]))
            survivors = [number for number in range(9) if number != victim]
            done = averaged(await swarm.round(SIZE_ELEMS, who=survivors))
            doomed.cancel()
            assert len(done) == 8
            assert asyncio.get_running_loop().time() < 20
            exact = mean_of(swarm, range(9))
            agreeing = max(sum(torch.equal(one.vector_D, other.vector_D) for other in done) for one in done)
            assert agreeing >= 5  # whoever averaged with the victim in its last round may hold less than the others, nobody else
            assert all(error_of(outcome, exact) < 1.0 for outcome in done)

    run_simulated(main(), seed=3)


def test_a_black_hole_costs_each_round_one_stall_timeout_at_most() -> None:
    async def main() -> None:
        async with SimulatedSwarm(9, link=LINK, averaging=rules(max_group=4)) as swarm:
            hole = swarm.members[4].peer
            for other in swarm.members:
                if other.peer != hole:
                    asyncio.get_running_loop().call_later(0.06, swarm.network.blackhole, hole, other.peer)
            doomed = asyncio.ensure_future(swarm.round(SIZE_ELEMS, who=[4]))
            done = averaged(await swarm.round(SIZE_ELEMS, who=[number for number in range(9) if number != 4]))
            doomed.cancel()
            assert len(done) == 8
            assert asyncio.get_running_loop().time() < 15

    run_simulated(main(), seed=5)


def test_a_member_that_is_late_for_the_first_round_goes_on_with_what_its_group_has() -> None:
    async def main() -> None:
        async with SimulatedSwarm(9, link=LINK, averaging=rules(max_group=4)) as swarm:
            done = averaged(await swarm.round(SIZE_ELEMS, after_s=lambda number: 30.0 if number == 4 else 0.0))
            assert len(done) == 9
            assert not done[4].included_us
            assert {outcome.weight for outcome in done} == {8.0}
            assert error_of(done[4], mean_of(swarm, [n for n in range(9) if n != 4])) < 1e-6

    run_simulated(main(), seed=1)


def test_whoever_is_quicker_is_waited_for_in_the_next_epoch() -> None:
    """A member may begin the next epoch while others still finish this one: it is kept waiting, not turned away."""

    async def main() -> None:
        async with SimulatedSwarm(9, link=LINK, averaging=rules(max_group=4)) as swarm:

            async def run(number: int) -> list[object]:
                found: list[object] = []
                for epoch in range(5):
                    later_s = 0.01 * (number * epoch % 4)
                    found += await swarm.round(SIZE_ELEMS, epoch=epoch, who=[number], after_s=lambda _, wait_s=later_s: wait_s)  # type: ignore[misc]
                return found

            outcomes = await asyncio.gather(*(run(number) for number in range(9)))
            for epoch in range(5):
                done = [found[epoch] for found in outcomes]
                assert all(isinstance(outcome, Averaged) and outcome.weight == 9 for outcome in done)

    run_simulated(main(), seed=2)


@pytest.mark.parametrize("unaware", [(0,), (0, 1, 2), tuple(range(0, 9, 2))])
def test_views_that_differ_by_a_member_leave_nobody_stuck(unaware: tuple[int, ...]) -> None:
    """Some do not know of the newcomer yet: another grid for them, perhaps, and still everybody ends with a mean of many."""

    async def main() -> None:
        async with SimulatedSwarm(10, link=LINK, averaging=rules(max_group=4)) as swarm:
            newcomer = swarm.members[9].peer
            for number in unaware:
                directory = swarm.members[number].directory
                directory.endpoints = {peer: endpoint for peer, endpoint in directory.endpoints.items() if peer != newcomer}
            outcomes = await swarm.round(SIZE_ELEMS)
            assert asyncio.get_running_loop().time() < 40
            done = averaged(outcomes)
            assert len(done) >= 9
            assert all(outcome.weight >= 3 for outcome in done)

    run_simulated(main(), seed=4)


def test_members_of_one_cell_bring_one_contribution() -> None:
    """Ten members in groups of four at most: some cell holds two, and whichever of them is asked, it counts once."""

    async def main() -> None:
        async with SimulatedSwarm(10, averaging=rules(max_group=4)) as swarm:
            placement = place(b"c" * 32, frozenset(member.peer for member in swarm.members), frozenset(), 4)
            cells = [placement.cell(member.peer) for member in swarm.members]
            assert len(set(cells)) < len(cells)
            done = averaged(await swarm.round(SIZE_ELEMS))
            assert {outcome.weight for outcome in done} == {10.0}

    run_simulated(main(), seed=6)
