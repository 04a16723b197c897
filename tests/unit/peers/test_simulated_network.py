"""The simulated network's arithmetic, and that a seed replays exactly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from peers.interfaces import Endpoint, Handlers, Stream
from peers.simulation import run_simulated
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from peers.transport.simulated_network import RETRANSMISSION_TIMEOUT_S
from peers.transport.simulated_stream import WINDOW_BYTES
from protocols.errors import RemoteTimeout
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


def test_a_call_takes_two_latencies() -> None:
    async def main(network: SimulatedNetwork) -> None:
        async with SimulatedTransport(network, B).serve(Handlers(calls={"echo": echo})):
            await SimulatedTransport(network, A).call(at(B), "echo", b"x", timeout_s=9.0)
            assert loop_time() == 0.5

    run_network(main, LinkSpec(latency_s=0.25))


def test_bandwidth_of_both_ends_counts_once_and_the_slower_decides() -> None:
    async def main(network: SimulatedNetwork) -> None:
        network.set_host(A, LinkSpec(0.1, bandwidth_bytes_per_s=1 * MB))
        network.set_host(B, LinkSpec(0.1, bandwidth_bytes_per_s=4 * MB, downlink_bytes_per_s=2 * MB))
        one, other = SimulatedTransport(network, A), SimulatedTransport(network, B)
        handlers = Handlers(calls={"take": acknowledge})
        async with one.serve(handlers), other.serve(handlers):
            await one.call(at(B), "take", bytes(MB), timeout_s=9.0)
            assert loop_time() == pytest.approx(1.0 + 0.2)  # A's uplink is the slowest of the way
            start_s = loop_time()
            await other.call(at(A), "take", bytes(MB), timeout_s=9.0)
            assert loop_time() - start_s == pytest.approx(1.0 + 0.2)  # B sends faster than A can take

    run_network(main, LinkSpec())


def test_messages_queue_on_the_uplink() -> None:
    async def main(network: SimulatedNetwork) -> None:
        handlers = Handlers(calls={"take": acknowledge})
        client = SimulatedTransport(network, A)
        done: list[float] = []

        async def send(to: PeerId) -> None:
            await client.call(at(to), "take", bytes(MB), timeout_s=99.0)
            done.append(loop_time())

        async with (
            SimulatedTransport(network, B).serve(handlers),
            SimulatedTransport(network, C).serve(handlers),
            asyncio.TaskGroup() as group,
        ):
            for to in (B, C, B):
                group.create_task(send(to))
        assert done == pytest.approx([1.2, 2.2, 3.2])

    run_network(main, LinkSpec(latency_s=0.1, bandwidth_bytes_per_s=MB))


def test_senders_share_the_receivers_downlink() -> None:
    async def main(network: SimulatedNetwork) -> None:
        network.set_host(D, LinkSpec(0.1, bandwidth_bytes_per_s=MB))
        done: list[float] = []

        async def send(sender: PeerId) -> None:
            await SimulatedTransport(network, sender).call(at(D), "take", bytes(MB), timeout_s=99.0)
            done.append(loop_time())

        async with SimulatedTransport(network, D).serve(Handlers(calls={"take": acknowledge})), asyncio.TaskGroup() as group:
            for sender in (A, B, C):
                group.create_task(send(sender))
        assert done == pytest.approx([1.2, 2.2, 3.2])

    run_network(main, LinkSpec(latency_s=0.1))


def test_a_stream_is_pipelined() -> None:
    arrivals = Arrivals()

    async def main(network: SimulatedNetwork) -> None:
        async with (
            SimulatedTransport(network, B).serve(Handlers(streams={"take": arrivals.handle})),
            SimulatedTransport(network, A).stream(at(B), "take", timeout_s=99.0) as stream,
        ):
            for _ in range(4):
                await stream.send(bytes(MB))
            await stream.finish_sending()
            assert await stream.receive() is None
        assert arrivals.times == pytest.approx([1.5, 2.5, 3.5, 4.5])

    run_network(main, LinkSpec(latency_s=0.5, bandwidth_bytes_per_s=MB))


def test_the_window_bounds_what_is_unread() -> None:
    async def main(network: SimulatedNetwork) -> None:
        async def deaf(_stream: Stream) -> None:
            await forever()

        sent = 0

        async def send_on(stream: Stream) -> None:
            nonlocal sent
            while True:
                await stream.send(bytes(MB))
                sent += 1

        async with (
            SimulatedTransport(network, B).serve(Handlers(streams={"deaf": deaf})),
            SimulatedTransport(network, A).stream(at(B), "deaf", timeout_s=60.0) as stream,
        ):
            with pytest.raises(RemoteTimeout):
                await send_on(stream)
        assert sent == WINDOW_BYTES // MB
        assert loop_time() == 60.0

    run_network(main, LinkSpec(latency_s=0.1))


def test_jitter_never_reorders_a_stream() -> None:
    arrivals = Arrivals()

    async def main(network: SimulatedNetwork) -> None:
        async with (
            SimulatedTransport(network, B).serve(Handlers(streams={"take": arrivals.handle})),
            SimulatedTransport(network, A).stream(at(B), "take", timeout_s=99.0) as stream,
        ):
            for i in range(200):
                await stream.send(bytes([i]))
                await pass_time(0.01)
            await stream.finish_sending()
            assert await stream.receive() is None

    run_network(main, LinkSpec(latency_s=0.1, jitter_s=0.5))
    assert [message[0] for message in arrivals.messages] == list(range(200))
    delays = [arrived - 0.01 * i for i, arrived in enumerate(arrivals.times)]
    assert min(delays) >= 0.1
    assert max(delays) <= 0.6 + 1e-6
    assert max(delays) - min(delays) > 0.1


def test_loss_delays_calls_about_as_often_as_a_request_or_its_reply_is_lost() -> None:
    async def main(network: SimulatedNetwork) -> list[float]:
        client = SimulatedTransport(network, A)
        took_s = []
        async with SimulatedTransport(network, B).serve(Handlers(calls={"echo": echo})):
            for _ in range(1000):
                start_s = loop_time()
                assert await client.call(at(B), "echo", b"x", timeout_s=999.0) == b"x"
                took_s.append(loop_time() - start_s)
        return took_s

    late_s = [took_s for took_s in run_network(main, LinkSpec(latency_s=0.01, loss=0.1)) if took_s > 0.021]
    assert 150 <= len(late_s) <= 230  # 1 - 0.9^2 = 19 %
    assert min(late_s) == pytest.approx(0.02 + RETRANSMISSION_TIMEOUT_S)
    assert max(late_s) > 0.02 + 2.9 * RETRANSMISSION_TIMEOUT_S  # lost twice in a row


def test_loss_delays_streams_but_loses_nothing() -> None:
    arrivals = Arrivals()

    async def main(network: SimulatedNetwork) -> None:
        async with (
            SimulatedTransport(network, B).serve(Handlers(streams={"take": arrivals.handle})),
            SimulatedTransport(network, A).stream(at(B), "take", timeout_s=999.0) as stream,
        ):
            for i in range(100):
                await stream.send(bytes([i]))
                await pass_time(1.0)
            await stream.finish_sending()
            assert await stream.receive() is None

    run_network(main, LinkSpec(latency_s=0.01, loss=0.3))
    assert [message[0] for message in arrivals.messages] == list(range(100))
    late = [arrived - i for i, arrived in enumerate(arrivals.times) if arrived - i > 0.02]
    assert 15 <= len(late) <= 45
    assert min(late) == pytest.approx(0.01 + RETRANSMISSION_TIMEOUT_S)


def trace_of(seed: int, peers: int = 12, rounds: int = 5) -> Trace:
    """Gossip with everything at once: calls, streams, loss, jitter, a partition and a crash."""
    trace: Trace = []

    async def main() -> None:
        network = SimulatedNetwork(
            seed, LinkSpec(0.02, jitter_s=0.05, bandwidth_bytes_per_s=MB, loss=0.05), lambda *event: trace.append(event)
        )
        everybody = [peer_named(f"peer {i}") for i in range(peers)]

        async def take(stream: Stream) -> None:
            while (message := await stream.receive()) is not None:
                await stream.send(message[:10])

        async def one(me: PeerId) -> None:
            transport = SimulatedTransport(network, me)
            async with transport.serve(Handlers(calls={"echo": echo}, streams={"take": take})):
                for i in range(rounds):
                    other = everybody[(everybody.index(me) + i + 1) % peers]
                    try:
                        await transport.call(at(other), "echo", bytes(1000 + i), timeout_s=1.0)
                        async with transport.stream(at(other), "take", timeout_s=3.0) as stream:
                            await stream.send(bytes(20_000))
                            await stream.receive()
                    except RemoteTimeout:
                        continue
                await pass_time(20.0 - loop_time())

        async with asyncio.TaskGroup() as group:
            for me in everybody:
                group.create_task(one(me))
            await pass_time(0.5)
            network.partition(everybody[:4], everybody[4:])
            await pass_time(1.0)
            network.crash(everybody[5])
            network.heal()
            await pass_time(1.0)
            network.restart(everybody[5])

    run_simulated(main(), seed, limit_s=1000.0)
    return trace


def test_a_seed_replays_exactly_and_another_does_not() -> None:
    first = trace_of(7)
    assert len(first) > 300
    assert {event for _, event, _, _, _ in first} == {"send", "deliver", "loss", "cut", "crash", "restart"}
    assert trace_of(7) == first
    assert trace_of(8) != first


def test_a_thousand_peers() -> None:
    peers = [peer_named(f"peer {i}") for i in range(1000)]

    async def main(network: SimulatedNetwork) -> int:
        answered = 0

        async def one(i: int) -> None:
            nonlocal answered
            transport = SimulatedTransport(network, peers[i])
            async with transport.serve(Handlers(calls={"echo": echo})):
                await pass_time(1.0)
                for step in (1, 7):
                    await transport.call(at(peers[(i + step) % 1000]), "echo", bytes(100), timeout_s=5.0)
                    answered += 1
                await pass_time(5.0)

        async with asyncio.TaskGroup() as group:
            for i in range(1000):
                group.create_task(one(i))
        return answered

    assert run_network(main, LinkSpec(0.05, jitter_s=0.01, bandwidth_bytes_per_s=MB)) == 2000
