"""Partitions, black holes and crashes on the simulated network."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from peers.interfaces import Endpoint, Handlers, Stream
from peers.simulation import run_simulated
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from peers.transport.simulated_network import RETRANSMISSION_TIMEOUT_S
from protocols.errors import ExitCode, NetworkSetupError, RemoteTimeout
from protocols.ids import PeerId
from tests.helpers.transport_worlds import echo, forever, loop_time, pass_time, peer_named

A, B, C, D = (peer_named(name) for name in "ABCD")
MB = 1_000_000
Trace = list[tuple[float, str, PeerId, PeerId, int]]


def at(peer: PeerId) -> Endpoint:
    return Endpoint(peer, str(peer))


async def acknowledge(_caller: PeerId, _request: bytes) -> bytes:
    return b""


class Arrivals:
    """A stream handler that notes when each message comes."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.messages: list[bytes] = []
        self.ended = ""

    async def handle(self, stream: Stream) -> None:
        try:
            while (message := await stream.receive()) is not None:
                self.times.append(loop_time())
                self.messages.append(bytes(message))
            self.ended = "finished"
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise


def run_network(main: Callable[[SimulatedNetwork], Awaitable[Any]], default: LinkSpec, seed: int = 1) -> Any:
    async def whole() -> Any:
        return await main(SimulatedNetwork(seed, default))

    return run_simulated(whole(), seed, limit_s=10_000.0)


def test_partition_stops_calls_between_the_groups_only_and_heals() -> None:
    async def main(network: SimulatedNetwork) -> None:
        transports = {peer: SimulatedTransport(network, peer) for peer in (A, B, C, D)}
        handlers = Handlers(calls={"echo": echo})
        async with (
            transports[A].serve(handlers),
            transports[B].serve(handlers),
            transports[C].serve(handlers),
            transports[D].serve(handlers),
        ):
            network.partition([A, B], [C, D])
            for source, target in ((A, B), (B, A), (C, D)):
                assert await transports[source].call(at(target), "echo", b"x", timeout_s=1.0) == b"x"
            for source, target in ((A, C), (D, B)):
                start_s = loop_time()
                with pytest.raises(RemoteTimeout):
                    await transports[source].call(at(target), "echo", b"x", timeout_s=1.0)
                assert loop_time() - start_s == pytest.approx(1.0)
            network.heal()
            assert await transports[A].call(at(C), "echo", b"x", timeout_s=1.0) == b"x"

    run_network(main, LinkSpec(latency_s=0.05))


def test_a_stream_survives_a_partition_and_goes_on_after_it() -> None:
    arrivals = Arrivals()

    async def main(network: SimulatedNetwork) -> None:
        async with (
            SimulatedTransport(network, B).serve(Handlers(streams={"take": arrivals.handle})),
            SimulatedTransport(network, A).stream(at(B), "take", timeout_s=99.0) as stream,
        ):
            await stream.send(b"before")
            await pass_time(1.0)
            network.partition([A], [B])
            await stream.send(b"during 1")
            await stream.send(b"during 2")
            await pass_time(5.0)
            assert arrivals.messages == [b"before"]
            network.heal()
            await stream.send(b"after")
            await stream.finish_sending()
            assert await stream.receive() is None
        assert arrivals.messages == [b"before", b"during 1", b"during 2", b"after"]
        assert arrivals.times == pytest.approx([0.1, *[6.1 + RETRANSMISSION_TIMEOUT_S] * 3])

    run_network(main, LinkSpec(latency_s=0.1))


def test_a_black_hole_resets_nothing_and_the_deadline_ends_it_on_both_sides() -> None:
    arrivals = Arrivals()

    async def main(network: SimulatedNetwork) -> None:
        async with SimulatedTransport(network, B).serve(Handlers(streams={"take": arrivals.handle})):
            async with SimulatedTransport(network, A).stream(at(B), "take", timeout_s=30.0) as stream:
                await stream.send(b"x")
                await pass_time(1.0)
                network.blackhole(A, B)
                await stream.send(b"y")
                with pytest.raises(RemoteTimeout, match="longer than 30 s"):
                    await stream.receive()
                assert loop_time() == 30.0
            await pass_time(1.0)
            assert arrivals.messages == [b"x"]
            assert arrivals.ended == "cancelled"

    run_network(main, LinkSpec(latency_s=0.1))


