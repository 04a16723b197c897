"""Liars and broken programs in an exchange: everybody else ends with the same bytes, in bounded time, and knows whom to blame."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
import torch

from peers.averaging.averager import Averaged
from peers.simulation import run_simulated
from protocols.errors import LocalProtocolError, RemoteRefusal
from protocols.frames import HEARTBEAT
from protocols.ids import BlockIndex, Epoch
from protocols.messages import Join
from protocols.messages_blocks import BlocksRequest
from protocols.proto.swarm.v1 import control_pb2 as pb
from tests.helpers.averaging_swarm import STATE_HASH, SimulatedSwarm, averaged, contribution, same_bytes
from tests.helpers.swarm_liars import (
    BAD_FRAMES,
    COUNT,
    LAST,
    LEADER,
    NUMBER_OF,
    PART,
    QUICK_S,
    RESULT,
    SECOND,
    SIZE_ELEMS,
    SLOW_S,
    THIRD,
    Head,
    altered,
    frame,
    offender_of,
    play,
)
from tests.helpers.swarm_tampering import Tamper

# Blocks


@pytest.mark.parametrize("offender", [LEADER, LAST])
@pytest.mark.parametrize("what", BAD_FRAMES)
def test_a_sender_of_bad_parts_is_left_out_and_named(offender: int, what: str) -> None:
    done, blamed = play(offender, Tamper(dialled=altered(PART, BAD_FRAMES[what])))
    assert offender_of(offender) in blamed
    assert len(done[0].contributors) >= COUNT - 1


@pytest.mark.parametrize("offender", [LEADER, LAST])
@pytest.mark.parametrize("what", BAD_FRAMES)
def test_a_reducer_of_bad_results_loses_its_blocks_and_is_named(offender: int, what: str) -> None:
    done, blamed = play(offender, Tamper(served=altered(RESULT, BAD_FRAMES[what])))
    assert offender_of(offender) in blamed
    assert set(done[0].contributors) >= {peer for peer, number in NUMBER_OF.items() if number != offender}


def test_contributors_that_bring_nothing_are_foreign() -> None:
    helper = THIRD
    weights = [0.0 if number == helper else 1.0 for number in range(COUNT)]

    def name_the_helper(head: Head, chunk: bytes) -> list[bytes]:
        return [frame(head, chunk, contributors=1 << (LEADER, SECOND, THIRD, LAST).index(helper))]

    _, blamed = play(LAST, Tamper(served=altered(RESULT, name_the_helper)), weights=weights)
    assert "contributors" in blamed[offender_of(LAST)]


def test_a_reducer_that_tells_everybody_something_else_cannot_split_the_group() -> None:
    counter = Counter[str]()

    def another_number(head: Head, chunk: bytes) -> list[bytes]:
        counter["sent"] += 1
        return [frame(head, struct.pack("<f", counter["sent"]) + chunk[4:])]

    play(LAST, Tamper(served=altered(RESULT, another_number)))
    assert counter["sent"] > 3


def test_a_second_stream_is_refused_and_counts_nothing_twice() -> None:
    done, blamed = play(LAST, Tamper(twice=True))
    assert "second stream" in blamed[offender_of(LAST)]
    vectors = torch.stack([contribution(number, SIZE_ELEMS) for number in range(COUNT)])
    torch.testing.assert_close(done[0].vector_D, vectors.mean(0))
    assert done[0].weight == COUNT


@pytest.mark.parametrize("kind", [PART, RESULT])
def test_heartbeats_alone_hold_the_others_up_for_a_bounded_time(kind: int) -> None:
    silent = altered(kind, lambda head, chunk: [HEARTBEAT])
    play(LAST, Tamper(dialled=silent, served=silent), limit_s=SLOW_S)


def test_after_a_few_rounds_heartbeats_alone_are_seen_through_quickly() -> None:
    broken = False

    async def main() -> None:
        nonlocal broken
        silent = altered(PART, lambda head, chunk: [HEARTBEAT] if broken else [frame(head, chunk)])
        async with SimulatedSwarm(COUNT, tampers={LAST: Tamper(dialled=silent)}) as swarm:
            for epoch in range(5):
                broken = epoch == 4
                began_s = asyncio.get_running_loop().time()
                done = averaged(await swarm.round(SIZE_ELEMS, epoch=epoch))
                assert same_bytes([outcome for number, outcome in enumerate(done) if number != LAST])
                assert (swarm.members[LAST].peer in done[0].contributors) != broken or done[0].weight < COUNT
        assert asyncio.get_running_loop().time() - began_s < 15  # not the 30 s of the longest exchange

    run_simulated(main(), limit_s=SLOW_S)


@pytest.mark.parametrize("moment_s", [0.06, 0.08, 0.1, 0.12, 0.14])
def test_a_link_that_comes_back_is_nobodys_fault(moment_s: float) -> None:
    """What was sent into it arrives when its sender has long been left out."""

    async def main() -> None:
        async with SimulatedSwarm(COUNT) as swarm:
            loop = asyncio.get_running_loop()
            victim, others = swarm.members[LAST].peer, [member.peer for number, member in enumerate(swarm.members) if number != LAST]
            loop.call_later(moment_s, swarm.network.partition, [victim], others)
            loop.call_later(moment_s + 3.5, swarm.network.heal)
            theirs = asyncio.ensure_future(swarm.round(SIZE_ELEMS, who=[LAST]))
            done = averaged(await swarm.round(SIZE_ELEMS, who=[number for number in range(COUNT) if number != LAST]))
            done += averaged(await theirs)
            assert len(done) >= COUNT - 1
            assert all(member.averager._blamed == {} for member in swarm.members)
            assert [outcome.blamed for outcome in done] == [{}] * len(done)

    run_simulated(main(), limit_s=SLOW_S)


def test_a_contribution_that_is_not_finite_does_not_leave_the_house() -> None:
    async def main() -> None:
        async with SimulatedSwarm(1) as swarm:
            join = Join(Epoch(0), STATE_HASH, 1.0, 1000)
            with pytest.raises(LocalProtocolError, match="NaN or infinite"):
                await swarm.members[0].averager.average_epoch(join, torch.tensor([1.0, float("nan")]))

    run_simulated(main())


# Streams of strangers


def run_with_stranger(act: Callable[[SimulatedSwarm], Awaitable[None]]) -> list[Averaged]:
    """A round of members 0 to 2, while member 3, who is in no plan, does something."""

    async def main() -> list[Averaged]:
        async with SimulatedSwarm(COUNT) as swarm:
            for number in range(3):
                swarm.members[number].directory.suspect(swarm.members[3].peer)
            acting = asyncio.ensure_future(act(swarm))
            done = averaged(await swarm.round(SIZE_ELEMS, who=[0, 1, 2]))
            await acting
            assert len(done) == 3
            assert same_bytes(done)
            assert len(done[0].contributors) == 3
            assert asyncio.get_running_loop().time() < QUICK_S
            return done

    return run_simulated(main(), seed=2)


def test_streams_with_made_up_plans_push_nobody_out() -> None:
    async def act(swarm: SimulatedSwarm) -> None:
        async def one(victim: int, digest: bytes) -> str:
            stranger = swarm.members[3]
            endpoint = stranger.directory.endpoint(swarm.members[victim].peer)
            assert endpoint is not None
            async with stranger.transport.stream(endpoint, "exchange", timeout_s=20) as stream:
                await stream.send(pb.ExchangeHeader(plan_digest=digest).SerializeToString())
                try:
                    await stream.receive()
                except RemoteRefusal as error:
                    return error.code
            return "served"

        codes = await asyncio.gather(*(one(victim, bytes([n]) * 32) for victim in range(3) for n in range(30)))
        assert set(codes) == {"unknown-plan"}

    run_with_stranger(act)


def test_a_stranger_to_the_plan_is_refused_and_named() -> None:
    async def act(swarm: SimulatedSwarm) -> None:
        stranger, member = swarm.members[3], swarm.members[0]
        endpoint = stranger.directory.endpoint(member.peer)
        assert endpoint is not None
        while not member.averager._rounds.exchanges._known:
            await _moment()
        (digest,) = member.averager._rounds.exchanges._known
        async with stranger.transport.stream(endpoint, "exchange", timeout_s=20) as stream:
            await stream.send(pb.ExchangeHeader(plan_digest=digest).SerializeToString())
            with pytest.raises(RemoteRefusal, match="a plan that it is not in"):
                await stream.receive()

    done = run_with_stranger(act)
    assert any(offender_of(3) in outcome.blamed for outcome in done)


async def _moment() -> None:
    """A hundredth of a second passes."""
    never = asyncio.Event()
    try:
        async with asyncio.timeout(0.01):
            await never.wait()
    except TimeoutError:
        return


NAMES_THE_ROUND = b"r" * 32


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (b"junk", "protocol-error"),
        (BlocksRequest(bytes(32), ()).encode(), "unknown-round"),
        (BlocksRequest(NAMES_THE_ROUND, (BlockIndex(99),)).encode(), "missing-block"),
    ],
)
def test_odd_requests_for_blocks_are_refused(request_bytes: bytes, code: str) -> None:
    async def main() -> str:
        async with SimulatedSwarm(2) as swarm:
            await swarm.round(SIZE_ELEMS)
            (digest,) = swarm.members[0].averager._rounds.results
            endpoint = swarm.members[1].directory.endpoint(swarm.members[0].peer)
            assert endpoint is not None
            async with swarm.members[1].transport.stream(endpoint, "blocks", timeout_s=20) as stream:
                await stream.send(request_bytes.replace(NAMES_THE_ROUND, digest))
                with pytest.raises(RemoteRefusal) as caught:
                    await stream.receive()
        return caught.value.code

    assert run_simulated(main()) == code
