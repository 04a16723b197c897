"""A reducer that gives its results to the leader and shows all others nothing but life: the leader is not left without a majority."""

from __future__ import annotations

import asyncio

from peers.interfaces import Transport
from peers.simulation import run_simulated
from protocols.ids import Epoch, RoundId
from protocols.rendezvous import rendezvous_order
from tests.helpers.averaging_swarm import RUN, SimulatedSwarm, averaged, rules, same_bytes
from tests.helpers.favouring import Favouring
from tests.helpers.swarm_liars import COUNT, NUMBER_OF, SIZE_ELEMS

HONEST_EPOCHS = 4
LEADER, *_, OFFENDER = rendezvous_order(RoundId(RUN, Epoch(HONEST_EPOCHS)), NUMBER_OF)


def test_a_reducer_that_serves_the_leader_alone_costs_the_others_their_deadline_and_no_more() -> None:
    async def main() -> None:
        favouring: list[Favouring] = []

        def wrap(number: int, transport: Transport) -> Transport:
            if number != NUMBER_OF[OFFENDER]:
                return transport
            favouring.append(Favouring(transport, LEADER))
            return favouring[0]

        async with SimulatedSwarm(COUNT, averaging=rules(round_timeout_s=3600.0), wrap=wrap) as swarm:
            for epoch in range(HONEST_EPOCHS + 1):
                favouring[0].unfair = epoch == HONEST_EPOCHS
                began_s = asyncio.get_running_loop().time()
                done = averaged(await swarm.round(SIZE_ELEMS, epoch=epoch))
                took_s = asyncio.get_running_loop().time() - began_s
                assert len(done) == COUNT
                assert same_bytes(done)
                assert all(outcome.included_us for outcome in done)
                assert (took_s > 10) == favouring[0].unfair
        assert took_s < 20

    run_simulated(main(), seed=2, limit_s=1e5)
