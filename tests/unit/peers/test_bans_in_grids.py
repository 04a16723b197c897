"""Bans in a swarm of several groups: whose word is enough, who hears of them, and when the grid changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch

from peers.averaging.context import AveragingRules, MemberContext
from peers.averaging.court import Court
from peers.averaging.evidence import Brought, Evidence
from peers.averaging.trust_rules import TrustRules
from peers.averaging.unbanned import Unbanned
from peers.interfaces import Endpoint, Handlers
from peers.simulation import run_simulated
from peers.testing import FixedDirectory
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.codecs import codec_named
from protocols.content import content_hash, input_hash
from protocols.errors import RemoteRefusal
from protocols.ids import Epoch, PeerId, RunId
from protocols.messages import SealedJoin
from protocols.trust.ledger import Ban, Ledger, ban_by_judgements, check_ban, majority, two_thirds
from protocols.trust.offences import Offence
from tests.helpers.averaging_swarm import SimulatedSwarm, rules
from tests.helpers.trust_values import EPOCH, NOTARIES, PEERS, judgements_of, opener, sealed_commitment, signed_plan

RULES = AveragingRules(RunId(bytes(32)), 10, codec_named("fp32"), 4)


async def passed(time_s: float) -> None:
    """Until so much virtual time has passed."""
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(time_s, over.set)
    await over.wait()


def proof_by(jurors: int, members: int = 9) -> bytes:
    plan = signed_plan(range(members))
    words = judgements_of(plan, 0, range(1, jurors + 1))
    return ban_by_judgements(PEERS[0], Offence.REDUCTION, plan, words, sealed_commitment(plan, 0))


def test_a_group_of_several_bans_by_more_than_two_thirds() -> None:
    assert [two_thirds(EPOCH, size) for size in (3, 9, 14, 15, 16)] == [3, 7, 10, 11, 11]
    assert [majority(EPOCH, size) for size in (3, 9, 14, 15, 16)] == [2, 5, 8, 8, 9]
    for group_size in (0, 9):
        assert check_ban(proof_by(7), opener, EPOCH, lambda *_: group_size, PEERS[1], two_thirds).accused == PEERS[0]  # noqa: B023
        with pytest.raises(RemoteRefusal):
            check_ban(proof_by(6), opener, EPOCH, lambda *_: group_size, PEERS[1], two_thirds)  # noqa: B023


def test_a_place_falls_empty_when_everybody_knows_of_the_ban_and_nobody_waits_for_its_member_meanwhile() -> None:
    ledger = Ledger()
    directory = Unbanned(FixedDirectory(PEERS[1], {peer: Endpoint(peer, str(peer)) for peer in PEERS[:4]}), ledger)
    ledger.add(Ban(PEERS[0], Offence.CHECK, Epoch(5), b"proof"))
    assert [PEERS[0] in directory.placed(Epoch(epoch))[0] for epoch in (5, 6, 7, 8)] == [True, True, False, False]
    assert PEERS[0] not in directory.live(Epoch(5))
    assert directory.endpoint(PEERS[0]) is None
    assert PEERS[2] in directory.placed(Epoch(8))[0] & directory.live(Epoch(8))


def test_bans_are_told_in_one_call_and_again_to_whoever_did_not_hear() -> None:
    async def scene() -> None:
        network = SimulatedNetwork(0, LinkSpec(latency_s=0.01))
        endpoints = {peer: Endpoint(peer, str(peer)) for peer in PEERS}
        heard: list[int] = []
        async with asyncio.TaskGroup() as tasks:
            courts = []
            for number in (4, 5):
                transport = SimulatedTransport(network, PEERS[number])
                context = MemberContext(PEERS[number], transport, FixedDirectory(PEERS[number], endpoints), NOTARIES[number], RULES, tasks)
                courts.append(Court(context, lambda *_: 0, lambda *_: None, lambda ban: None))
            teller, listener = courts

            async def listen(sender: PeerId, request: bytes) -> bytes:
                heard.append(len(request))
                return await listener.calls["ban"](sender, request)

            plans = [signed_plan(range(6), number=number) for number in range(2)]
            proofs = [
                ban_by_judgements(PEERS[accused], Offence.CHECK, plan, judgements_of(plan, accused, (2, 3, 4, 5), Offence.CHECK),
                                  sealed_commitment(plan, accused))
                for accused, plan in enumerate(plans)
            ]  # fmt: skip
            teller.epoch = EPOCH
            await teller.learn(proofs, PEERS[2])
            teller.open_round(signed_plan((4, 5)))  # the other one is not there yet
            await passed(20.0)
            assert not heard
            async with SimulatedTransport(network, PEERS[5]).serve(Handlers(calls={"ban": listen})):
                for number in range(2, 5):
                    teller.open_round(signed_plan((4, 5), number=number))
                    await passed(5.0)
            assert len(heard) == 1
            assert all(listener.is_banned(peer) for peer in PEERS[:2])

    run_simulated(scene(), seed=0, limit_s=1000)


def test_who_missed_a_ban_learns_of_it_in_a_later_epoch_and_who_knows_the_same_is_sent_nothing() -> None:
    async def scene() -> None:
        network = SimulatedNetwork(0, LinkSpec(latency_s=0.01))
        endpoints = {peer: Endpoint(peer, str(peer)) for peer in PEERS[4:6]}
        sizes: list[int] = []
        async with asyncio.TaskGroup() as tasks:
            courts = []
            for number in (4, 5):
                transport = SimulatedTransport(network, PEERS[number])
                context = MemberContext(PEERS[number], transport, FixedDirectory(PEERS[number], endpoints), NOTARIES[number], RULES, tasks)
                courts.append(Court(context, lambda *_: 0, lambda *_: None, lambda ban: None, majority))
            knows, lacks = courts
            plan = signed_plan(range(6))
            words = judgements_of(plan, 0, (2, 3, 4, 5), Offence.CHECK)
            proof = ban_by_judgements(PEERS[0], Offence.CHECK, plan, words, sealed_commitment(plan, 0))
            await knows.learn([proof], PEERS[2])

            async def answer(sender: PeerId, request: bytes) -> bytes:
                reply = await knows.calls["ledger"](sender, request)
                sizes.append(len(reply))
                return reply

            async with SimulatedTransport(network, PEERS[4]).serve(Handlers(calls={"ledger": answer})):
                for epoch in (20, 21):
                    lacks.compare(Epoch(epoch), PEERS[4:6])
                    await passed(5.0)
            assert lacks.is_banned(PEERS[0])
            assert len(sizes) == 2
            assert sizes[1] < 10 < sizes[0]

    run_simulated(scene(), seed=0, limit_s=1000)


@pytest.mark.parametrize(("seen", "convinced"), [(9, True), (11, True), (12, False)])
def test_a_proof_for_the_group_in_the_plan_convinces_who_has_seen_a_little_more_and_not_who_has_seen_many_more(
    seen: int, convinced: bool
) -> None:
    async def scene() -> None:
        async with asyncio.TaskGroup() as tasks:
            transport = SimulatedTransport(SimulatedNetwork(0, LinkSpec(latency_s=0.01)), PEERS[10])
            context = MemberContext(PEERS[10], transport, FixedDirectory(PEERS[10], {}), NOTARIES[10], RULES, tasks)
            court = Court(context, lambda *_: seen, lambda *_: None, lambda ban: None, two_thirds)
            await court.learn([proof_by(7)], PEERS[1])
            assert court.is_banned(PEERS[0]) is convinced

    run_simulated(scene(), seed=0, limit_s=1000)


def test_another_member_is_asked_in_each_epoch() -> None:
    async def scene() -> None:
        network = SimulatedNetwork(0, LinkSpec(latency_s=0.01))
        asked: list[PeerId] = []

        class Asking(Court):
            async def fetch_ledger(self, peers: Iterable[PeerId]) -> int:
                asked.extend(peers)
                return 0

        async with asyncio.TaskGroup() as tasks:
            directory = FixedDirectory(PEERS[0], {peer: Endpoint(peer, str(peer)) for peer in PEERS})
            context = MemberContext(PEERS[0], SimulatedTransport(network, PEERS[0]), directory, NOTARIES[0], RULES, tasks)
            court = Asking(context, lambda *_: 0, lambda *_: None, lambda ban: None, majority)
            for epoch in range(60):
                court.compare(Epoch(epoch), PEERS)
        assert len(asked) == 60
        assert set(asked) == set(PEERS[1:])

    run_simulated(scene(), seed=0, limit_s=1000)


def test_jurors_of_an_epoch_are_counted_whoever_of_them_is_banned_for_it() -> None:
    """Two of nine are guilty in one round, and who bans one first needs no fewer jurors for the other."""

    async def scene() -> None:
        async with SimulatedSwarm(9, averaging=rules(trust=TrustRules())) as swarm:
            await swarm.round(600, epoch=3)
            member = swarm.members[0]
            guarding = member.averager.guarding
            assert guarding
            sizes = []
            for number, epoch in ((1, 3), (2, 2), (3, 4)):
                member.ledger.add(Ban(swarm.members[number].peer, Offence.CHECK, Epoch(epoch), b"proof"))
                sizes.append(guarding._group_size(Epoch(3), 0, swarm.members[4].peer))
            assert sizes == [9, 8, 8]

    run_simulated(scene(), seed=0, limit_s=1000)


def test_who_holds_the_same_result_as_another_commits_to_it_as_well() -> None:
    """If the one that sends it dies, the next one does: it must have committed to what it sends."""

    async def scene() -> None:
        vector_D = torch.arange(40.0)
        contents = tuple(content_hash(RULES.codec.encode(vector_D[start : start + 10])) for start in range(0, 40, 10))
        plan = signed_plan(range(3))
        named = input_hash(contents, b"p" * 32)
        members = []
        for number, member in enumerate(plan.members):
            join = replace(member.join, round_index=1, input_hash=named)
            members.append(SealedJoin(member.peer, join, NOTARIES[number].seal("join", join.encode())))
        plan = replace(plan, members=tuple(members), round_index=1)
        async with asyncio.TaskGroup() as tasks:
            transport = SimulatedTransport(SimulatedNetwork(0, LinkSpec(latency_s=0.01)), PEERS[1])
            context = MemberContext(PEERS[1], transport, FixedDirectory(PEERS[1], {}), NOTARIES[1], RULES, tasks)
            evidence = Evidence(
                context, plan, vector_D, Brought(previous_plan_digest=b"p" * 32, coin_seed=b"c" * 32), lambda *_: None, lambda peer: None
            )
            await evidence.commit()
            assert evidence.committed[1].contents == contents
            assert set(evidence.parts) == {(1, block) for block in range(4)}

    run_simulated(scene(), seed=0, limit_s=1000)


def test_a_ban_for_an_absurd_weight_convinces_members_that_have_seen_nothing_of_the_round() -> None:
    """It shows that the accused took part, so that who was away learns of it."""

    async def scene() -> None:
        async with SimulatedSwarm(5, averaging=rules(trust=TrustRules(most_samples=100.0))) as swarm:
            await swarm.round(600, weights=[1.0, 1.0, 1e6, 1.0, 1.0], bandwidths=[10**6, 0, 0, 0, 0])
            await passed(5.0)
            accused = swarm.members[2].peer
            for member in swarm.members:
                ban = member.ledger.of(accused)
                assert member.peer == accused or ban
                if ban:
                    assert check_ban(ban.proof, opener, Epoch(9), lambda *_: 0, PEERS[1]).offence is Offence.ABSURD_CLAIM

    run_simulated(scene(), seed=0, limit_s=1000)
