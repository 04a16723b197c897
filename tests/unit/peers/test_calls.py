"""Calls and joins for rounds ahead of us: bounded, whatever a member names."""

from __future__ import annotations

import asyncio

import pytest

from peers.averaging.plans import seal_join
from peers.simulation import run_simulated
from protocols.errors import RemoteRefusal
from protocols.ids import MAX_EPOCH, Epoch, RoundId
from protocols.messages import MAX_FAILURES, MAX_ROUNDS, Join
from protocols.proto.swarm.v1 import control_pb2 as pb
from tests.helpers.averaging_swarm import RUN, STATE_HASH, SimulatedSwarm

MOST = 6
"""Our round, four ahead of it, and the first one of the next epoch."""


async def answer(swarm: SimulatedSwarm, request: pb.Closing) -> str:
    """What the first member says to a call of the second."""
    caller = swarm.members[1]
    endpoint = caller.directory.endpoint(swarm.members[0].peer)
    assert endpoint is not None
    try:
        await caller.transport.call(endpoint, "closing", request.SerializeToString(), timeout_s=3)
    except RemoteRefusal as error:
        return error.code
    return "heard"


def test_calls_for_rounds_that_no_grid_has_leave_nothing_behind() -> None:
    async def main() -> None:
        async with SimulatedSwarm(2) as swarm:
            member = swarm.members[0]
            numbers = [*range(1000), *range(2**32 - 1000, 2**32)]
            answers = [await answer(swarm, pb.Closing(epoch=epoch, round_index=number)) for epoch in (0, 1) for number in numbers]
            assert answers.count("heard") == MOST
            assert set(answers) == {"heard", "ahead", "protocol-error"}
            assert len(member.averager._rounds._gatherings) == MOST
            assert len(member.closed) == MOST
            assert "round" in member.averager._blamed[swarm.members[1].peer]

    run_simulated(main())


def test_joins_for_rounds_far_ahead_are_refused() -> None:
    async def main() -> None:
        async with SimulatedSwarm(2) as swarm:
            member, caller = swarm.members
            endpoint = caller.directory.endpoint(member.peer)
            assert endpoint is not None

            async def join(index: int) -> str:
                own = Join(Epoch(0), STATE_HASH, 1.0, 1000, round_index=index, input_hash=b"i" * 32 if index else b"")
                sealed = seal_join(caller.averager._rounds._context, own).sealed
                try:
                    async with caller.transport.stream(endpoint, "join", timeout_s=2) as stream:
                        await stream.send(sealed)
                        async with asyncio.timeout(1):
                            while await stream.receive():
                                pass
                except RemoteRefusal as error:
                    return error.code
                except TimeoutError:
                    return "waits"
                return "ended"

            answers = await asyncio.gather(*(join(index) for index in range(MAX_ROUNDS)))
            assert answers == ["waits"] * 5 + ["ahead"] * 11
            assert len(member.averager._rounds._gatherings) == 5

    run_simulated(main())


@pytest.mark.parametrize(
    "request_",
    [
        pb.Closing(epoch=MAX_EPOCH + 1),
        pb.Closing(failures=MAX_FAILURES + 1),
        pb.Closing(round_index=MAX_ROUNDS),
        pb.Closing(stand_in=True),
    ],
)
def test_an_absurd_call_is_refused_and_its_sender_named(request_: pb.Closing) -> None:
    async def main() -> None:
        async with SimulatedSwarm(2) as swarm:
            assert await answer(swarm, request_) == "protocol-error"
            assert list(swarm.members[0].averager._blamed) == [swarm.members[1].peer]

    run_simulated(main())


def test_failures_are_counted_as_far_as_a_call_can_say() -> None:
    async def main() -> None:
        async with SimulatedSwarm(1) as swarm:
            member = swarm.members[0]
            rounds, here = member.averager._rounds, RoundId(RUN, Epoch(0))
            rounds.note_failure(here, member.peer)
            rounds._failures[member.peer] = MAX_FAILURES - 1
            for _ in range(3):
                rounds.note_failure(here, member.peer)
            assert rounds._failures[member.peer] == MAX_FAILURES

    run_simulated(main())
