"""The gRPC transport when connections break, peers restart and ports are taken, on real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from peers.interfaces import Endpoint, Handlers, Stream
from peers.transport.grpc_mtls import GrpcTransport
from protocols.errors import ExitCode, NetworkSetupError, RemoteTimeout
from protocols.ids import PeerId
from tests.helpers.transport_certificates import RunAuthority
from tests.helpers.transport_stage import HANDLERS, Stage, dialler, on_stage, transport_of
from tests.helpers.transport_worlds import LONG_S, echo, echo_stream


class Wire:
    """A TCP relay on the way to a server, which can be cut or go silent."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []
        self.silent = False

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, onward_writer]
        try:
            async with asyncio.TaskGroup() as group:
                for source, sink in ((reader, onward_writer), (onward_reader, writer)):
                    group.create_task(self._copy(source, sink))
        finally:
            writer.close()
            onward_writer.close()

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                if not self.silent:
                    sink.write(data)
                    await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


@asynccontextmanager
async def wire_to(port: int) -> AsyncIterator[tuple[Wire, int]]:
    wire = Wire(port)
    server = await asyncio.start_server(wire.carry, "127.0.0.1", 0)
    try:
        yield wire, server.sockets[0].getsockname()[1]
    finally:
        wire.cut()
        server.close()
        await server.wait_closed()


def test_a_cut_connection_is_noticed_at_once_on_both_sides_and_dialled_again() -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()

    async def watch(stream: Stream) -> None:
        try:
            await echo_stream(stream)
            ended.put_nowait("finished")
        except RemoteTimeout:
            ended.put_nowait("broken")
            raise
        except asyncio.CancelledError:
            ended.put_nowait("cancelled")
            raise

    async def play(stage: Stage) -> None:
        async with wire_to(stage.port) as (wire, port):
            there = Endpoint(stage.server.peer, f"127.0.0.1:{port}", stage.server.leaf_pem)
            async with dialler(stage.authority.certify()) as client:
                async with client.stream(there, "watch", timeout_s=LONG_S) as stream, asyncio.timeout(3.0):
                    await stream.send(b"1")
                    assert await stream.receive() == b"1"
                    wire.cut()
                    with pytest.raises(RemoteTimeout):
                        await stream.receive()
                    with pytest.raises(RemoteTimeout):
                        await stream.send(b"2")
                    assert await ended.get() in ("broken", "cancelled")
                assert await until_it_answers(client, there) == b"again"

    on_stage(play, Handlers(calls={"echo": echo}, streams={"watch": watch}))


def test_a_silent_connection_is_ended_by_the_deadline() -> None:
    async def play(stage: Stage) -> None:
        async with wire_to(stage.port) as (wire, port):
            there = Endpoint(stage.server.peer, f"127.0.0.1:{port}", stage.server.leaf_pem)
            async with dialler(stage.authority.certify()) as client:
                async with client.stream(there, "echo-stream", timeout_s=1.0) as stream, asyncio.timeout(3.0):
                    await stream.send(b"1")
                    assert await stream.receive() == b"1"
                    wire.silent = True
                    await stream.send(b"2")
                    with pytest.raises(RemoteTimeout):
                        await stream.receive()
                with pytest.raises(RemoteTimeout):
                    await client.call(there, "echo", b"", timeout_s=0.5)

    on_stage(play)


async def until_it_answers(client: GrpcTransport, there: Endpoint) -> bytes:
    async with asyncio.timeout(3.0):
        while True:
            try:
                return await client.call(there, "echo", b"again", timeout_s=1.0)
            except RemoteTimeout:
                await asyncio.sleep(0.05)


def test_a_restarted_peer_is_reached_again_on_its_port() -> None:
    async def whole() -> None:
        authority = RunAuthority()
        server = authority.certify()
        async with dialler(authority.certify()) as client:
            async with transport_of(server).serve(HANDLERS) as address:
                there = Endpoint(server.peer, address, server.leaf_pem)
                assert await client.call(there, "echo", b"1", timeout_s=LONG_S) == b"1"
            for _ in range(10):
                with pytest.raises(RemoteTimeout):
                    await client.call(there, "echo", b"2", timeout_s=LONG_S)
            async with transport_of(server, address).serve(HANDLERS) as address_again:
                assert address_again == address
                assert await until_it_answers(client, there) == b"again"

    uvloop.run(whole())


def test_a_handler_that_will_not_stop_does_not_hold_the_server() -> None:
    async def whole() -> None:
        authority = RunAuthority()
        server = authority.certify()
        release, started = asyncio.Event(), asyncio.Event()

        async def stubborn(_caller: PeerId, _request: bytes) -> bytes:
            started.set()
            try:
                await release.wait()
            except asyncio.CancelledError:
                await release.wait()
                raise
            return b""

        async def call() -> None:
            with pytest.raises(RemoteTimeout):
                await client.call(there, "stubborn", b"", timeout_s=LONG_S)

        loop = asyncio.get_running_loop()
        async with dialler(authority.certify()) as client, asyncio.TaskGroup() as group:
            async with transport_of(server).serve(Handlers(calls={"stubborn": stubborn})) as address:
                there = Endpoint(server.peer, address, server.leaf_pem)
                group.create_task(call())
                await started.wait()
                start_s = loop.time()
            assert loop.time() - start_s < 1.5
            release.set()

    uvloop.run(whole())


def fails_to_serve(listen: str) -> NetworkSetupError:
    async def serve() -> None:
        async with transport_of(RunAuthority().certify(), listen).serve(HANDLERS):
            pass

    def run(main: Coroutine[Any, Any, None]) -> None:
        uvloop.run(main)

    with pytest.raises(NetworkSetupError) as failed:
        run(serve())
    return failed.value


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_port_in_use_is_one_clear_sentence(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = fails_to_serve(f"{host}:{port}")
    assert error.exit_code is ExitCode.PORT_IN_USE
    assert str(error) == f"Cannot listen on {host}:{port}: the port is in use, choose another or stop the other program."


def test_a_second_server_of_ours_on_one_port_is_refused() -> None:
    async def play(stage: Stage) -> None:
        second = transport_of(stage.authority.certify(), f"127.0.0.1:{stage.port}")
        with pytest.raises(NetworkSetupError) as refused:
            await second.serve(HANDLERS).__aenter__()
        assert refused.value.exit_code is ExitCode.PORT_IN_USE
        await stage.assert_still_serving()

    on_stage(play)


def test_an_address_that_is_not_ours() -> None:
    error = fails_to_serve("203.0.113.7:0")
    assert error.exit_code is ExitCode.NETWORK
    assert "203.0.113.7:0" in str(error)
    assert fails_to_serve("nonsense").exit_code is ExitCode.NETWORK


def test_serving_on_every_interface_announces_the_given_host() -> None:
    async def whole() -> None:
        authority = RunAuthority()
        server = authority.certify()
        async with GrpcTransport(server.credentials, "0.0.0.0:0", "localhost").serve(HANDLERS) as address:
            assert address.startswith("localhost:")
            async with dialler(authority.certify()) as client:
                assert await client.call(Endpoint(server.peer, address, server.leaf_pem), "echo", b"x", timeout_s=LONG_S) == b"x"

    uvloop.run(whole())
