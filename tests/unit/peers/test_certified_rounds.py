"""One liar in a grid whose rounds are verified: what it says of its group's result, and what it brings to the next round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch

from peers.averaging.averager import Averaged, RoundDone
from peers.averaging.evidence import Brought
from peers.averaging.trust_rules import TrustRules
from peers.conduct import HONEST, Conduct
from peers.simulation import run_simulated
from protocols.content import content_hash, input_hash
from protocols.grid import Placement
from protocols.messages import Join
from protocols.trust.statements import CHECK, Check
from tests.helpers.attack_scene import time_passes
from tests.helpers.averaging_swarm import SimulatedSwarm, averaged, rules, same_bytes

COUNT, LIAR, SIZE = 16, 1, 1000
RULES = replace(rules(block_elems=100, max_group=4), trust=TrustRules(auditors=0))
FALSE = 1e6


class MisreportingWitness(Conduct):
    """Signs something else about its group's result than all others do."""

    def __init__(self, **said: float) -> None:
        self._said = said

    def check(self, check: Check) -> Check:
        return check if check.round_index else replace(check, **self._said)  # type: ignore[arg-type]


def bring_what_only_it_vouches_for(swarm: SimulatedSwarm) -> None:
    """A member of 10^12 samples, certified by an electorate of one; as a reducer it takes that in itself."""
    liar = swarm.members[LIAR]
    honest_round, codec = liar.averager._round, RULES.codec

    async def forged(join: Join, own_D: torch.Tensor, placement: Placement, brought: Brought) -> RoundDone:
        if not join.round_index:
            return await honest_round(join, own_D, placement, brought)
        false_D, digest, weight = torch.full_like(own_D, FALSE), b"d" * 32, 1e12
        contents = [content_hash(codec.encode(block_E)) for block_E in torch.split(false_D, RULES.block_elems)]
        named = input_hash(contents, digest)
        check = Check(digest, join.epoch, join.round_index - 1, b"c" * 32, 1, named, weight, (), ())
        brought = Brought(previous_plan_digest=digest, certificate=(liar.notary.seal(CHECK, check.encode()),))
        return await honest_round(replace(join, weight=weight, input_hash=named), false_D, placement, brought)

    liar.averager._round = forged  # type: ignore[method-assign]


async def one_epoch(conduct: Conduct, prepare: Callable[[SimulatedSwarm], None] = lambda swarm: None) -> tuple[list[Averaged], int]:
    """What honest members end with, and how many bans they know of."""
    conducts: Mapping[int, Conduct] = {LIAR: conduct}
    async with SimulatedSwarm(COUNT, averaging=RULES, conducts=conducts) as swarm:
        prepare(swarm)
        outcomes = await swarm.round(SIZE)
        await time_passes(20)
        honest = [number for number in range(COUNT) if number != LIAR]
        bans = sum(len(swarm.members[number].ledger.bans) for number in honest)
        return averaged([outcomes[number] for number in honest]), bans


@pytest.mark.parametrize("said", [{"weight": 5.0}, {"electorate": 128}])
def test_a_false_word_about_a_result_neither_spoils_its_certificate_nor_convicts_who_shows_it(said: dict[str, float]) -> None:
    ended, bans = run_simulated(one_epoch(MisreportingWitness(**said)), seed=1, limit_s=1e4)
    assert len(ended) == COUNT - 1
    assert not bans
    assert same_bytes(ended)
    assert all(outcome.weight == COUNT for outcome in ended)


def test_what_a_member_certifies_itself_is_in_no_result_not_even_in_blocks_that_it_reduces() -> None:
    ended, bans = run_simulated(one_epoch(HONEST, bring_what_only_it_vouches_for), seed=1, limit_s=1e4)
    assert len(ended) == COUNT - 1
    assert not bans
    assert all(float(outcome.vector_D.abs().max()) < 10 for outcome in ended)
    assert all(outcome.weight <= COUNT for outcome in ended)
