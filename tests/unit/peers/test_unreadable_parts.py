"""A reducer commits to bytes that are no block, takes them in itself, and returns what it likes: nobody can compute that again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from peers.averaging.context import MemberContext
from peers.averaging.evidence import Evidence
from peers.averaging.exchange import Exchange
from peers.averaging.result import RoundResult
from peers.averaging.trust_rules import TrustRules
from peers.averaging.verified import VerifiedRounds
from peers.conduct import HONEST, Conduct
from peers.simulation import run_simulated
from protocols.butterfly import accepted_weight, blocks_reduced_by
from protocols.content import content_hash, input_hash
from protocols.ids import BlockIndex, PeerId
from protocols.messages import Plan
from protocols.parts import Part
from protocols.trust.offences import Offence
from protocols.trust.statements import Charge, Check
from tests.helpers.attack_scene import time_passes
from tests.helpers.averaging_swarm import SimulatedSwarm, averaged, contribution, rules, same_bytes

COUNT, LIAR, ACCUSER, SIZE = 7, 1, 3, 1000
FALSE = 77.0
RULES = replace(rules(block_elems=100), trust=TrustRules(auditors=0))


class FalseReducer(Conduct):
    """Returns one number everywhere."""

    def reduced(self, block: BlockIndex, mean_E: torch.Tensor, radius: float) -> torch.Tensor:
        return torch.full_like(mean_E, FALSE)


class Accuser(Conduct):
    """Has everybody look at the figures of a part that is no block."""

    accused: PeerId

    def accusations(self, plan: Plan) -> Sequence[Charge]:
        block = blocks_reduced_by(plan, plan.index_of(self.accused) or 0)[0]
        return (Charge(plan.digest, plan.epoch, self.accused, Offence.CHECK, block),)


def commit_to_no_block(monkeypatch: pytest.MonkeyPatch, liar: PeerId) -> None:
    """In the blocks that it reduces; there it goes on as if it had sent zeros."""
    encode_all, own_part, make_check = Evidence._encode_all, Exchange._own_part, VerifiedRounds._make_check

    def encode(self: Evidence) -> tuple[bytes, ...]:
        contents, context = list(encode_all(self)), self._context
        assert isinstance(context, MemberContext)
        for block in blocks_reduced_by(self.plan, self.me) if context.me == liar else ():
            self.parts[self.me, block] = b"\xff" * len(self.parts[self.me, block])
            contents[block] = content_hash(self.parts[self.me, block])
        return tuple(contents)

    def own(self: Exchange, block: BlockIndex) -> Part:
        return torch.zeros(self._terms.blocks.elems(block)) if self._context.me == liar else own_part(self, block)

    def check(self: VerifiedRounds, evidence: Evidence, plan: Plan, result: RoundResult, coin: bytes) -> Check:
        if self._context.me != liar:
            return make_check(self, evidence, plan, result, coin)
        count = evidence.blocks.count
        named, weight = input_hash(result.contents, evidence.digest), accepted_weight(plan, result.masks)
        return Check(evidence.digest, plan.epoch, 0, coin, plan.electorate, named, weight, (0.0,) * count, (0.0,) * count)

    monkeypatch.setattr(VerifiedRounds, "_make_check", check)
    monkeypatch.setattr(Evidence, "_encode_all", encode)
    monkeypatch.setattr(Exchange, "_own_part", own)


@pytest.mark.parametrize("accuser", [HONEST, Accuser()], ids=["alone", "accused by an accomplice"])
def test_it_is_put_right_and_its_author_is_out(accuser: Conduct, monkeypatch: pytest.MonkeyPatch) -> None:
    async def epoch() -> None:
        async with SimulatedSwarm(COUNT, averaging=RULES, conducts={LIAR: FalseReducer(), ACCUSER: accuser}) as swarm:
            liar = swarm.members[LIAR].peer
            commit_to_no_block(monkeypatch, liar)
            if isinstance(accuser, Accuser):
                accuser.accused = liar
            outcomes = await swarm.round(SIZE)
            await time_passes(20)
            honest = [number for number in range(COUNT) if number not in (LIAR, ACCUSER)]
            ended = averaged([outcomes[number] for number in honest])
            assert len(ended) == len(honest)
            assert same_bytes(ended)
            most = max(float(contribution(number, SIZE).abs().max()) for number in range(COUNT))
            assert float(ended[0].vector_D.abs().max()) <= most
            assert all(liar in swarm.members[number].ledger for number in honest)

    run_simulated(epoch(), seed=1, limit_s=1e4)
