"""A member that says that a round is closed, and cannot show its result, holds up nobody for longer than it takes to find out."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from peers.averaging.context import AveragingRules
from peers.simulation import run_simulated
from protocols.codecs import codec_named
from protocols.frames import HEARTBEAT
from protocols.ids import Epoch
from protocols.messages import Commit
from protocols.proto.swarm.v1 import control_pb2 as pb
from tests.helpers.averaging_swarm import RUN, STATE_HASH, SimulatedSwarm, averaged, same_bytes
from tests.helpers.swarm_liars import COUNT, LAST, LEADER, SIZE_ELEMS
from tests.helpers.swarm_tampering import Tamper

BLOCK_ELEMS = 64
FALSE = Commit(b"p" * 32, Epoch(0), (b"x" * 32,) * -(-SIZE_ELEMS // BLOCK_ELEMS), 4.0, STATE_HASH)


async def _says_it_is_closed(name: str, answer: bytes) -> bytes:
    return pb.ClosingReply(commit=FALSE.to_message()).SerializeToString() if name == "closing" else answer


def _answers_joins_with_it(method: str, message: bytes) -> list[bytes]:
    return [pb.JoinReply(commit=FALSE.to_message()).SerializeToString()] if method == "join" and message != HEARTBEAT else [message]


@pytest.mark.parametrize(
    ("liar", "tamper"),
    [(LAST, Tamper(reply=_says_it_is_closed)), (LEADER, Tamper(served=_answers_joins_with_it))],
    ids=["called", "joined"],
)
def test_the_others_average_all_the_same(liar: int, tamper: Tamper) -> None:
    rules = AveragingRules(RUN, BLOCK_ELEMS, codec_named("fp32"), 64)

    async def main() -> None:
        async with SimulatedSwarm(COUNT, averaging=rules, tampers={liar: tamper}) as swarm:
            own = asyncio.ensure_future(swarm.round(SIZE_ELEMS, who=[liar]))
            outcomes = await swarm.round(SIZE_ELEMS, who=[number for number in range(COUNT) if number != liar])
            own.cancel()
            assert len(averaged(outcomes)) == COUNT - 1, outcomes
            assert same_bytes(averaged(outcomes))
            assert all(done.weight >= COUNT - 1 for done in averaged(outcomes))
            assert asyncio.get_running_loop().time() < 30.0

    run_simulated(main(), seed=2, limit_s=3000)


def test_a_commit_under_another_name_is_a_breach() -> None:
    def renamed(method: str, message: bytes) -> list[bytes]:
        verdict = pb.Verdict()
        if method != "settle" or message == HEARTBEAT:
            return [message]
        verdict.ParseFromString(message)
        verdict.commit.CopyFrom(replace(Commit.from_message(verdict.commit, None), epoch=Epoch(7)).to_message())  # type: ignore[arg-type]
        return [verdict.SerializeToString()]

    async def main() -> None:
        async with SimulatedSwarm(COUNT, tampers={LEADER: Tamper(served=renamed)}) as swarm:
            outcomes = await swarm.round(SIZE_ELEMS)
            others = [done for number, done in enumerate(outcomes) if number != LEADER]
            assert len(averaged(others)) == COUNT - 1, outcomes
            assert same_bytes(averaged(others))
            liar = swarm.members[LEADER].peer
            assert {peer for done in averaged(others) for peer in done.blamed} == {liar}

    run_simulated(main(), seed=2, limit_s=3000)
