"""What every stream of every `Transport` does, written once and run over each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from peers.interfaces import Handlers, Stream
from protocols.errors import LocalProtocolError, RemoteRefusal, RemoteTimeout
from tests.helpers.libp2p_worlds import LIBP2P_PLAYERS
from tests.helpers.transport_worlds import LONG_S, MIB, PLAYERS, Scenario, World, echo_stream, forever

Play = Callable[[Scenario], None]


@pytest.fixture(params=sorted(PLAYERS | LIBP2P_PLAYERS))
def play(request: pytest.FixtureRequest) -> Play:
    return (PLAYERS | LIBP2P_PLAYERS)[request.param]


async def send_until_it_fails(stream: Stream) -> None:
    for _ in range(1000):
        await stream.send(b"anybody?")


async def soon(what: Awaitable[Any]) -> Any:
    async with asyncio.timeout(LONG_S):
        return await what


def test_refused_stream_is_seen_behind_what_was_sent_before(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()

        async def refuse(stream: Stream) -> None:
            await stream.send(b"first")
            raise RemoteRefusal(stream.peer, "enough", "no more of this")

        async with (
            server.serving(Handlers(streams={"refuse": refuse})) as there,
            client.transport.stream(there, "refuse", timeout_s=LONG_S) as stream,
        ):
            assert await stream.receive() == b"first"
            for _ in range(2):
                with pytest.raises(RemoteRefusal, match="no more of this") as refused:
                    await stream.receive()
                assert refused.value.code == "enough"
            with pytest.raises(RemoteRefusal):
                await stream.send(b"more")

    play(scenario)


def test_refusal_reaches_a_sender_that_only_sends(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()

        async def refuse(stream: Stream) -> None:
            raise RemoteRefusal(stream.peer, "full", "no room here")

        async def send_large(stream: Stream) -> None:
            for _ in range(100):
                await stream.send(b"x" * MIB)

        async with server.serving(Handlers(streams={"refuse": refuse})) as there:
            for _ in range(5):
                async with client.transport.stream(there, "refuse", timeout_s=LONG_S) as stream:
                    with pytest.raises(RemoteRefusal, match="no room here"):
                        await send_large(stream)
                    with pytest.raises(RemoteRefusal, match="no room here"):
                        await stream.receive()

    play(scenario)


def test_stream_carries_messages_both_ways_in_order(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()
        messages = [bytes([i]) * size for i, size in enumerate([1, 100_000, 2, MIB, 3, 65_536] * 4)]

        async with (
            server.serving(Handlers(streams={"echo": echo_stream})) as there,
            client.transport.stream(there, "echo", timeout_s=LONG_S) as stream,
            asyncio.TaskGroup() as group,
        ):

            async def send_all() -> None:
                for message in messages:
                    await stream.send(message)
                await stream.finish_sending()

            group.create_task(send_all())
            for message in messages:
                assert await stream.receive() == message
            assert await stream.receive() is None
            assert await stream.receive() is None

    play(scenario)


def test_finish_sending_closes_one_direction_only(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()

        async def server_first(stream: Stream) -> None:
            await stream.send(b"all I have")
            await stream.finish_sending()
            collected = b""
            while (message := await stream.receive()) is not None:
                collected += message
            totals.append(collected)
            done.set()

        async def client_first(stream: Stream) -> None:
            collected = b""
            while (message := await stream.receive()) is not None:
                collected += message
            await stream.send(b"total " + collected)

        totals: list[bytes] = []
        done = asyncio.Event()
        async with server.serving(Handlers(streams={"server-first": server_first, "client-first": client_first})) as there:
            async with client.transport.stream(there, "server-first", timeout_s=LONG_S) as stream:
                assert await stream.receive() == b"all I have"
                assert await stream.receive() is None
                await stream.send(b"late ")
                await stream.send(b"news")
                await stream.finish_sending()
                await soon(done.wait())
            assert totals == [b"late news"]
            async with client.transport.stream(there, "client-first", timeout_s=LONG_S) as stream:
                await stream.send(b"1")
                await stream.send(b"2")
                await stream.finish_sending()
                await stream.finish_sending()
                with pytest.raises(LocalProtocolError):
                    await stream.send(b"3")
                assert await stream.receive() == b"total 12"
                assert await stream.receive() is None

    play(scenario)


def test_the_handlers_return_ends_the_stream(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()

        async def greet(stream: Stream) -> None:
            await stream.send(b"hello")

        async with (
            server.serving(Handlers(streams={"greet": greet})) as there,
            client.transport.stream(there, "greet", timeout_s=LONG_S) as stream,
        ):
            assert await stream.receive() == b"hello"
            assert await stream.receive() is None
            with pytest.raises(RemoteTimeout):
                await send_until_it_fails(stream)

    play(scenario)


def test_sender_waits_while_nobody_reads(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()
        read_on = asyncio.Event()
        count = 64

        async def slow(stream: Stream) -> None:
            await read_on.wait()
            received = 0
            while await stream.receive() is not None:
                received += 1
            await stream.send(bytes([received]))

        sent = 0

        async def send_all(stream: Stream) -> None:
            nonlocal sent
            for _ in range(count):
                await stream.send(b"x" * MIB)
                sent += 1
            await stream.finish_sending()

        async with (
            server.serving(Handlers(streams={"slow": slow})) as there,
            client.transport.stream(there, "slow", timeout_s=LONG_S) as stream,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(send_all(stream))
            before = -1
            while sent != before:  # until nothing more is taken for a while
                before = sent
                await asyncio.sleep(0.5)
            assert 1 <= sent <= 24
            read_on.set()
            assert await stream.receive() == bytes([count])

    play(scenario)


def test_leaving_the_stream_cancels_its_handler(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()
        cancelled = asyncio.Event()

        async def wait_for_more(stream: Stream) -> None:
            await stream.send(b"ready")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async def leave_by_error(opening: AbstractAsyncContextManager[Stream]) -> None:
            async with opening as stream:
                assert await stream.receive() == b"ready"
                raise ZeroDivisionError

        async with server.serving(Handlers(streams={"wait": wait_for_more})) as there:
            with pytest.raises(ZeroDivisionError):
                await leave_by_error(client.transport.stream(there, "wait", timeout_s=LONG_S))
            await soon(cancelled.wait())

    play(scenario)


def test_a_broken_stream_does_not_look_finished(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()
        ended: asyncio.Queue[str] = asyncio.Queue()

        async def collect(stream: Stream) -> None:
            try:
                while await stream.receive() is not None:
                    await stream.send(b"got it")
                ended.put_nowait("finished")
            except RemoteTimeout:
                ended.put_nowait("broken")
            except asyncio.CancelledError:
                ended.put_nowait("cancelled")
                raise

        async with server.serving(Handlers(streams={"collect": collect})) as there:
            for _ in range(20):
                async with client.transport.stream(there, "collect", timeout_s=LONG_S) as stream:
                    await stream.send(b"part")
                    assert await stream.receive() == b"got it"
                assert await soon(ended.get()) in ("broken", "cancelled")

    play(scenario)


def test_stream_ends_at_its_deadline(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()
        cancelled = asyncio.Event()

        async def silent(_stream: Stream) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        async with server.serving(Handlers(streams={"silent": silent})) as there:
            async with client.transport.stream(there, "silent", timeout_s=0.3) as stream:
                with pytest.raises(RemoteTimeout):
                    await stream.receive()
                with pytest.raises(RemoteTimeout):
                    await stream.send(b"x")
            await soon(cancelled.wait())

    play(scenario)


def test_a_cancelled_receive_loses_nothing(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()

        async def ask_first(stream: Stream) -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await stream.receive()
            await stream.send(b"go on")
            assert await stream.receive() == b"here"
            await stream.send(b"thanks")

        async with (
            server.serving(Handlers(streams={"ask-first": ask_first})) as there,
            client.transport.stream(there, "ask-first", timeout_s=LONG_S) as stream,
        ):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await stream.receive()
            assert await stream.receive() == b"go on"
            await stream.send(b"here")
            assert await stream.receive() == b"thanks"

    play(scenario)


def test_many_tasks_may_send_on_one_stream(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()
        async with server.serving(Handlers(streams={"echo": echo_stream})) as there:
            async with client.transport.stream(there, "echo", timeout_s=LONG_S) as stream, asyncio.TaskGroup() as group:
                for i in range(50):
                    group.create_task(stream.send(bytes([i]) * 10_000))
                received = {(await stream.receive() or b"?")[0] for _ in range(50)}
            assert received == set(range(50))

    play(scenario)


def test_a_cancelled_send_breaks_the_stream(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()
        cancelled = asyncio.Event()

        async def deaf(_stream: Stream) -> None:
            try:
                await forever()
            finally:
                cancelled.set()

        async def send_for_a_while(stream: Stream) -> None:
            async with asyncio.timeout(0.5):
                for _ in range(1000):
                    await stream.send(b"x" * MIB)

        async with (
            server.serving(Handlers(streams={"deaf": deaf})) as there,
            client.transport.stream(there, "deaf", timeout_s=LONG_S) as stream,
        ):
            with pytest.raises(TimeoutError):
                await send_for_a_while(stream)
            with pytest.raises(RemoteTimeout):
                await stream.send(b"half of the last one may be gone")
            with pytest.raises(RemoteTimeout):
                await stream.receive()
            await soon(cancelled.wait())

    play(scenario)
