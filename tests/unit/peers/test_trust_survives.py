"""What liars who stand together can do to a round ends the round at most, and never an honest member."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from peers.averaging import verifying
from peers.averaging.auditing import ACCUSE
from peers.averaging.averager import Averaged
from peers.averaging.trust_rules import TrustRules
from peers.simulation import run_simulated
from protocols.errors import RemoteProtocolError
from protocols.ids import BlockIndex, Epoch
from protocols.trust.offences import Offence
from protocols.trust.statements import ACCUSATION, Charge
from tests.helpers.attack_scene import Scene, play
from tests.helpers.averaging_swarm import SimulatedSwarm, averaged, rules

ELEMS, BLOCK_ELEMS, COUNT = 256, 64, 4
LIAR, ACCUSER = 1, 2
BLOCK = BlockIndex(0)


def test_a_coin_that_is_spoilt_in_every_try_leaves_the_round_unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """One try stands for eight, in each of which another one keeps back its share."""
    monkeypatch.setattr(verifying, "COIN_TRIES", 1)
    scene = Scene(attackers=(1,))
    found = run_simulated(play("withhold_coin", scene, 2), seed=0, limit_s=10000)
    assert [len(results) for results in found.results] == [len(scene.honest)] * 2
    assert found.nobody_is_banned()


def test_figures_of_bytes_that_are_no_block_are_false() -> None:
    """A reducer that lies with their sender gets such bytes into a result; whoever is asked to look finds them."""

    async def main() -> bool:
        async with SimulatedSwarm(COUNT, averaging=rules(block_elems=BLOCK_ELEMS, trust=TrustRules(auditors=0))) as swarm:
            outcomes = averaged(await swarm.round(ELEMS))
            assert len(outcomes) == COUNT
            assert all(isinstance(outcome, Averaged) for outcome in outcomes)
            guarding = swarm.members[0].averager.guarding
            assert guarding
            (case,) = guarding.verified.cases.values()
            liar = case.plan.index_of(swarm.members[LIAR].peer)
            assert liar is not None
            case.evidence.parts[liar, BLOCK] = struct.pack(f"<{BLOCK_ELEMS}f", *[float("nan")] * BLOCK_ELEMS)
            charge = Charge(case.evidence.digest, Epoch(0), swarm.members[LIAR].peer, Offence.CHECK, BLOCK)
            accuser = swarm.members[ACCUSER]
            for epoch in (1, 2**40):  # an accuser that could name any would have us look as often as it likes
                wrong = accuser.notary.seal(ACCUSATION, replace(charge, epoch=Epoch(epoch)).encode_accusation())
                with pytest.raises(RemoteProtocolError, match="another epoch"):
                    await guarding.auditing.calls[ACCUSE](accuser.peer, wrong)
            assert not guarding.auditing.busy
            await guarding.auditing.calls[ACCUSE](accuser.peer, accuser.notary.seal(ACCUSATION, charge.encode_accusation()))
            while guarding.auditing.busy:
                for task in tuple(guarding.auditing.busy):
                    await task
            return (swarm.members[LIAR].peer, Offence.CHECK) in guarding.court.judged

    assert run_simulated(main(), seed=0, limit_s=1000.0)
