"""Calls to stand in that come too early, or from members that nobody expects, cost nobody a round."""

from __future__ import annotations

import asyncio

import pytest
import torch

from peers.averaging.evidence import Brought
from peers.averaging.rounds import Rounds
from peers.averaging.standing_in import Carried, StandIns
from peers.simulation import run_simulated
from protocols.errors import RemoteError, RemoteRefusal
from protocols.grid import place
from protocols.ids import Epoch, RoundId
from protocols.messages import Join
from protocols.proto.swarm.v1 import control_pb2 as pb
from tests.helpers.averaging_swarm import RUN, STATE_HASH, SimulatedSwarm, averaged, rules

STRANGER = 9


@pytest.mark.parametrize(
    ("max_group", "request_", "refused"),
    [(64, pb.Closing(epoch=1, stand_in=True), True), (4, pb.Closing(round_index=1, stand_in=True), False)],
    ids=["the epoch ends", "a later round begins"],
)
def test_a_strangers_call_does_not_undo_what_was_averaged(max_group: int, request_: pb.Closing, refused: bool) -> None:
    async def main() -> None:
        async with SimulatedSwarm(10, averaging=rules(max_group=max_group)) as swarm:
            stranger = swarm.members[STRANGER]
            for member in swarm.members[:STRANGER]:
                known = member.directory.endpoints
                member.directory.endpoints = {peer: endpoint for peer, endpoint in known.items() if peer != stranger.peer}
            heard: list[bytes | BaseException] = []

            async def call() -> None:
                request = request_.SerializeToString()
                endpoints = [endpoint for peer, endpoint in stranger.directory.endpoints.items() if peer != stranger.peer]
                calls = [stranger.transport.call(endpoint, "closing", request, timeout_s=3) for endpoint in endpoints]
                heard.extend(await asyncio.gather(*calls, return_exceptions=True))

            calling: list[asyncio.Task[None]] = []
            loop = asyncio.get_running_loop()
            loop.call_later(0.01, lambda: calling.append(loop.create_task(call())))
            done = averaged(await swarm.round(who=range(STRANGER)))
            await calling[0]
            assert [isinstance(answer, RemoteError) for answer in heard] == [refused] * 9
            assert [outcome.weight for outcome in done] == [9.0] * 9
            assert all(outcome.missed == 0 for outcome in done)

    run_simulated(main(), seed=1)


def test_a_call_of_another_epoch_is_refused_at_once() -> None:
    async def main() -> None:
        async with SimulatedSwarm(2) as swarm:
            stand_ins, rounds = swarm.members[0].averager._stand_ins, swarm.members[0].averager._rounds
            rounds.engaged = True
            for epoch in (1, 7):
                with pytest.raises(RemoteRefusal, match="nothing to bring"):
                    stand_ins.wanted(swarm.members[1].peer, RoundId(RUN, Epoch(epoch), 1))
            assert stand_ins._waiting == {}

    run_simulated(main())


def test_whoever_waits_is_forgotten_when_there_is_nothing_left_to_bring() -> None:
    async def main() -> None:
        async with SimulatedSwarm(2) as swarm:
            stand_ins, rounds = swarm.members[0].averager._stand_ins, swarm.members[0].averager._rounds
            rounds.engaged = True
            stand_ins.wanted(swarm.members[1].peer, RoundId(RUN, Epoch(0), 1))
            rounds.engaged = False
            stand_ins.carry(None)
            assert stand_ins._waiting == {}

    run_simulated(main())


def test_one_leaders_refusal_does_not_keep_another_waiting() -> None:
    """The first that waits is a stranger, the second misses what we bring, the third what we will bring later."""

    async def main() -> None:
        async with SimulatedSwarm(9, averaging=rules(max_group=4)) as swarm:
            member = swarm.members[0]
            known = frozenset(one.peer for one in swarm.members[:8])
            stand_ins, rounds = member.averager._stand_ins, member.averager._rounds
            assert isinstance(rounds, Rounds)
            assert isinstance(stand_ins, StandIns)
            rounds.engaged = True
            for leader, index in ((8, 1), (1, 1), (2, 2)):
                stand_ins.wanted(swarm.members[leader].peer, RoundId(RUN, Epoch(0), index))
            rounds.go_to(RoundId(RUN, Epoch(0), 1))
            join = Join(Epoch(0), STATE_HASH, 1.0, 1000, round_index=1, input_hash=b"i" * 32)
            stand_ins.carry(Carried(join, torch.ones(8), place(b"c" * 32, known, frozenset(), 4), Brought()))
            assert list(stand_ins._waiting) == [swarm.members[2].peer]
            assert stand_ins._done.total() == 1
            stand_ins.carry(None)

    run_simulated(main())
