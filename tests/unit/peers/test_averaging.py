"""The averaging round on a simulated network: exact when all goes well, and the same bytes for every survivor when it does not."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest
import torch

from peers.averaging import settling
from peers.averaging.gathering import LeftOut
from peers.averaging.verdicts import verdict_bytes
from peers.simulation import run_simulated
from peers.testing import KeyNotary, make_key
from peers.transport.simulated import LinkSpec
from protocols.codecs import codec_named
from protocols.frames import HEARTBEAT
from protocols.ids import Epoch, RoundId
from protocols.messages import Commit, Plan
from protocols.rendezvous import rendezvous_order
from tests.helpers.averaging_swarm import RUN, SimulatedSwarm, averaged, rules, same_bytes
from tests.helpers.swarm_tampering import Tamper

SIZE_ELEMS = 1000


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8"])
def test_everyone_gets_the_weighted_mean_bit_for_bit(count: int, codec: str) -> None:
    weights = [1.0 + number for number in range(count)]

    async def main() -> None:
        async with SimulatedSwarm(count, averaging=rules(codec)) as swarm:
            outcomes = await swarm.round(SIZE_ELEMS, weights=weights)
            done = averaged(outcomes)
            assert len(done) == count
            assert same_bytes(done)
            exact = sum(w * swarm.vector(n, SIZE_ELEMS).double() for n, w in enumerate(weights)) / sum(weights)
            bound = 2 * codec_named(codec).worst_error(torch.full((1,), 4.0)) + 1e-6
            assert float((done[0].vector_D.double() - exact).abs().max()) < bound
            assert done[0].weight == pytest.approx(sum(weights))
            assert set(done[0].contributors) == {member.peer for member in swarm.members}

    run_simulated(main(), seed=1)


def test_a_helper_adds_nothing_and_gets_the_result() -> None:
    async def main() -> None:
        async with SimulatedSwarm(3) as swarm:
            done = averaged(await swarm.round(SIZE_ELEMS, weights=[1, 1, 0]))
            assert len(done) == 3
            assert same_bytes(done)
            exact = (swarm.vector(0, SIZE_ELEMS) + swarm.vector(1, SIZE_ELEMS)) / 2
            torch.testing.assert_close(done[2].vector_D, exact)
            assert swarm.members[2].peer not in done[0].contributors

    run_simulated(main(), seed=1)


@pytest.mark.parametrize("client", range(3))
def test_a_member_that_nobody_can_dial_takes_part_without_leading_or_reducing(client: int) -> None:
    async def main() -> None:
        async with SimulatedSwarm(3, clients=[client]) as swarm:
            done = averaged(await swarm.round(SIZE_ELEMS, bandwidths=[0 if n == client else 1000 for n in range(3)]))
            assert len(done) == 3
            assert same_bytes(done)
            assert swarm.members[client].peer in done[0].contributors

    run_simulated(main(), seed=1)


def test_nobody_with_samples_is_a_failed_round_not_a_zero_gradient() -> None:
    async def main() -> None:
        async with SimulatedSwarm(2) as swarm:
            assert averaged(await swarm.round(SIZE_ELEMS, weights=[0, 0])) == []

    run_simulated(main(), seed=1)


def test_the_first_join_closes_the_epoch_for_those_who_still_compute() -> None:
    async def main() -> None:
        async with SimulatedSwarm(3) as swarm:
            done = averaged(await swarm.round(SIZE_ELEMS, after_s=lambda number: float(number)))
            assert len(done) == 3
            assert same_bytes(done)
            assert len(done[0].contributors) == 3
            assert any(Epoch(0) in member.closed for member in swarm.members)

    run_simulated(main(), seed=1)


def test_a_member_that_comes_too_late_gets_the_result_it_is_not_in() -> None:
    async def main() -> None:
        async with SimulatedSwarm(4) as swarm:
            done = averaged(await swarm.round(SIZE_ELEMS, after_s=lambda number: 20.0 if number == 2 else 0.0))
            assert len(done) == 4
            assert same_bytes(done)
            assert not done[2].included_us
            assert done[0].weight == 3

    run_simulated(main(), seed=1)


def test_a_member_with_another_state_is_left_out() -> None:
    async def main() -> None:
        async with SimulatedSwarm(3) as swarm:
            outcomes = await swarm.round(SIZE_ELEMS, states={1: b"x" * 32})
            assert isinstance(outcomes[1], LeftOut)
            done = averaged(outcomes)
            assert len(done) == 2
            assert same_bytes(done)
            assert done[0].weight == 2

    run_simulated(main(), seed=1)


# A whole undisturbed round of these members takes about 0.3 s; the last moments lie after it.
CRASH_MOMENTS_S = [0.0, 0.021, 0.045, 0.07, 0.09, 0.11, 0.13, 0.16, 0.19, 0.22, 0.26, 0.30, 0.4]


@pytest.mark.parametrize("victim", range(4))
@pytest.mark.parametrize("moment_s", CRASH_MOMENTS_S)
def test_a_crash_at_any_moment_leaves_the_survivors_with_the_same_bytes(victim: int, moment_s: float) -> None:
    async def main() -> None:
        async with SimulatedSwarm(4, link=LinkSpec(latency_s=0.02, bandwidth_bytes_per_s=2e5)) as swarm:
            asyncio.get_running_loop().call_later(moment_s, swarm.network.crash, swarm.members[victim].peer)
            survivors = [number for number in range(4) if number != victim]
            doomed = asyncio.ensure_future(swarm.round(SIZE_ELEMS, who=[victim]))
            outcomes = await swarm.round(SIZE_ELEMS, who=survivors)
            doomed.cancel()
            done = averaged(outcomes)
            assert len(done) == 3, outcomes
            assert same_bytes(done)
            assert done[0].weight >= 3
            assert asyncio.get_running_loop().time() < moment_s + 1.0  # its connections break, or nobody listens where it was

    run_simulated(main(), seed=3)


@pytest.mark.parametrize("told", range(5))
def test_a_leader_that_crashes_while_it_sends_the_plan_costs_no_stall(told: int) -> None:
    """Whoever has not got it is in it all the same, and gets it from the others."""
    plans = count()
    peers = [KeyNotary(make_key(number)).peer for number in range(6)]
    leader = peers.index(rendezvous_order(RoundId(RUN, Epoch(0)), peers)[0])

    async def main() -> None:
        def send_and_crash(method: str, message: bytes) -> list[bytes]:
            if method == "join" and message != HEARTBEAT and next(plans) >= told:
                swarm.network.crash(peers[leader])
                return []
            return [message]

        link = LinkSpec(latency_s=0.02, bandwidth_bytes_per_s=2e5)
        async with SimulatedSwarm(6, link=link, tampers={leader: Tamper(served=send_and_crash)}) as swarm:
            survivors = [number for number in range(6) if number != leader]
            doomed = asyncio.ensure_future(swarm.round(SIZE_ELEMS, who=[leader]))
            outcomes = await swarm.round(SIZE_ELEMS, who=survivors)
            doomed.cancel()
            assert next(plans) > told
            assert len(averaged(outcomes)) == 5, outcomes
            assert same_bytes(averaged(outcomes))
            assert asyncio.get_running_loop().time() < 1.5

    run_simulated(main(), seed=3)


@pytest.mark.parametrize("told", range(5))
def test_a_leader_that_crashes_while_it_tells_the_verdict_costs_no_stall(told: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some have heard it, and turn to nobody any more; the others must learn it from them."""
    tell, verdicts = verdict_bytes, count()

    async def main() -> None:
        async with SimulatedSwarm(6, link=LinkSpec(latency_s=0.02, bandwidth_bytes_per_s=2e5)) as swarm:
            peers = [member.peer for member in swarm.members]
            leader = peers.index(rendezvous_order(RoundId(RUN, Epoch(0)), peers)[0])

            def tell_and_crash(verdict: Commit | Plan) -> bytes:
                if next(verdicts) == told:
                    swarm.network.crash(peers[leader])
                return tell(verdict)

            monkeypatch.setattr(settling, "verdict_bytes", tell_and_crash)
            survivors = [number for number in range(6) if number != leader]
            doomed = asyncio.ensure_future(swarm.round(SIZE_ELEMS, who=[leader]))
            outcomes = await swarm.round(SIZE_ELEMS, who=survivors)
            doomed.cancel()
            assert next(verdicts) > told
            assert len(averaged(outcomes)) == 5, outcomes
            assert same_bytes(averaged(outcomes))
            assert asyncio.get_running_loop().time() < 1.5  # an undisturbed round takes 0.3 s, and asking again a heartbeat

    run_simulated(main(), seed=3)


