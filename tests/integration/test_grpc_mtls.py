"""The gRPC transport against strangers, forgers, garbage and liars, on real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import grpc
import grpc.aio
import pytest
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peers.interfaces import MAX_CALL_BYTES, MAX_MESSAGE_BYTES, Endpoint, Handlers, Stream
from protocols.errors import RemoteProtocolError, RemoteRefusal, RemoteTimeout
from tests.helpers.transport_certificates import RunAuthority
from tests.helpers.transport_stage import HANDLERS, Stage, dialler, on_stage, transport_of
from tests.helpers.transport_worlds import LONG_S, echo


def test_client_without_certificate_gets_nowhere() -> None:
    async def play(stage: Stage) -> None:
        credentials = grpc.ssl_channel_credentials(stage.server.leaf_pem)
        options = [("grpc.ssl_target_name_override", stage.server.peer.tls_name)]
        async with grpc.aio.secure_channel(stage.there.address, credentials, options=options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary("/swarm.v1.Peer/echo", None, None)(b"let me in", timeout=5.0)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        await stage.assert_still_serving()

    on_stage(play)


def test_plaintext_client_gets_nowhere() -> None:
    async def play(stage: Stage) -> None:
        async with grpc.aio.insecure_channel(stage.there.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary("/swarm.v1.Peer/echo", None, None)(b"let me in", timeout=5.0)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        await stage.assert_still_serving()

    on_stage(play)


def test_member_of_another_run_gets_nowhere() -> None:
    async def play(stage: Stage) -> None:
        async with dialler(RunAuthority().certify()) as stranger:
            with pytest.raises(RemoteTimeout):
                await stranger.call(stage.there, "echo", b"let me in", timeout_s=LONG_S)
        await stage.assert_still_serving()

    on_stage(play)


def test_certificate_that_names_somebody_else_is_refused() -> None:
    async def play(stage: Stage) -> None:
        async with dialler(stage.authority.certify(claims=stage.client_member.peer)) as forger:
            with pytest.raises(RemoteRefusal) as refused:
                await forger.call(stage.there, "echo", b"it is me, honestly", timeout_s=LONG_S)
            assert refused.value.code == "bad-identity"
            async with forger.stream(stage.there, "echo-stream", timeout_s=LONG_S) as stream:
                with pytest.raises(RemoteRefusal, match="bad certificate"):
                    await stream.receive()
        await stage.assert_still_serving()

    on_stage(play)


def test_banned_peer_is_refused_and_its_open_stream_ends() -> None:
    async def play(stage: Stage) -> None:
        async with stage.client.stream(stage.there, "echo-stream", timeout_s=LONG_S) as stream:
            await stream.send(b"while I may")
            assert await stream.receive() == b"while I may"
            stage.authority.banned.add(stage.client_member.peer)
            await stream.send(b"and now?")
            with pytest.raises(RemoteRefusal) as cut_off:
                await stream.receive()
        with pytest.raises(RemoteRefusal) as refused:
            await stage.client.call(stage.there, "echo", b"", timeout_s=LONG_S)
        assert cut_off.value.code == refused.value.code == "banned"
        stage.authority.banned.clear()
        await stage.assert_still_serving()

    on_stage(play)


def test_only_the_announced_leaf_is_accepted() -> None:
    async def whole() -> None:
        authority, identity = RunAuthority(), Ed25519PrivateKey.generate()
        old, new = authority.certify(identity), authority.certify(identity)
        async with transport_of(new).serve(HANDLERS) as address, dialler(authority.certify()) as client:
            with pytest.raises(RemoteTimeout):
                await client.call(Endpoint(old.peer, address, old.leaf_pem), "echo", b"x", timeout_s=LONG_S)
            # the same peer announces its new certificate: a new channel, no wait
            assert await client.call(Endpoint(new.peer, address, new.leaf_pem), "echo", b"x", timeout_s=LONG_S) == b"x"

    uvloop.run(whole())


def test_announcing_another_peers_certificate_is_a_protocol_error() -> None:
    async def play(stage: Stage) -> None:
        for certificate in (stage.client_member.leaf_pem, b"", b"garbage"):
            with pytest.raises(RemoteProtocolError):
                await stage.client.call(Endpoint(stage.server.peer, stage.there.address, certificate), "echo", b"", timeout_s=LONG_S)

    on_stage(play)


@pytest.mark.parametrize("address", ["unix:/tmp/socket", "dns:///localhost:1", "127.0.0.1", "host:99999", "a b:1", "", "xds:host:1"])
def test_an_address_is_host_and_port_or_a_protocol_error(address: str) -> None:
    async def play(stage: Stage) -> None:
        with pytest.raises(RemoteProtocolError, match="bad address"):
            await stage.client.call(Endpoint(stage.server.peer, address, stage.server.leaf_pem), "echo", b"", timeout_s=LONG_S)

    on_stage(play)


async def write_and_wait_for_end(port: int, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(LONG_S):
            writer.write(data)
            await writer.drain()
            while await reader.read(65536):
                pass
    except ConnectionError:
        pass
    finally:
        writer.close()


def test_garbage_on_the_port_disturbs_nobody() -> None:
    async def play(stage: Stage) -> None:
        silent = socket.create_connection(("127.0.0.1", stage.port))
        try:
            async with stage.client.stream(stage.there, "echo-stream", timeout_s=LONG_S) as stream:
                for garbage in (os.urandom(2**20), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(2**20), b"GET / HTTP/1.1\r\n\r\n"):
                    await write_and_wait_for_end(stage.port, garbage)
                    await stream.send(b"still")
                    assert await stream.receive() == b"still"
            async with dialler(stage.authority.certify()) as newcomer:
                assert await newcomer.call(stage.there, "echo", b"new", timeout_s=LONG_S) == b"new"
        finally:
            silent.close()

    on_stage(play)


def raw_channel(stage: Stage) -> grpc.aio.Channel:
    """A member that does not keep to the limits."""
    ours = stage.client_member.credentials
    credentials = grpc.ssl_channel_credentials(stage.server.leaf_pem, ours.private_key_pem, ours.certificate_chain_pem)
    options = [("grpc.ssl_target_name_override", stage.server.peer.tls_name)]
    return grpc.aio.secure_channel(stage.there.address, credentials, options=options)


def test_oversized_requests_and_messages_are_refused() -> None:
    ended: list[str] = []

    async def collect(stream: Stream) -> None:
        try:
            while await stream.receive() is not None:
                pass
            ended.append("finished")
        except RemoteProtocolError:
            ended.append("protocol error")
            raise

    async def play(stage: Stage) -> None:
        async with raw_channel(stage) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary("/swarm.v1.Peer/echo", None, None)(bytes(MAX_CALL_BYTES + 1), timeout=LONG_S)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            stream: Any = channel.stream_stream("/swarm.v1.Peer/collect", None, None)(None, timeout=LONG_S)
            await stream.write(bytes(MAX_MESSAGE_BYTES + 1))
            with pytest.raises(grpc.aio.AioRpcError) as stream_refused:
                await stream.read()
            assert "above the limit" in (stream_refused.value.details() or "")
        await stage.assert_still_serving()
        assert ended == ["protocol error"]

    on_stage(play, Handlers(calls={"echo": echo}, streams={"collect": collect}))


def test_a_client_that_stops_without_finishing_is_not_taken_for_finished() -> None:
    async def play(stage: Stage) -> None:
        async with raw_channel(stage) as channel:
            stream: Any = channel.stream_stream("/swarm.v1.Peer/collect", None, None)(None, timeout=LONG_S)
            await stream.write(b"part")
            await stream.done_writing()
            async with asyncio.timeout(LONG_S):
                assert await ended.get() == "broken"

    ended: asyncio.Queue[str] = asyncio.Queue()

    async def collect(stream: Stream) -> None:
        assert await stream.receive() == b"part"
        try:
            await stream.receive()
            ended.put_nowait("finished")
        except RemoteTimeout:
            ended.put_nowait("broken")
            raise

    on_stage(play, Handlers(streams={"collect": collect}))


def test_oversized_replies_and_malformed_refusals_from_a_dishonest_server() -> None:
    async def reply(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        if request == b"refuse":
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "x" * 3000, (("swarm-refusal", "<Weird Code>"),))
        return bytes(MAX_CALL_BYTES + 1)

    async def send(_requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.write(b"fine")
        await context.write(bytes(MAX_MESSAGE_BYTES + 1))

    class Dishonest(grpc.GenericRpcHandler):  # type: ignore[type-arg]
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            if handler_call_details.method.endswith("stream"):
                return grpc.stream_stream_rpc_method_handler(send)
            return grpc.unary_unary_rpc_method_handler(reply)

    async def whole() -> None:
        authority = RunAuthority()
        liar = authority.certify()
        ours = liar.credentials
        server = grpc.aio.server(handlers=(Dishonest(),))
        identity = [(ours.private_key_pem, ours.certificate_chain_pem)]
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(identity, ours.run_ca_pem, require_client_auth=True))
        await server.start()
        there = Endpoint(liar.peer, f"127.0.0.1:{port}", liar.leaf_pem)
        async with dialler(authority.certify()) as client:
            with pytest.raises(RemoteProtocolError, match="oversized"):
                await client.call(there, "call", b"", timeout_s=LONG_S)
            with pytest.raises(RemoteRefusal) as refused:
                await client.call(there, "call", b"refuse", timeout_s=LONG_S)
            assert refused.value.code == "protocol-error"
            assert len(refused.value.reason) == 500
            async with client.stream(there, "stream", timeout_s=LONG_S) as stream:
                assert await stream.receive() == b"fine"
                with pytest.raises(RemoteProtocolError, match="above the limit"):
                    await stream.receive()
        await server.stop(None)

    uvloop.run(whole())
