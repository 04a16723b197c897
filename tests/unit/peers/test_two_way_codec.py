"""A codec of two ways in an epoch of several rounds: contributions travel as one says, and results, also those brought on, as the other."""

from __future__ import annotations

import torch

from peers.simulation import run_simulated
from tests.helpers.averaging_swarm import SimulatedSwarm, averaged, rules, same_bytes

MEMBERS, ELEMS, EACH = 10, 4096, 15


class Apart(SimulatedSwarm):
    """Members whose contributions have no element in common."""

    def vector(self, number: int, size_elems: int) -> torch.Tensor:
        vector_D = torch.zeros(size_elems)
        vector_D[number * EACH : (number + 1) * EACH] = 1.0
        return vector_D


class Crowded(SimulatedSwarm):
    """Members that bring more than go up."""

    def vector(self, number: int, size_elems: int) -> torch.Tensor:
        return torch.linspace(1.0, 2.0, size_elems)


def test_what_goes_up_comes_back_from_all_rounds_though_it_is_more_than_goes_up() -> None:
    """Of the mean of a row of four 60 elements are brought to the next round, where 32 would go up, and 150 come back."""

    async def main() -> None:
        async with Apart(MEMBERS, averaging=rules("topk32-152", block_elems=ELEMS, max_group=4)) as swarm:
            done = averaged(await swarm.round(ELEMS))
            assert len(done) == MEMBERS
            assert same_bytes(done)
            torch.testing.assert_close(done[0].vector_D[: MEMBERS * EACH], torch.full((MEMBERS * EACH,), 0.1), rtol=0.01, atol=0)
            assert not done[0].vector_D[MEMBERS * EACH :].any()

    run_simulated(main(), seed=1)


def test_no_more_goes_up_than_the_codec_lets_through() -> None:
    async def main() -> None:
        async with Crowded(4, averaging=rules("topk32-152", block_elems=ELEMS)) as swarm:
            done = averaged(await swarm.round(ELEMS))
            assert same_bytes(done)
            assert torch.count_nonzero(done[0].vector_D) == 32

    run_simulated(main(), seed=1)


def test_who_comes_too_late_is_given_the_blocks_as_they_were_agreed() -> None:
    async def main() -> None:
        async with Apart(5, averaging=rules("topk32-152", block_elems=ELEMS)) as swarm:
            done = averaged(await swarm.round(ELEMS, after_s=lambda number: 30.0 * (number == 4)))
            assert [outcome.included_us for outcome in done] == [True] * 4 + [False]
            assert same_bytes(done)
            assert torch.count_nonzero(done[4].vector_D) == 4 * EACH

    run_simulated(main(), seed=1)
