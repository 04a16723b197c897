"""The libp2p node over real daemons on 127.0.0.1: who calls whom, and what goes wrong."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import base58
import grpc.aio
import pytest
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peers.libp2p_control import encode_route, split_address
from peers.libp2p_daemon import Libp2pOptions
from peers.libp2p_node import Libp2pNode
from peers.libp2p_wire import MAX_CALL_BYTES
from protocols.errors import (
    ExitCode,
    LocalProtocolError,
    NetworkSetupError,
    RemoteProtocolError,
    RemoteRefusal,
    RemoteTimeout,
)
from protocols.ids import PeerId

LOOPBACK = Libp2pOptions(listen=("/ip4/127.0.0.1/tcp/0",))
NOBODY = PeerId(Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw())


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work

    uvloop.run(bounded())


def node() -> Any:
    return Libp2pNode.start(os.urandom(32), LOOPBACK)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_seed_decides_who_we_are() -> None:
    async def main() -> None:
        seed = os.urandom(32)
        expected = PeerId(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())
        async with Libp2pNode.start(seed, LOOPBACK) as ours:
            assert ours.peer == expected
            assert ours.p2p.peer_id.to_base58() == str(expected), "the daemon took the identity that we wrote"
            (address,) = ours.addresses()
            assert split_address(address)[0] == expected
            assert address.startswith("/ip4/127.0.0.1/tcp/")

    run(main())


def test_a_call_carries_who_called() -> None:
    async def main() -> None:
        async with node() as ann, node() as bob:

            async def handler(caller: PeerId, request: bytes) -> bytes:
                return str(caller).encode() + b" said " + request

            await bob.serve("greet", handler)
            assert await ann.call(bob.addresses()[0], "greet", b"hello", timeout_s=5) == str(ann.peer).encode() + b" said hello"
            assert await ann.call(bob.peer, "greet", b"", timeout_s=5) == str(ann.peer).encode() + b" said "

    run(main())


@pytest.mark.parametrize("size", [0, 1, 2**16 + 1, MAX_CALL_BYTES])
def test_requests_and_replies_of_any_allowed_size(size: int) -> None:
    async def main() -> None:
        async with node() as ann, node() as bob:

            async def handler(_caller: PeerId, request: bytes) -> bytes:
                return request[::-1]

            await bob.serve("reverse", handler)
            payload = os.urandom(size)
            assert await ann.call(bob.addresses()[0], "reverse", payload, timeout_s=10) == payload[::-1]

    run(main())


def test_refusals_reach_the_caller_with_code_and_sentence(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with node() as ann, node() as bob:

            async def handler(caller: PeerId, request: bytes) -> bytes:
                if request == b"refuse":
                    raise RemoteRefusal(None, "wrong-run", "we train something else")
                if request == b"blame":
                    raise RemoteProtocolError(caller, "this is not an application")
                if request == b"big":
                    return bytes(MAX_CALL_BYTES + 1)
                raise KeyError("secret detail")

            await bob.serve("ask", handler)
            where = bob.addresses()[0]
            for request, code, sentence in (
                (b"refuse", "wrong-run", "we train something else"),
                (b"blame", "protocol-error", "this is not an application"),
                (b"big", "internal", "too large"),
                (b"bug", "internal", "bug"),
            ):
                with pytest.raises(RemoteRefusal) as refused:
                    await ann.call(where, "ask", request, timeout_s=5)
                assert (refused.value.code, refused.value.peer) == (code, bob.peer)
                assert sentence in refused.value.reason
                assert "secret" not in refused.value.reason
            with pytest.raises(RemoteRefusal) as refused:
                await ann.call(where, "nothing", b"", timeout_s=5)
            assert refused.value.code == "unknown-method"

    run(main())
    assert "secret detail" in caplog.text, "our own bug is logged with its traceback"


def test_oversized_messages() -> None:
    async def main() -> None:
        async with node() as ann, node() as bob:
            served: list[bytes] = []

            async def handler(_caller: PeerId, request: bytes) -> bytes:
                served.append(request)
                return b""

            await bob.serve("small", handler)
            with pytest.raises(LocalProtocolError):
                await ann.call(bob.addresses()[0], "small", bytes(MAX_CALL_BYTES + 1), timeout_s=5)

            await ann.connect(bob.addresses()[0], timeout_s=5)
            _, reader, writer = await ann.p2p.call_binary_stream_handler(bob.p2p.peer_id, "/swarm/1/small")
            writer.write((MAX_CALL_BYTES + 1).to_bytes(4, "big") + b"x" * 100)
            assert await reader.read() == b"", "the stream is dropped"
            writer.close()
            assert served == []

            async def liar(_info: object, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with closing(writer):
                    writer.write(b"\x00" + (2**31).to_bytes(4, "big") + b"x" * 100)
                    await reader.read()

            await bob.p2p.add_binary_stream_handler("/swarm/1/liar", liar)
            with pytest.raises(RemoteProtocolError) as broken:
                await ann.call(bob.peer, "liar", b"", timeout_s=5)
            assert broken.value.peer == bob.peer

    run(main())


def test_who_does_not_answer_times_out_without_blame() -> None:
    async def main() -> None:
        async with node() as ann, node() as bob:
            never = asyncio.Event()

            async def handler(_caller: PeerId, _request: bytes) -> bytes:
                await never.wait()
                return b""

            await bob.serve("slow", handler)
            route = split_address(bob.addresses()[0])[1]
            for where in (f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{NOBODY}", f"{route}/p2p/{NOBODY}", NOBODY):
                with pytest.raises(RemoteTimeout) as silent:
                    await ann.call(where, "slow", b"", timeout_s=5)
                assert silent.value.peer == NOBODY
            with pytest.raises(RemoteTimeout, match=r"0\.2 s"):
                await ann.call(bob.addresses()[0], "slow", b"", timeout_s=0.2)

    run(main())


def test_a_peer_that_goes_away_during_a_call_is_a_timeout() -> None:
    async def main() -> None:
        async with node() as ann:
            asked = asyncio.Event()
            async with node() as bob, asyncio.TaskGroup() as group:

                async def handler(_caller: PeerId, _request: bytes) -> bytes:
                    asked.set()
                    await asyncio.Event().wait()
                    return b""

                async def ask() -> None:
                    with pytest.raises(RemoteTimeout):
                        await ann.call(bob.addresses()[0], "slow", b"", timeout_s=20)

                await bob.serve("slow", handler)
                group.create_task(ask())
                await asked.wait()
                os.kill(bob.daemon_pid, 9)
                await bob.wait_for_daemon_exit()

    run(main())


def test_one_peer_cannot_take_all_the_places() -> None:
    async def main() -> None:
        async with node() as ann, node() as bob:
            inside, door = asyncio.Semaphore(0), asyncio.Event()

            async def handler(_caller: PeerId, _request: bytes) -> bytes:
                inside.release()
                await door.wait()
                return b"done"

            await bob.serve("wait", handler)
            await ann.connect(bob.addresses()[0], timeout_s=5)
            async with asyncio.TaskGroup() as group:
                waiting = [group.create_task(ann.call(bob.peer, "wait", b"", timeout_s=15)) for _ in range(8)]
                for _ in waiting:
                    await inside.acquire()
                with pytest.raises(RemoteRefusal) as refused:
                    await ann.call(bob.peer, "wait", b"", timeout_s=5)
                assert refused.value.code == "busy"
                door.set()
            assert [task.result() for task in waiting] == [b"done"] * 8
            for _ in range(20):  # who has its answers may call again at once
                calls = (ann.call(bob.peer, "wait", b"", timeout_s=5) for _ in range(8))
                assert await asyncio.gather(*calls) == [b"done"] * 8

    run(main())


def test_a_name_is_served_once() -> None:
    async def main() -> None:
        async with node() as ann:

            async def handler(_caller: PeerId, _request: bytes) -> bytes:
                return b""

            await ann.serve("x", handler)
            with pytest.raises(LocalProtocolError):
                await ann.serve("x", handler)

    run(main())


@pytest.mark.parametrize(
    "address",
    [
        "",
        "x",
        "/ip4/127.0.0.1/tcp/1",
        f"/p2p/{NOBODY}",
        "/ip4/127.0.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "/ip4/300.0.0.1/tcp/1/p2p/x",
    ],
)
def test_a_bad_address_gets_one_sentence(address: str) -> None:
    with pytest.raises(NetworkSetupError, match="is not an address like"):
        split_address(address)


def test_relayed_addresses_are_written_the_way_the_daemon_reads_them() -> None:
    relay = base58.b58decode(str(NOBODY))
    expected = b"\x04\x7f\x00\x00\x01\x06\x00\x09" + b"\xa5\x03" + bytes([len(relay)]) + relay + b"\xa2\x02"
    assert encode_route(f"/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}/p2p-circuit") == expected
    assert split_address(f"/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}/p2p-circuit/p2p/{NOBODY}")[0] == NOBODY


def test_ports_that_are_taken_and_addresses_that_are_not_ours() -> None:
    async def main() -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as taken:
            port = taken.getsockname()[1]
            for listen in ((f"/ip4/127.0.0.1/tcp/{port}",), ("/ip4/127.0.0.1/tcp/0", f"/ip4/127.0.0.1/tcp/{port}")):
                with pytest.raises(NetworkSetupError, match=str(port)) as failed:
                    async with Libp2pNode.start(os.urandom(32), Libp2pOptions(listen=listen)):
                        pass
                assert failed.value.exit_code == ExitCode.PORT_IN_USE
        with pytest.raises(NetworkSetupError, match="not an address of this machine"):
            async with Libp2pNode.start(os.urandom(32), Libp2pOptions(listen=("/ip4/192.0.2.1/tcp/0",))):
                pass
        for listen in (("/ip4/127.0.0.1/udp/0/quic-v1",), ("nonsense",)):
            with pytest.raises(NetworkSetupError, match="TCP multiaddress"):
                Libp2pOptions(listen=listen)

    run(main())


def test_a_node_that_does_not_listen_can_still_call() -> None:
    async def main() -> None:
        async with node() as bob, Libp2pNode.start(os.urandom(32), Libp2pOptions(listen=())) as hidden:

            async def handler(caller: PeerId, _request: bytes) -> bytes:
                return caller.public_key

            await bob.serve("who", handler)
            assert hidden.addresses() == []
            assert await hidden.call(bob.addresses()[0], "who", b"", timeout_s=5) == hidden.peer.public_key

    run(main())


def test_works_in_a_second_thread_beside_a_busy_grpc_server() -> None:
    async def main() -> None:
        async def echo(request: bytes, _context: object) -> bytes:
            return request

        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(echo)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", {"echo": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stop = asyncio.Event()
        rounds = 0

        async def keep_busy() -> None:
            nonlocal rounds
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.unary_unary("/t/echo", None, None)
                while not stop.is_set():
                    assert await call(bytes(1000)) == bytes(1000)
                    rounds += 1

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(keep_busy())
                for _ in range(3):
                    async with node() as ann, node() as bob:

                        async def shout(_caller: PeerId, request: bytes) -> bytes:
                            return request.upper()

                        await bob.serve("shout", shout)
                        assert await ann.call(bob.addresses()[0], "shout", b"hi", timeout_s=5) == b"HI"
                stop.set()
        finally:
            await server.stop(0)  # or its thread keeps the whole suite from ending
        assert rounds > 0

    failures: list[BaseException] = []

    def body() -> None:
        try:
            run(main())
        except BaseException as error:  # noqa: BLE001  # handed to the test's own thread
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert failures == []


def test_the_private_directory_is_private(tmp_path: Path) -> None:
    base = Path("/tmp") / f"swarm-test-{os.getpid()}"
    base.mkdir(mode=0o755)

    async def main() -> None:
        with pytest.raises(NetworkSetupError, match="only this user"):
            async with Libp2pNode.start(os.urandom(32), LOOPBACK, base):
                pass
        with pytest.raises(NetworkSetupError, match="too long"):
            async with Libp2pNode.start(os.urandom(32), LOOPBACK, tmp_path / ("x" * 100)):
                pass

    try:
        run(main())
    finally:
        base.rmdir()
    assert list(tmp_path.iterdir()) == []