@pytest.mark.parametrize("victims", [(0, 1), (1, 2), (2, 3), (0, 3)])
@pytest.mark.parametrize("moment_s", [0.05, 0.1, 0.15, 0.2])
def test_two_crashes_in_a_row_leave_the_rest_with_the_same_bytes(victims: tuple[int, int], moment_s: float) -> None:
    async def main() -> None:
        async with SimulatedSwarm(5, link=LinkSpec(latency_s=0.02, bandwidth_bytes_per_s=2e5)) as swarm:
            for nth, victim in enumerate(victims):
                asyncio.get_running_loop().call_later(moment_s + 0.04 * nth, swarm.network.crash, swarm.members[victim].peer)
            doomed = asyncio.ensure_future(swarm.round(SIZE_ELEMS, who=victims))
            done = averaged(await swarm.round(SIZE_ELEMS, who=[n for n in range(5) if n not in victims]))
            doomed.cancel()
            assert len(done) == 3
            assert same_bytes(done)

    run_simulated(main(), seed=4)


@pytest.mark.parametrize("victim", range(4))
@pytest.mark.parametrize("moment_s", [0.05, 0.1, 0.15, 0.2])
def test_a_black_hole_is_noticed_by_missing_progress(victim: int, moment_s: float) -> None:
    """No reset, no packet: the others go on within a few stall timeouts."""

    async def main() -> None:
        async with SimulatedSwarm(4, link=LinkSpec(latency_s=0.02, bandwidth_bytes_per_s=2e5)) as swarm:
            survivors = [number for number in range(4) if number != victim]
            for other in survivors:
                asyncio.get_running_loop().call_later(
                    moment_s, swarm.network.blackhole, swarm.members[victim].peer, swarm.members[other].peer
                )
            doomed = asyncio.ensure_future(swarm.round(SIZE_ELEMS, who=[victim]))
            done = averaged(await swarm.round(SIZE_ELEMS, who=survivors))
            doomed.cancel()
            assert len(done) == 3
            assert same_bytes(done)
            assert asyncio.get_running_loop().time() < 30

    run_simulated(main(), seed=5)
