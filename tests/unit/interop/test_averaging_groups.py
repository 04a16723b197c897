"""Members that find each other and average: what hivemind's `test_averaging.py` asks of groups and of a grid.

Stricter here: whoever averages holds the same bytes, the mean is exact to the rounding of fp32, and the grid ends exactly equal instead of
near zero. A group that cannot average says so to everybody.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from peers.averaging.averager import RoundDone
from peers.simulation import run_simulated
from tests.helpers.averaging_swarm import SimulatedSwarm, averaged, contribution, rules, same_bytes
from tests.helpers.faults import members_of_plan
from tests.helpers.group_roles import BringingSwarm, Cast, Part, check_round, check_untouched, clients_of, play_round

SIZE_ELEMS = 300
EVEN = (1.0, 1.0, 1.0, 1.0)


def roles(clients: int, helpers: int) -> tuple[Part, ...]:
    """Four members."""
    return (Part.CLIENT,) * clients + (Part.HELPER,) * helpers + (Part.TRAINER,) * (4 - clients - helpers)


def play_cast(cast: Cast) -> None:
    async def main() -> None:
        vectors = [contribution(number, SIZE_ELEMS) for number in range(4)]
        async with BringingSwarm(vectors, averaging=rules(), clients=clients_of(cast.parts)) as swarm:
            check_round(swarm, cast, await play_round(swarm, cast, SIZE_ELEMS, 0), SIZE_ELEMS)
        check_untouched(vectors)

    run_simulated(main(), seed=1)


# One group


@pytest.mark.parametrize("clients", [0, 1, 2])
@pytest.mark.parametrize("helpers", [0, 1, 2])
def test_clients_and_helpers_in_any_number(clients: int, helpers: int) -> None:
    """`test_allreduce_once`, to fp32 rounding instead of 1e-6; two clients and two helpers among them, so nobody does both."""
    play_cast(Cast(roles(clients, helpers), EVEN, EVEN))


@pytest.mark.parametrize(("clients", "helpers", "averages"), [(0, 4, False), (1, 3, True), (0, 3, True), (4, 0, False)])
def test_groups_at_the_edge_average_or_fail_as_one(clients: int, helpers: int, averages: bool) -> None:
    """`test_allreduce_once_edge_cases`. Helpers alone have nothing to average and clients alone nobody who reduces: every one of them fails
    and may come again. A single member that brings something gets its own bytes back, through helpers if it is a client.
    """
    cast = Cast(roles(clients, helpers), EVEN, EVEN)
    assert cast.can_average == averages
    play_cast(cast)


@pytest.mark.parametrize("clients", [0, 1, 2])
@pytest.mark.parametrize("seed", [1, 2])
def test_random_weights(clients: int, seed: int) -> None:
    """`test_allreduce_weighted`: samples of very different numbers count as they are."""
    draw = random.Random(seed)
    weights = tuple(draw.uniform(0.1, 1.0) * 10 ** draw.randrange(4) for _ in range(4))
    play_cast(Cast(roles(clients, 0), weights, tuple(draw.uniform(0.1, 1.0) for _ in range(4))))


# A grid


def mean_and_spread(vectors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Over members: mean of each element, and its standard deviation."""
    stacked = torch.stack([vector.double() for vector in vectors])
    return stacked.mean(dim=0), stacked.std(dim=0, correction=0)


def test_eight_members_in_pairs_come_together() -> None:
    """`test_allreduce_grid`: every round keeps the mean and never widens the spread of any element; here it is over after the three rounds
    of one epoch, exactly, and a second epoch changes nothing.
    """

    async def main() -> None:
        swarm = BringingSwarm([contribution(number, SIZE_ELEMS) for number in range(8)], averaging=rules(max_group=2))
        exact, spread = mean_and_spread(swarm.brought)
        async with swarm:
            outcomes = averaged(await swarm.round(SIZE_ELEMS))
            assert [len(member.rounds) for member in swarm.members] == [3] * 8
            for index in range(3):
                done = [member.rounds[index] for member in swarm.members]
                assert {one.commit.weight for one in done} == {2.0 ** (index + 1)}
                mean, narrower = mean_and_spread([one.vector_D for one in done])
                torch.testing.assert_close(mean, exact, rtol=0, atol=1e-6)
                assert bool((narrower <= spread + 1e-12).all())
                assert bool((narrower < spread).any())
                spread = narrower
            assert same_bytes(outcomes)
            assert float(spread.max()) == 0.0
            swarm.brought = [outcome.vector_D for outcome in outcomes]
            assert same_bytes([*outcomes, *averaged(await swarm.round(SIZE_ELEMS, epoch=1))])

    run_simulated(main(), seed=1)


@pytest.mark.parametrize(("count", "max_group"), [(8, 4), (8, 8)])
def test_everybody_in_a_group_hears_what_everybody_in_it_brings(count: int, max_group: int) -> None:
    """`test_allgather`: who is in a group, and with how many samples, is the same for all of it, and everybody is in one group a round."""
    weights = [1.0 + number for number in range(count)]

    async def main() -> None:
        async with SimulatedSwarm(count, averaging=rules(max_group=max_group)) as swarm:
            assert len(averaged(await swarm.round(SIZE_ELEMS, weights=weights))) == count
            for index in range(len(swarm.members[0].rounds)):
                rounds = {member.peer: member.rounds[index] for member in swarm.members}
                groups = {done.members for done in rounds.values()}
                assert sorted(peer for group in groups for peer in group) == sorted(rounds)
                assert max(len(group) for group in groups) <= max_group
                for peer, done in rounds.items():
                    assert peer in done.members
                    assert rounds[done.members[0]].commit.first_plan_digest == done.commit.first_plan_digest
            first: list[RoundDone] = [member.rounds[0] for member in swarm.members]
            of_peer = {member.peer: weight for member, weight in zip(swarm.members, weights, strict=True)}
            assert all(done.commit.weight == sum(of_peer[peer] for peer in done.members) for done in first)
            assert all(set(members_of_plan(member)) == set(member.rounds[-1].members) for member in swarm.members)

    run_simulated(main(), seed=1)
