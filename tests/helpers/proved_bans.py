"""A ban with a real proof, from a small swarm on the simulator in which one member lies."""

from __future__ import annotations

from functools import lru_cache

from peers.attacks.lone import lone_attacker
from peers.averaging.trust_rules import TrustRules
from peers.simulation import run_simulated
from protocols.trust.ledger import Ban
from tests.helpers.node_swarm import NodeSwarm, Trainee, state
from tests.helpers.run_world import identity

TRUST = TrustRules(aggregator="mean", auditors=0, probation_epochs=0)
LIAR = 3


async def with_a_liar(swarm: NodeSwarm) -> tuple[list[Trainee], Trainee]:
    """Three honest members, and one that returns false means until it is banned."""
    honest = [swarm.add(number, held=state(0)) for number in range(3)]
    liar = swarm.add(LIAR, held=state(0), conduct=lone_attacker("lying_reducer", identity(LIAR).peer))
    await swarm.until(lambda: all(liar.peer in member.ledger for member in honest))
    return honest, liar


@lru_cache(maxsize=1)
def a_proved_ban() -> Ban:
    """Of `identity(LIAR)` in the run of `node_swarm.world`."""
    bans: list[Ban] = []

    async def main() -> None:
        async with NodeSwarm(trust=TRUST) as swarm:
            honest, _ = await with_a_liar(swarm)
            bans.extend(honest[0].ledger.bans)

    run_simulated(main(), limit_s=300)
    return bans[0]