def test_crash_breaks_streams_and_calls_at_once_and_cancels_handlers() -> None:
    arrivals = Arrivals()

    async def main(network: SimulatedNetwork) -> None:
        started = asyncio.Event()
        cancelled = asyncio.Event()

        async def hang(_caller: PeerId, _request: bytes) -> bytes:
            started.set()
            try:
                await forever()
            finally:
                cancelled.set()
            return b""

        async def broken_call() -> None:
            with pytest.raises(RemoteTimeout):
                await client.call(at(B), "hang", b"", timeout_s=60.0)
            assert loop_time() == pytest.approx(1.1)

        client = SimulatedTransport(network, A)
        server = SimulatedTransport(network, B)
        async with server.serve(Handlers(calls={"hang": hang}, streams={"take": arrivals.handle})), asyncio.TaskGroup() as group:
            async with client.stream(at(B), "take", timeout_s=60.0) as stream:
                await stream.send(b"x")
                group.create_task(broken_call())
                await started.wait()
                await pass_time(1.0 - loop_time())
                network.crash(B)
                with pytest.raises(RemoteTimeout):
                    await stream.receive()
                assert loop_time() == pytest.approx(1.1)
                assert arrivals.ended == "cancelled"
                assert cancelled.is_set()
            with pytest.raises(RemoteTimeout, match="refused"):
                await client.call(at(B), "hang", b"", timeout_s=60.0)
            assert loop_time() == pytest.approx(1.3)

    run_network(main, LinkSpec(latency_s=0.1))


def test_a_crashed_client_takes_its_handlers_with_it_and_hears_nothing() -> None:
    arrivals = Arrivals()

    async def main(network: SimulatedNetwork) -> None:
        client = SimulatedTransport(network, A)
        async with SimulatedTransport(network, B).serve(Handlers(calls={"echo": echo}, streams={"take": arrivals.handle})):
            async with client.stream(at(B), "take", timeout_s=60.0) as stream:
                await stream.send(b"x")
                await pass_time(1.0)
                network.crash(A)
                with pytest.raises(RemoteTimeout):
                    await stream.send(b"y")
                await pass_time(0.2)
                assert (arrivals.messages, arrivals.ended) == ([b"x"], "cancelled")
            start_s = loop_time()
            with pytest.raises(RemoteTimeout):
                await client.call(at(B), "echo", b"", timeout_s=5.0)
            assert loop_time() - start_s == pytest.approx(5.0)

    run_network(main, LinkSpec(latency_s=0.1))


def test_restarted_peer_serves_again_while_the_old_one_is_cleaned_up() -> None:
    async def main(network: SimulatedNetwork) -> None:
        client = SimulatedTransport(network, A)
        async with SimulatedTransport(network, B).serve(Handlers(calls={"echo": echo})):
            network.crash(B)
            network.restart(B)
            old = SimulatedTransport(network, B).serve(Handlers(calls={"echo": echo}))
            await old.__aenter__()
        assert await client.call(at(B), "echo", b"back", timeout_s=1.0) == b"back"
        await old.__aexit__(None, None, None)
        with pytest.raises(RemoteTimeout):
            await client.call(at(B), "echo", b"gone", timeout_s=1.0)

    run_network(main, LinkSpec(latency_s=0.1))


def test_leaving_a_stream_before_its_opening_arrived_leaves_no_handler() -> None:
    arrivals = Arrivals()

    async def main(network: SimulatedNetwork) -> None:
        client = SimulatedTransport(network, A)
        async with SimulatedTransport(network, B).serve(Handlers(calls={"take": acknowledge}, streams={"take": arrivals.handle})):
            async with asyncio.TaskGroup() as group:
                group.create_task(client.call(at(B), "take", bytes(MB), timeout_s=60.0))  # keeps the uplink busy for 1 s
                await pass_time(0.1)
                async with client.stream(at(B), "take", timeout_s=60.0) as stream:
                    await stream.send(b"never mind")
            await pass_time(5.0)
        assert arrivals.ended == ""
        assert arrivals.messages == []

    run_network(main, LinkSpec(latency_s=0.1, bandwidth_bytes_per_s=MB))


def test_an_address_is_served_once() -> None:
    async def main(network: SimulatedNetwork) -> None:
        async with SimulatedTransport(network, A).serve(Handlers()):
            with pytest.raises(NetworkSetupError) as refused:
                await SimulatedTransport(network, A).serve(Handlers()).__aenter__()
        assert refused.value.exit_code == ExitCode.PORT_IN_USE

    run_network(main, LinkSpec())


@pytest.mark.parametrize("bad", [{"latency_s": -1.0}, {"loss": 1.0}, {"bandwidth_bytes_per_s": 0.0}, {"downlink_bytes_per_s": 0.0}])
def test_impossible_links_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"delays|loss"):
        LinkSpec(**bad)
