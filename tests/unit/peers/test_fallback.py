"""Which of two ways is taken to a peer, and how soon, on virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from peers.interfaces import Endpoint, Handlers, Stream, Traffic, Transport
from peers.simulation import run_simulated
from peers.transport.fallback import FallbackRules, FallbackTransport
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.errors import RemoteGone, RemoteRefusal, RemoteTimeout
from protocols.ids import PeerId
from tests.helpers.transport_worlds import echo, echo_stream, loop_time, pass_time, peer_named

LATENCY_S = 0.01
RULES = FallbackRules()
ANN, BOB = peer_named("ann"), peer_named("bob")


class _ByLibp2pAddress:
    """The second way: a simulated transport that dials the first libp2p address."""

    def __init__(self, transport: SimulatedTransport) -> None:
        self._transport = transport

    @property
    def traffic(self) -> Traffic:
        return self._transport.traffic

    @asynccontextmanager
    async def serve(self, handlers: Handlers) -> AsyncIterator[str]:
        async with self._transport.serve(handlers):
            yield ""

    async def call(self, to: Endpoint, method: str, request: bytes, *, timeout_s: float) -> bytes:
        return await self._transport.call(_libp2p(to), method, request, timeout_s=timeout_s)

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: str, *, timeout_s: float) -> AsyncIterator[Stream]:
        async with self._transport.stream(_libp2p(to), method, timeout_s=timeout_s) as stream:
            yield stream

    async def close(self) -> None:
        await self._transport.close()


def _libp2p(to: Endpoint) -> Endpoint:
    """Without an address, over the connection that there is already."""
    return dataclasses.replace(to, address=to.libp2p_addresses[0] if to.libp2p_addresses else str(to.peer))


class Roads:
    """Ann, who dials, and Bob, who serves "echo", with two networks between them."""

    def __init__(self) -> None:
        spec = LinkSpec(latency_s=LATENCY_S)
        self.direct, self.second = SimulatedNetwork(1, spec), SimulatedNetwork(2, spec)
        self.bob_serves = Handlers(calls={"echo": echo}, streams={"echo": echo_stream})
        self.there = Endpoint(BOB, str(BOB), libp2p_addresses=(str(BOB),))
        self.ann = self._member(ANN)
        self._bob: AsyncExitStack | None = None

    def _member(self, peer: PeerId) -> FallbackTransport:
        second: Transport = _ByLibp2pAddress(SimulatedTransport(self.second, peer))
        return FallbackTransport(SimulatedTransport(self.direct, peer), second, RULES)

    async def bob_comes(self, *, direct: bool = True, second: bool = True) -> None:
        """Bob serves on these ways; on the other nobody listens."""
        self._bob = AsyncExitStack()
        for network, wanted in ((self.direct, direct), (self.second, second)):
            if wanted:
                await self._bob.enter_async_context(SimulatedTransport(network, BOB).serve(self.bob_serves))

    async def bob_goes(self) -> None:
        """His process ends."""
        assert self._bob is not None
        await self._bob.aclose()

    async def ask(self, timeout_s: float = 10.0) -> float:
        """Ann calls Bob once; how long it took."""
        began_s = loop_time()
        assert await self.ann.call(self.there, "echo", b"hello", timeout_s=timeout_s) == b"hello"
        return loop_time() - began_s

    async def fail(self, error: type[RemoteTimeout], timeout_s: float = 10.0) -> float:
        """Ann calls Bob in vain; how long it took."""
        began_s = loop_time()
        with pytest.raises(RemoteTimeout) as failed:
            await self.ann.call(self.there, "echo", b"hello", timeout_s=timeout_s)
        assert type(failed.value) is error
        assert failed.value.peer == BOB
        return loop_time() - began_s


def play(scenario: Callable[[Roads], Awaitable[None]]) -> None:
    async def whole() -> None:
        roads = Roads()
        async with roads.ann.serve(Handlers()):
            await scenario(roads)
        await roads.ann.close()

    run_simulated(whole(), limit_s=2 * RULES.forget_s)


ROUND_TRIP_S = 2 * LATENCY_S


def test_the_direct_way_is_taken_where_it_leads_there() -> None:
    async def scenario(roads: Roads) -> None:
        await roads.bob_comes()
        assert await roads.ask() == pytest.approx(2 * ROUND_TRIP_S)
        assert roads.ann.reached_directly(BOB)
        assert await roads.ask() == pytest.approx(ROUND_TRIP_S), "what is known is not asked again"

    play(scenario)


def test_a_refused_direct_connection_costs_one_round_trip() -> None:
    async def scenario(roads: Roads) -> None:
        await roads.bob_comes(direct=False)
        assert await roads.ask() == pytest.approx(3 * ROUND_TRIP_S)
        assert roads.ann.reached_directly(BOB) is False
        assert await roads.ask() == pytest.approx(ROUND_TRIP_S)

    play(scenario)


def test_a_blackholed_direct_connection_costs_the_head_start_once() -> None:
    async def scenario(roads: Roads) -> None:
        await roads.bob_comes()
        roads.direct.blackhole(ANN, BOB)
        assert await roads.ask() == pytest.approx(RULES.head_start_s + 2 * ROUND_TRIP_S)
        assert await roads.ask() == pytest.approx(ROUND_TRIP_S)

    play(scenario)


def test_a_slow_direct_connection_is_preferred_within_its_head_start_only() -> None:
    async def scenario(roads: Roads) -> None:
        await roads.bob_comes()
        roads.direct.set_host(BOB, LinkSpec(latency_s=0.4))
        await roads.ask()
        assert roads.ann.reached_directly(BOB)

    async def too_slow(roads: Roads) -> None:
        await roads.bob_comes()
        roads.direct.set_host(BOB, LinkSpec(latency_s=0.7))
        await roads.ask()
        assert roads.ann.reached_directly(BOB) is False

    play(scenario)
    play(too_slow)


def test_an_ended_process_is_noticed_at_once_on_both_ways() -> None:
    async def scenario(roads: Roads) -> None:
        await roads.bob_comes()
        await roads.bob_goes()
        assert await roads.fail(RemoteGone) == pytest.approx(2 * ROUND_TRIP_S)

    play(scenario)


def test_where_a_direct_connection_used_to_work_a_refusal_is_final() -> None:
    async def scenario(roads: Roads) -> None:
        await roads.bob_comes()
        await roads.ask()
        await roads.bob_goes()
        roads.second.blackhole(ANN, BOB)
        for _ in range(3):
            assert await roads.fail(RemoteGone) == pytest.approx(ROUND_TRIP_S)
        roads.second.heal()
        await roads.bob_comes(direct=False)
        await pass_time(RULES.trust_s)
        await roads.ask()

    play(scenario)


def test_a_refusal_leaves_the_second_way_a_moment_only() -> None:
    async def scenario(roads: Roads) -> None:
        roads.second.blackhole(ANN, BOB)
        assert await roads.fail(RemoteGone) == pytest.approx(ROUND_TRIP_S + RULES.after_refusal_s)

    play(scenario)


def test_silence_on_both_ways_ends_before_the_deadline() -> None:
    async def scenario(roads: Roads) -> None:
        for network in (roads.direct, roads.second):
            network.blackhole(ANN, BOB)
        assert await roads.fail(RemoteTimeout, timeout_s=60.0) == pytest.approx(RULES.reach_s)
        assert await roads.fail(RemoteTimeout, timeout_s=0.5) == pytest.approx(0.5)

    play(scenario)


def test_a_way_that_broke_is_asked_again() -> None:
    async def scenario(roads: Roads) -> None:
        await roads.bob_comes()
        await roads.ask()
        roads.direct.blackhole(ANN, BOB)
        assert await roads.fail(RemoteTimeout, timeout_s=2.0) == pytest.approx(2.0)
        assert await roads.ask() == pytest.approx(RULES.head_start_s + 2 * ROUND_TRIP_S)
        roads.second.blackhole(ANN, BOB)
        roads.direct.heal()
        assert await roads.fail(RemoteTimeout, timeout_s=2.0) == pytest.approx(2.0)
        await roads.ask()
        assert roads.ann.reached_directly(BOB)

    play(scenario)


def test_a_stream_that_breaks_makes_its_way_doubtful() -> None:
    async def scenario(roads: Roads) -> None:
        await roads.bob_comes()
        async with roads.ann.stream(roads.there, "echo", timeout_s=60.0) as stream:
            await stream.send(b"1")
            assert await stream.receive() == b"1"
        assert roads.ann.reached_directly(BOB)
        roads.direct.blackhole(ANN, BOB)
        with pytest.raises(RemoteTimeout):
            async with roads.ann.stream(roads.there, "echo", timeout_s=3.0) as stream:
                await stream.send(b"1")
                await stream.receive()
        async with roads.ann.stream(roads.there, "echo", timeout_s=60.0) as stream:
            await stream.send(b"1")
            assert await stream.receive() == b"1"
        assert roads.ann.reached_directly(BOB) is False

    play(scenario)


def test_the_direct_way_is_tried_again_beside_the_second() -> None:
    async def scenario(roads: Roads) -> None:
        await roads.bob_comes()
        roads.direct.blackhole(ANN, BOB)
        await roads.ask()
        roads.direct.heal()
        await pass_time(RULES.recheck_s + RULES.reach_s)
        assert roads.ann.reached_directly(BOB)
        assert await roads.ask() == pytest.approx(ROUND_TRIP_S)

    play(scenario)


def test_a_refusal_by_the_handler_is_an_answer() -> None:
    async def scenario(roads: Roads) -> None:
        await roads.bob_comes(direct=False)
        for _ in range(2):
            with pytest.raises(RemoteRefusal):
                await roads.ann.call(roads.there, "nothing", b"", timeout_s=5.0)
        assert roads.ann.reached_directly(BOB) is False

    play(scenario)


def test_peers_with_one_way_are_not_asked_for_another() -> None:
    async def scenario(roads: Roads) -> None:
        await roads.bob_comes()
        there = roads.there
        roads.there = dataclasses.replace(there, libp2p_addresses=())
        assert await roads.ask() == pytest.approx(ROUND_TRIP_S)
        for hidden in (dataclasses.replace(there, address=""), dataclasses.replace(there, address="", libp2p_addresses=())):
            roads.there = hidden
            assert await roads.ask() == pytest.approx(ROUND_TRIP_S), "and not a round trip more for finding out"
        await pass_time(2 * RULES.recheck_s)
        assert await roads.ask() == pytest.approx(ROUND_TRIP_S), "and the recheck leaves it alone"

    play(scenario)


def test_many_at_once_ask_once() -> None:
    async def scenario(roads: Roads) -> None:
        await roads.bob_comes()
        roads.direct.blackhole(ANN, BOB)
        took_s = await asyncio.gather(*(roads.ask() for _ in range(20)))
        assert max(took_s) == pytest.approx(RULES.head_start_s + 2 * ROUND_TRIP_S)

    play(scenario)


def test_peers_nobody_speaks_to_are_forgotten() -> None:
    async def scenario(roads: Roads) -> None:
        await roads.bob_comes()
        await roads.ask()
        await pass_time(RULES.forget_s + 2 * RULES.recheck_s)
        assert roads.ann.reached_directly(BOB) is None

    play(scenario)


def test_traffic_is_that_of_both_ways() -> None:
    async def scenario(roads: Roads) -> None:
        await roads.bob_comes()
        await roads.ask()
        roads.there = dataclasses.replace(roads.there, address="")
        await roads.ask()
        assert roads.ann.traffic == Traffic(10, 10)

    play(scenario)
