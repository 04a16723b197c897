"""Whose state a newcomer takes over: what hivemind's `test_averaging.py` asks of `load_state_from_peers`.

Stricter here: the fresher state counts once a majority of those who hold one has reached it, whoever gives it, and every piece is checked.
There is no switch that turns serving off; who cannot be dialled, holds nothing, or has a trainer that hands out no copy serves nothing.
"""

from __future__ import annotations

import asyncio

import pytest
import torch

from peers.simulation import run_simulated
from peers.state_snapshot import StateSnapshot
from protocols.errors import RoundError
from tests.helpers.node_swarm import NodeSwarm, Trainee, state

DONORS = [(0, 1300, 1.0), (1, 1337, 2.0), (2, 1337, 2.0)]
"""Number, epoch and value of the state."""


def weights_of(snapshot: StateSnapshot) -> torch.Tensor:
    ((_, weights),) = snapshot.tensors()
    return weights


def give(donor: Trainee, snapshot: StateSnapshot) -> None:
    """A donor that does not train takes over a state and hands out a copy of it."""
    donor.hold(snapshot)
    donor.handle.publish_snapshot(snapshot)


async def newcomer(swarm: NodeSwarm, others: int) -> Trainee:
    """A member without a state that has found the others."""
    late = swarm.add(9, trains=False)
    await swarm.until(lambda: len(late.node.roster.others()) == others)
    return late


def test_the_state_is_that_of_the_fresher_donors() -> None:
    """`test_load_state_from_peers`: asked again after the donors have gone on, they give what they hold by then."""

    async def main() -> None:
        async with NodeSwarm() as swarm:
            stale, *fresh = [swarm.add(number, held=state(epoch, value), trains=False) for number, epoch, value in DONORS]
            for donor in (stale, *fresh):
                assert donor.held is not None
                give(donor, donor.held)
            late = await newcomer(swarm, 3)
            fetched = await late.node.fetch_state()
            assert fetched.epoch == 1337
            assert torch.equal(weights_of(fetched), torch.full((100,), 2.0))
            for donor in (stale, fresh[0]):
                give(donor, state(1338, 3.0))
            await swarm.until(lambda: late.node._estimate().epoch == 1338)
            again = await late.node.fetch_state()
            assert again.epoch == 1338
            assert torch.equal(weights_of(again), torch.full((100,), 3.0))
            assert again.damaged_piece() is None

    run_simulated(main(), limit_s=120)


@pytest.mark.parametrize("why", ["a client", "a helper without a state", "a trainer that hands out no copy"])
def test_a_donor_that_serves_nothing_is_an_error_in_bounded_time(why: str) -> None:
    """`test_load_state_from_peers` with sharing turned off, which gives nothing there."""

    async def main() -> None:
        async with NodeSwarm() as swarm:
            held = None if why.startswith("a helper") else state(7, 1.0)
            swarm.add(0, held=held, role="client" if why == "a client" else "trainer", trains=False)
            late = await newcomer(swarm, 1)
            began_s = asyncio.get_running_loop().time()
            with pytest.raises(RoundError):
                await late.node.fetch_state()
            assert asyncio.get_running_loop().time() - began_s < 60
            assert late.held is None

    run_simulated(main(), limit_s=300)
