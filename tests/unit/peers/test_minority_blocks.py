"""A reducer admits nobody's parts but its own: no rule of aggregation would bound that."""

from __future__ import annotations

from dataclasses import replace

import torch

from peers.averaging.trust_rules import TrustRules
from peers.conduct import Conduct
from peers.simulation import run_simulated
from protocols.ids import Epoch, PeerId
from tests.helpers.averaging_swarm import SimulatedSwarm, averaged, contribution, rules, same_bytes

COUNT, LIAR, SIZE = 7, 1, 1000
RULES = replace(rules(block_elems=100), trust=TrustRules(auditors=0))


class AloneInItsBlocks(Conduct):
    """Brings a million times its gradient."""

    def contribution(self, epoch: Epoch, own_D: torch.Tensor, weight: float) -> tuple[torch.Tensor, float]:
        return 1e6 * own_D, weight

    def takes_part_of(self, sender: PeerId) -> bool:
        return False


def test_blocks_that_leave_most_out_are_reduced_by_others() -> None:
    async def epoch() -> None:
        async with SimulatedSwarm(COUNT, averaging=RULES, conducts={LIAR: AloneInItsBlocks()}) as swarm:
            outcomes = await swarm.round(SIZE)
            ended = averaged([outcome for number, outcome in enumerate(outcomes) if number != LIAR])
            assert len(ended) == COUNT - 1
            assert same_bytes(ended)
            most = max(float(contribution(number, SIZE).abs().max()) for number in range(COUNT))
            assert float(ended[0].vector_D.abs().max()) <= most

    run_simulated(epoch(), seed=1, limit_s=1e4)
