"""A member that joins measures its link with others on the simulated network, and whoever serves it gives away only so much."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from peers import link_server
from peers.bandwidth import BandwidthMeter
from peers.interfaces import Endpoint, Handlers, Stream
from peers.link_server import CALLER_BYTES, IDLE_S, MAX_STREAMS, STEP_BYTES, WHILE_S, LinkServer
from peers.link_survey import MEMBERS, MOST_BYTES, WITHIN_S, LinkSurvey
from peers.simulation import run_simulated
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.errors import RemoteProtocolError, RemoteRefusal, RemoteTimeout, RoundError
from protocols.ids import PeerId
from protocols.link_figures import LinkFigures, steady_rate
from protocols.messages_measure import (
    CHUNK_BYTES,
    MAX_STEP_BYTES,
    MEASURE_STREAM,
    MeasureRequest,
    padding,
    padding_bytes,
)
from tests.helpers.attack_scene import time_passes
from tests.helpers.node_swarm import NodeSwarm, state

JOINER = PeerId(b"j" * 32)
LATENCY_S = 0.02


@dataclass
class Scene:
    """One joiner and some members, all of whose links are alike."""

    network: SimulatedNetwork
    transport: SimulatedTransport
    members: list[Endpoint]
    meter: BandwidthMeter = field(default_factory=BandwidthMeter)
    busy: bool = False

    def survey(self) -> LinkSurvey:
        found = LinkSurvey(self.transport, self.meter, lambda: self.members)
        found.holding.set()
        return found


def simulate(
    scenario: Callable[[Scene], Awaitable[None]],
    *,
    members: int = 4,
    bytes_per_s: float = 1e6,
    handlers: Callable[[Scene], Handlers] = lambda scene: LinkServer(lambda: scene.busy).handlers(),
) -> None:
    """Run a scenario; members serve what `handlers` gives."""

    async def main() -> None:
        network = SimulatedNetwork(0, LinkSpec(latency_s=LATENCY_S, bandwidth_bytes_per_s=bytes_per_s))
        scene = Scene(network, SimulatedTransport(network, JOINER), [])
        async with AsyncExitStack() as stack:
            for number in range(members):
                peer = PeerId(bytes([number + 1]) * 32)
                address = await stack.enter_async_context(SimulatedTransport(network, peer).serve(handlers(scene)))
                scene.members.append(Endpoint(peer, address))
            await scenario(scene)

    run_simulated(main(), limit_s=2 * WHILE_S)


@pytest.mark.parametrize("bytes_per_s", [2e5, 1e6, 1e7])
def test_the_link_is_found_to_be_as_fast_as_it_is(bytes_per_s: float) -> None:
    async def scenario(scene: Scene) -> None:
        began_s = asyncio.get_running_loop().time()
        found = await scene.survey().run()
        assert asyncio.get_running_loop().time() - began_s < WITHIN_S
        assert found.up_bytes_per_s == pytest.approx(bytes_per_s, rel=0.1)
        assert found.down_bytes_per_s == pytest.approx(bytes_per_s, rel=0.1)
        assert found.rtt_s == pytest.approx(2 * LATENCY_S, rel=0.5)
        assert found.members == MEMBERS
        assert found.moved_bytes <= 2 * MEMBERS * MOST_BYTES
        assert scene.meter.estimate_bytes_per_s == pytest.approx(bytes_per_s, rel=0.1), "the first round is planned with it"

    simulate(scenario, bytes_per_s=bytes_per_s)


def test_a_state_that_comes_in_is_measured_and_not_measured_again() -> None:
    async def scenario(scene: Scene) -> None:
        survey = scene.survey()
        async with survey.downloading(), scene.transport.stream(scene.members[0], MEASURE_STREAM, timeout_s=60) as stream:
            for _ in range(8):
                await _step(stream, MeasureRequest(0, MAX_STEP_BYTES))
        received_bytes = scene.transport.traffic.received_bytes
        found = await survey.run()
        assert found.down_bytes_per_s == pytest.approx(1e6, rel=0.15)
        assert found.up_bytes_per_s == pytest.approx(1e6, rel=0.15)
        assert "state" in found.note
        assert scene.transport.traffic.received_bytes - received_bytes < CHUNK_BYTES, "nothing is asked for that is known already"

    simulate(scenario)


def test_a_download_that_fails_says_why_and_is_not_a_measurement() -> None:
    async def scenario(scene: Scene) -> None:
        survey = scene.survey()
        with pytest.raises(RoundError, match="nobody"):
            async with survey.downloading():
                raise RoundError("nobody could give it")
        assert "state" not in (await survey.run()).note

    simulate(scenario)


def test_nothing_is_measured_while_a_round_runs_and_rounds_say_what_is_missing() -> None:
    async def scenario(scene: Scene) -> None:
        survey = scene.survey()
        scene.meter.note(5e5)
        with survey.in_round():
            found = await survey.run()
        assert scene.transport.traffic.sent_bytes == 0
        assert (found.up_bytes_per_s, found.down_bytes_per_s, found.rtt_s) == (5e5, 5e5, None)
        assert "rounds" in found.note

    simulate(scenario)


def test_however_often_it_is_tried_only_so_much_is_moved() -> None:
    async def deaf(stream: Stream) -> None:
        """Gives, and takes pings only: there is never a figure for up."""
        while (message := await stream.receive()) is not None:
            request = MeasureRequest.decode(message, stream.peer)
            if request.up_bytes:
                raise RemoteRefusal(stream.peer, "busy", "not now")
            for chunk in padding(request.down_bytes):
                await stream.send(chunk)

    async def scenario(scene: Scene) -> None:
        found = await scene.survey().run()
        assert found.up_bytes_per_s is None
        assert found.down_bytes_per_s == pytest.approx(1e7, rel=0.15)
        assert scene.transport.traffic.received_bytes <= MEMBERS * MOST_BYTES + 10_000

    simulate(scenario, bytes_per_s=1e7, handlers=lambda scene: Handlers(streams={MEASURE_STREAM: deaf}))


def test_members_that_are_busy_or_broken_cost_only_the_figures() -> None:
    async def nonsense(stream: Stream) -> None:
        while await stream.receive() is not None:
            await stream.send(b"xx")

    async def silence(stream: Stream) -> None:
        await asyncio.Event().wait()

    for handlers, reason in (
        (Handlers(streams={MEASURE_STREAM: nonsense}), "no member"),
        (Handlers(streams={MEASURE_STREAM: silence}), "no member"),
        (Handlers(), "no member"),
        (LinkServer(lambda: True).handlers(), "no member"),
    ):

        async def scenario(scene: Scene, reason: str = reason) -> None:
            found = await scene.survey().run()
            assert found.slower_bytes_per_s is None
            assert reason in found.note

        simulate(scenario, handlers=lambda scene, handlers=handlers: handlers)  # type: ignore[misc]


def test_one_that_breaks_off_half_way_does_not_spoil_what_the_others_show() -> None:
    broken = PeerId(bytes([1]) * 32)

    async def dies(stream: Stream) -> None:
        for _ in range(6):
            message = await stream.receive()
            assert message is not None
            for chunk in padding(MeasureRequest.decode(message, stream.peer).down_bytes):
                await stream.send(chunk)

    async def scenario(scene: Scene) -> None:
        scene.members[:] = scene.members[:MEMBERS]
        assert broken in {member.peer for member in scene.members}
        found = await scene.survey().run()
        assert found.down_bytes_per_s == pytest.approx(1e6, rel=0.15)

    handed_out: list[Handlers] = []

    def handlers(scene: Scene) -> Handlers:
        handed_out.append(Handlers(streams={MEASURE_STREAM: dies}) if not handed_out else LinkServer(lambda: False).handlers())
        return handed_out[-1]

    simulate(scenario, handlers=handlers)


def test_a_bug_in_measuring_does_not_end_the_member() -> None:
    async def scenario(scene: Scene) -> None:
        def breaks() -> list[Endpoint]:
            raise ZeroDivisionError

        survey = LinkSurvey(scene.transport, scene.meter, breaks)
        survey.holding.set()
        told: list[LinkFigures] = []
        await survey.survey(told.append)
        assert "bug" in told[0].note

    simulate(scenario)


def test_a_node_that_joins_measures_its_link_while_it_trains() -> None:
    async def main() -> None:
        told: list[LinkFigures] = []
        async with NodeSwarm(target_samples=400) as swarm:
            for number in range(3):
                swarm.add(number, held=state(0))
            await swarm.until(lambda: all(member.epoch >= 1 for member in swarm.members))
            joiner = swarm.add(3, held=state(0), founder=False, on_link=told.append)
            await swarm.until(lambda: bool(told), limit_s=60)
            assert joiner.epoch >= 1, "it took over the state before it measured"
            assert told[0].slower_bytes_per_s == pytest.approx(1e7, rel=0.2), told[0]
            epoch = joiner.epoch
            await swarm.until(lambda: joiner.epoch >= epoch + 2)

    run_simulated(main(), limit_s=600)


async def _step(stream: Stream, request: MeasureRequest) -> None:
    """One step of a client."""
    await stream.send(request.encode())
    for chunk in padding(request.up_bytes):
        await stream.send(chunk)
    left_bytes = request.down_bytes
    while left_bytes:
        data = await stream.receive()
        assert data is not None
        left_bytes -= padding_bytes(data, left_bytes, None)


@pytest.mark.parametrize("request_", [MeasureRequest(0, MAX_STEP_BYTES), MeasureRequest(MAX_STEP_BYTES, 1)], ids=["down", "up"])
def test_a_caller_gets_so_much_and_after_a_while_again(request_: MeasureRequest) -> None:
    async def greedy(scene: Scene) -> int:
        steps = 0
        with pytest.raises(RemoteRefusal) as refused:
            while True:  # a stream lives for some seconds only
                async with scene.transport.stream(scene.members[0], MEASURE_STREAM, timeout_s=60) as stream:
                    for _ in range(8):
                        await _step(stream, request_)
                        steps += 1
        assert refused.value.code == "enough"
        return steps

    async def scenario(scene: Scene) -> None:
        most = CALLER_BYTES // MAX_STEP_BYTES
        assert await greedy(scene) == most
        await time_passes(WHILE_S + 1)
        assert await greedy(scene) == most

    simulate(scenario, members=1)


def test_all_callers_together_get_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_server, "ALL_BYTES", 2 * MAX_STEP_BYTES)

    async def scenario(scene: Scene) -> None:
        for number, outcome in enumerate(("served", "served", "enough")):
            transport = SimulatedTransport(scene.network, PeerId(bytes([100 + number]) * 32))
            async with transport.stream(scene.members[0], MEASURE_STREAM, timeout_s=60) as stream:
                if outcome == "served":
                    await _step(stream, MeasureRequest(0, MAX_STEP_BYTES))
                    continue
                with pytest.raises(RemoteRefusal) as refused:
                    await _step(stream, MeasureRequest(0, MAX_STEP_BYTES))
                assert refused.value.code == outcome

    simulate(scenario, members=1)


def test_small_steps_count_so_that_little_is_remembered() -> None:
    async def scenario(scene: Scene) -> None:
        pings = 0
        with pytest.raises(RemoteRefusal):
            while True:
                async with scene.transport.stream(scene.members[0], MEASURE_STREAM, timeout_s=60) as stream:
                    for _ in range(100):
                        await _step(stream, MeasureRequest(0, 1))
                        pings += 1
        assert pings == CALLER_BYTES // STEP_BYTES

    simulate(scenario, members=1)


def test_a_round_that_begins_ends_a_measurement_of_others() -> None:
    async def scenario(scene: Scene) -> None:
        async with scene.transport.stream(scene.members[0], MEASURE_STREAM, timeout_s=60) as stream:
            await _step(stream, MeasureRequest(0, CHUNK_BYTES))
            scene.busy = True
            with pytest.raises(RemoteRefusal) as refused:
                await _step(stream, MeasureRequest(0, CHUNK_BYTES))
            assert refused.value.code == "busy"

    simulate(scenario, members=1)


def test_few_measure_at_once_and_who_is_silent_makes_room() -> None:
    async def scenario(scene: Scene) -> None:
        async with AsyncExitStack() as stack:
            for _ in range(MAX_STREAMS):
                stream = await stack.enter_async_context(scene.transport.stream(scene.members[0], MEASURE_STREAM, timeout_s=60))
                await _step(stream, MeasureRequest(0, 1))
            async with scene.transport.stream(scene.members[0], MEASURE_STREAM, timeout_s=60) as late:
                with pytest.raises(RemoteRefusal) as refused:
                    await _step(late, MeasureRequest(0, 1))
                assert refused.value.code == "busy"
            await time_passes(2 * IDLE_S)
            async with scene.transport.stream(scene.members[0], MEASURE_STREAM, timeout_s=60) as later:
                await _step(later, MeasureRequest(0, 1))

    simulate(scenario, members=1)


@pytest.mark.parametrize(
    "messages",
    [[b"\x01"], [MeasureRequest(0, 1).encode() + b"x"], [MeasureRequest(CHUNK_BYTES, 1).encode(), b"short"]],
    ids=["short", "long", "wrong padding"],
)
def test_what_is_malformed_is_refused_before_anything_moves(messages: list[bytes]) -> None:
    async def scenario(scene: Scene) -> None:
        async with scene.transport.stream(scene.members[0], MEASURE_STREAM, timeout_s=60) as stream:
            for message in messages:
                await stream.send(message)
            with pytest.raises((RemoteRefusal, RemoteTimeout)):
                assert await stream.receive() is None

    simulate(scenario, members=1)


@pytest.mark.parametrize("numbers", [(0, 0), (MAX_STEP_BYTES + 1, 1), (0, MAX_STEP_BYTES + 1)])
def test_numbers_out_of_range_are_refused(numbers: tuple[int, int]) -> None:
    version = MeasureRequest(0, 1).encode()[:1]
    with pytest.raises(RemoteProtocolError):
        MeasureRequest.decode(version + b"".join(number.to_bytes(4, "little") for number in numbers), JOINER)
    inside = MeasureRequest(MAX_STEP_BYTES, MAX_STEP_BYTES)
    assert MeasureRequest.decode(inside.encode(), JOINER) == inside
    with pytest.raises(RemoteProtocolError):
        MeasureRequest.decode(b"\x02" + inside.encode()[1:], JOINER)


def test_a_rate_leaves_out_the_beginning_but_believes_no_burst_and_says_nothing_of_little() -> None:
    mib = [0, *(number * 2**20 for number in range(1, 9))]
    slow_start = [0.0, 1.2, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert steady_rate(slow_start, mib) == 2**20
    seen_late = [0.0, 6.0, 7.0, 7.1, 7.2, 7.3, 7.4, 7.7, 8.0]
    assert steady_rate(seen_late, mib) == 9 / 8 * 2**20
    assert steady_rate([0.0, 1.0], [0, 1000]) is None
    assert steady_rate([1.0, 1.0], [0, 2**22]) is None
    assert steady_rate([], []) is None


def test_the_slower_direction_counts_and_only_if_both_are_known() -> None:
    assert LinkFigures(up_bytes_per_s=2.0, down_bytes_per_s=3.0).slower_bytes_per_s == 2.0
    assert LinkFigures(up_bytes_per_s=2.0).slower_bytes_per_s is None
