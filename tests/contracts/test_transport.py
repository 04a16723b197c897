"""What every `Transport` does, written once and run over each: calls, limits, ends of life."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from peers.interfaces import MAX_CALL_BYTES, MAX_MESSAGE_BYTES, Handlers, Stream
from protocols.errors import LocalProtocolError, RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.ids import PeerId
from tests.helpers.libp2p_worlds import LIBP2P_PLAYERS
from tests.helpers.transport_worlds import LONG_S, PLAYERS, Scenario, World, echo, echo_stream, forever

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


def test_call_returns_the_reply(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()
        async with server.serving(Handlers(calls={"echo": echo})) as there:
            for request in (b"hello", b"", b"x" * MAX_CALL_BYTES):
                assert await client.transport.call(there, "echo", request, timeout_s=LONG_S) == request

    play(scenario)


def test_a_peer_can_call_itself(play: Play) -> None:
    async def scenario(world: World) -> None:
        node = world.node()
        async with node.serving(Handlers(calls={"echo": echo})) as here:
            assert await node.transport.call(here, "echo", b"me", timeout_s=LONG_S) == b"me"

    play(scenario)


def test_calls_are_served_concurrently(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()
        everybody_here = asyncio.Barrier(20)

        async def meet(_caller: PeerId, request: bytes) -> bytes:
            await everybody_here.wait()
            return request * 2

        async with server.serving(Handlers(calls={"meet": meet})) as there:
            calls = [client.transport.call(there, "meet", bytes([i]), timeout_s=LONG_S) for i in range(20)]
            assert await asyncio.gather(*calls) == [bytes([i, i]) for i in range(20)]

    play(scenario)


def test_handlers_learn_the_callers_identity(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, one, two = world.node(), world.node(), world.node()

        async def who(caller: PeerId, _request: bytes) -> bytes:
            return caller.public_key

        async def who_stream(stream: Stream) -> None:
            await stream.send(stream.peer.public_key)

        async with server.serving(Handlers(calls={"who": who}, streams={"who-stream": who_stream})) as there:
            for client in (one, two):
                assert await client.transport.call(there, "who", b"", timeout_s=LONG_S) == client.peer.public_key
                async with client.transport.stream(there, "who-stream", timeout_s=LONG_S) as stream:
                    assert stream.peer == server.peer
                    assert await stream.receive() == client.peer.public_key

    play(scenario)


def test_refusal_carries_code_and_sentence(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()

        async def refuse(caller: PeerId, _request: bytes) -> bytes:
            raise RemoteRefusal(caller, "wrong-epoch", "we are at epoch 7 – catch up: first")

        async def accuse(caller: PeerId, _request: bytes) -> bytes:
            raise RemoteProtocolError(caller, "the weight is negative")

        async with server.serving(Handlers(calls={"refuse": refuse, "accuse": accuse})) as there:
            with pytest.raises(RemoteRefusal) as refused:
                await client.transport.call(there, "refuse", b"", timeout_s=LONG_S)
            with pytest.raises(RemoteRefusal) as accused:
                await client.transport.call(there, "accuse", b"", timeout_s=LONG_S)
        assert (refused.value.peer, refused.value.code) == (server.peer, "wrong-epoch")
        assert refused.value.reason == "we are at epoch 7 – catch up: first"
        assert (accused.value.code, accused.value.reason) == ("protocol-error", "the weight is negative")

    play(scenario)


def test_unknown_method_is_refused(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()
        async with server.serving(Handlers(calls={"echo": echo})) as there:
            with pytest.raises(RemoteRefusal) as call_refused:
                await client.transport.call(there, "nothing", b"", timeout_s=LONG_S)
            with pytest.raises(RemoteRefusal) as stream_refused:
                async with client.transport.stream(there, "nothing", timeout_s=LONG_S) as stream:
                    await stream.receive()
        assert call_refused.value.code == stream_refused.value.code == "unknown-method"

    play(scenario)


def test_a_bug_in_a_handler_is_internal_and_logged(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()

        async def buggy(_caller: PeerId, _request: bytes) -> bytes:
            raise KeyError("secret detail")

        async def buggy_stream(_stream: Stream) -> None:
            raise ZeroDivisionError

        handlers = Handlers(calls={"buggy": buggy, "echo": echo}, streams={"buggy-stream": buggy_stream})
        async with server.serving(handlers) as there:
            with pytest.raises(RemoteRefusal) as refused:
                await client.transport.call(there, "buggy", b"", timeout_s=LONG_S)
            with pytest.raises(RemoteRefusal) as stream_refused:
                async with client.transport.stream(there, "buggy-stream", timeout_s=LONG_S) as stream:
                    await stream.receive()
            assert await client.transport.call(there, "echo", b"still here", timeout_s=LONG_S) == b"still here"
        assert refused.value.code == stream_refused.value.code == "internal"
        assert "secret" not in str(refused.value)

    play(scenario)
    assert "KeyError: 'secret detail'" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_call_times_out_and_its_handler_is_cancelled(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()
        cancelled = asyncio.Event()

        async def hang(_caller: PeerId, _request: bytes) -> bytes:
            try:
                return await forever()
            finally:
                cancelled.set()

        async with server.serving(Handlers(calls={"hang": hang})) as there:
            with pytest.raises(RemoteTimeout) as late:
                await client.transport.call(there, "hang", b"", timeout_s=0.2)
            assert late.value.peer == server.peer
            await soon(cancelled.wait())

    play(scenario)


def test_cancelled_call_cancels_its_handler(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def hang(_caller: PeerId, _request: bytes) -> bytes:
            started.set()
            try:
                return await forever()
            finally:
                cancelled.set()

        async with server.serving(Handlers(calls={"hang": hang})) as there, asyncio.TaskGroup() as group:
            call = group.create_task(client.transport.call(there, "hang", b"", timeout_s=LONG_S))
            await soon(started.wait())
            call.cancel()
            await soon(cancelled.wait())

    play(scenario)


def test_nobody_there_is_a_timeout_at_once(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()
        async with server.serving(Handlers()) as there:
            pass
        start_s = asyncio.get_running_loop().time()
        with pytest.raises(RemoteTimeout):
            await client.transport.call(there, "echo", b"", timeout_s=LONG_S)
        with pytest.raises(RemoteTimeout):
            async with client.transport.stream(there, "echo", timeout_s=LONG_S) as stream:
                await stream.receive()
        assert asyncio.get_running_loop().time() - start_s < LONG_S / 2

    play(scenario)


def test_too_large_or_empty_is_never_sent(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()

        async def large_reply(_caller: PeerId, _request: bytes) -> bytes:
            return b"x" * (MAX_CALL_BYTES + 1)

        handlers = Handlers(calls={"echo": echo, "large-reply": large_reply}, streams={"echo-stream": echo_stream})
        async with server.serving(handlers) as there:
            with pytest.raises(LocalProtocolError):
                await client.transport.call(there, "echo", b"x" * (MAX_CALL_BYTES + 1), timeout_s=LONG_S)
            with pytest.raises(RemoteRefusal) as refused:
                await client.transport.call(there, "large-reply", b"", timeout_s=LONG_S)
            assert refused.value.code == "internal"
            async with client.transport.stream(there, "echo-stream", timeout_s=LONG_S) as stream:
                for bad in (b"x" * (MAX_MESSAGE_BYTES + 1), b""):
                    with pytest.raises(LocalProtocolError):
                        await stream.send(bad)
                await stream.send(b"x" * MAX_MESSAGE_BYTES)
                assert len(await stream.receive() or b"") == MAX_MESSAGE_BYTES

    play(scenario)


def test_server_that_goes_away_breaks_streams_and_calls(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()
        calls_started = asyncio.Event()

        async def hang(_caller: PeerId, _request: bytes) -> bytes:
            calls_started.set()
            return await forever()

        async def call_until_broken() -> None:
            with pytest.raises(RemoteTimeout):
                await client.transport.call(there, "hang", b"", timeout_s=LONG_S)

        start_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            async with server.serving(Handlers(calls={"hang": hang}, streams={"echo": echo_stream})) as there:
                opened = client.transport.stream(there, "echo", timeout_s=LONG_S)
                stream = await opened.__aenter__()
                await stream.send(b"1")
                assert await stream.receive() == b"1"
                group.create_task(call_until_broken())
                await soon(calls_started.wait())
            stopped_s = asyncio.get_running_loop().time()
            with pytest.raises(RemoteTimeout):
                await stream.receive()
            with pytest.raises(RemoteTimeout):
                await stream.send(b"2")
            await opened.__aexit__(None, None, None)
        assert asyncio.get_running_loop().time() - stopped_s < 1.0
        assert stopped_s - start_s < 5.0

    play(scenario)


def test_closing_the_transport_breaks_what_it_had_open(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()
        open_now = asyncio.Barrier(3)

        async def hang(_caller: PeerId, _request: bytes) -> bytes:
            return await forever()

        async def call_until_broken() -> None:
            await open_now.wait()
            with pytest.raises(RemoteTimeout):
                await client.transport.call(there, "hang", b"", timeout_s=LONG_S)

        async def receive_until_broken() -> None:
            async with client.transport.stream(there, "echo", timeout_s=LONG_S) as stream:
                await stream.send(b"1")
                assert await stream.receive() == b"1"
                await open_now.wait()
                with pytest.raises(RemoteTimeout):
                    await stream.receive()

        async with (
            server.serving(Handlers(calls={"hang": hang}, streams={"echo": echo_stream})) as there,
            asyncio.timeout(LONG_S / 2),
            asyncio.TaskGroup() as group,
        ):
            group.create_task(call_until_broken())
            group.create_task(receive_until_broken())
            await open_now.wait()
            await asyncio.sleep(0.1)
            await client.transport.close()
            await client.transport.close()

    play(scenario)


def test_traffic_counts_payload_on_both_sides(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()

        async def answer(_caller: PeerId, _request: bytes) -> bytes:
            return b"y" * 70

        async with server.serving(Handlers(calls={"answer": answer}, streams={"echo": echo_stream})) as there:
            await client.transport.call(there, "answer", b"x" * 100, timeout_s=LONG_S)
            async with client.transport.stream(there, "echo", timeout_s=LONG_S) as stream:
                for _ in range(3):
                    await stream.send(b"z" * 1000)
                    await stream.receive()
                await stream.finish_sending()
                assert await stream.receive() is None
        assert (client.transport.traffic.sent_bytes, client.transport.traffic.received_bytes) == (3100, 3070)
        assert (server.transport.traffic.sent_bytes, server.transport.traffic.received_bytes) == (3070, 3100)

    play(scenario)


def test_serving_again_after_stopping(play: Play) -> None:
    async def scenario(world: World) -> None:
        server, client = world.node(), world.node()
        for _ in range(2):
            async with server.serving(Handlers(calls={"echo": echo})) as there:
                assert await client.transport.call(there, "echo", b"again", timeout_s=LONG_S) == b"again"

    play(scenario)


def test_an_error_in_the_serving_block_comes_out_as_it_is(play: Play) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(ZeroDivisionError):
            async with world.node().serving(Handlers()):
                raise ZeroDivisionError

    play(scenario)
