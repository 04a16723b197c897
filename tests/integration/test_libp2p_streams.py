"""The transport over libp2p streams between real daemons: who is let in, what is too much, and how an end is seen."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peers.interfaces import MAX_CALL_BYTES, MAX_MESSAGE_BYTES, Endpoint, Handlers, Stream
from peers.libp2p_daemon import Libp2pOptions
from peers.libp2p_node import Libp2pNode
from peers.transport import libp2p_serving
from peers.transport.libp2p_frames import PROTOCOL, WINDOW_BYTES, Kind, Opening
from peers.transport.libp2p_streams import Libp2pStreams
from peers.transport.membership import MembershipProof
from peers.transport.pipe import Pipe
from protocols.errors import RemoteGone, RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.ids import PeerId
from tests.helpers.libp2p_pool import POOL, PooledNode
from tests.helpers.libp2p_raw import Frames
from tests.helpers.transport_certificates import Member, RunAuthority
from tests.helpers.transport_worlds import MIB, echo, echo_stream

LONG_S = 60.0
"""A deadline that only a hanging test meets, with daemons to start on a busy machine."""

HANDLERS = Handlers(calls={"echo": echo}, streams={"echo": echo_stream})
LOOPBACK = Libp2pOptions(listen=("/ip4/127.0.0.1/tcp/0",), start_timeout_s=LONG_S)


@pytest.fixture(scope="module", autouse=True)
def _pool() -> Iterator[None]:
    yield
    POOL.close()


@dataclasses.dataclass
class Stage:
    """A serving member, and two nodes that may dial it."""

    authority: RunAuthority
    pooled: list[PooledNode]
    there: Endpoint

    def member(self, number: int = 1, authority: RunAuthority | None = None) -> Member:
        """Certificates for the identity of a node."""
        return (authority or self.authority).certify(self.pooled[number].key)

    def dialler(self, proof: MembershipProof | None = None) -> Libp2pStreams:
        return Libp2pStreams(self.pooled[1].node, proof or self.member().proof)

    async def raw(self) -> tuple[Pipe, Frames]:
        """A stream on which a test may say anything."""
        pipe = await self.pooled[1].node.open_pipe(self.there.peer, self.there.libp2p_addresses, PROTOCOL, timeout_s=LONG_S)
        frames = Frames()
        pipe.start(frames)
        return pipe, frames

    async def assert_still_serving(self) -> None:
        assert await self.dialler().call(self.there, "echo", b"alive", timeout_s=LONG_S) == b"alive"


def on_stage(play: Callable[[Stage], Awaitable[None]], handlers: Handlers = HANDLERS) -> None:
    async def whole(pooled: list[PooledNode]) -> None:
        authority = RunAuthority()
        server = authority.certify(pooled[0].key)
        async with Libp2pStreams(pooled[0].node, server.proof).serve(handlers):
            await play(Stage(authority, pooled, Endpoint(server.peer, "", b"", tuple(pooled[0].node.addresses()))))

    POOL.run(whole)


async def code_of(transport: Libp2pStreams, there: Endpoint) -> set[str]:
    """With which codes a call and a stream are refused."""
    codes = set()
    with pytest.raises(RemoteRefusal) as refused:
        await transport.call(there, "echo", b"let me in", timeout_s=LONG_S)
    codes.add(refused.value.code)
    with pytest.raises(RemoteRefusal) as refused:
        async with transport.stream(there, "echo", timeout_s=LONG_S) as stream:
            await stream.receive()
    codes.add(refused.value.code)
    return codes


# Who is let in


def test_only_members_of_the_run_are_served() -> None:
    async def play(stage: Stage) -> None:
        other_run = stage.member(authority=RunAuthority()).proof
        stolen = stage.member(number=2).proof
        lapsed = dataclasses.replace(stage.member().proof, chain=b"no certificate at all")
        for proof in (other_run, stolen, lapsed):
            assert await code_of(stage.dialler(proof), stage.there) == {"bad-identity"}
        await stage.assert_still_serving()

    on_stage(play)


def test_only_members_of_the_run_are_believed() -> None:
    async def play(stage: Stage) -> None:
        ours = stage.member().proof
        for unknown in (
            dataclasses.replace(ours, authenticate=RunAuthority().authenticate_chain),
            dataclasses.replace(ours, authenticate=lambda chain: stage.member(2).peer),
        ):
            with pytest.raises(RemoteProtocolError) as caught:
                await stage.dialler(unknown).call(stage.there, "echo", b"", timeout_s=LONG_S)
            assert caught.value.peer == stage.there.peer
            with pytest.raises(RemoteProtocolError):
                async with stage.dialler(unknown).stream(stage.there, "echo", timeout_s=LONG_S) as stream:
                    await stream.receive()

    on_stage(play)


def test_a_banned_member_is_refused_even_within_a_stream() -> None:
    async def play(stage: Stage) -> None:
        async with stage.dialler().stream(stage.there, "echo", timeout_s=LONG_S) as stream:
            await stream.send(b"1")
            assert await stream.receive() == b"1"
            stage.authority.banned.add(stream_owner := stage.member().peer)
            await stream.send(b"2")
            with pytest.raises(RemoteRefusal) as refused:
                await stream.receive()
            assert refused.value.code == "banned"
        assert await code_of(stage.dialler(), stage.there) == {"banned"}
        stage.authority.banned.remove(stream_owner)
        await stage.assert_still_serving()

    on_stage(play)


# Too much, and nonsense


@pytest.mark.parametrize(
    "frames",
    [
        [(Kind.DATA, b"without opening")],
        [(Kind.OPEN, b"")],
        [(Kind.OPEN, b"\x07" * 30)],
        [(Kind.OPEN, bytes(100_000))],
        [(99, b"")],
    ],
    ids=["no opening", "empty", "nonsense", "too large", "unknown kind"],
)
def test_a_stream_that_begins_wrongly_is_refused(frames: list[tuple[int, bytes]]) -> None:
    async def play(stage: Stage) -> None:
        pipe, answers = await stage.raw()
        for frame in frames:
            pipe.write(*frame)
        assert await answers.refusal() == "protocol-error"
        pipe.close()
        await stage.assert_still_serving()

    on_stage(play)


@pytest.mark.parametrize(
    "frames",
    [
        [(Kind.DATA, bytes(MAX_MESSAGE_BYTES + 1))],
        [(Kind.DATA, b"")],
        [(Kind.DATA, bytes(MAX_MESSAGE_BYTES))] * (WINDOW_BYTES // MAX_MESSAGE_BYTES + 1),
        [(Kind.CREDIT, b"\0\0\0\1")],
        [(Kind.CREDIT, b"\0\0\1")],
        [(Kind.HELLO, b"again")],
        [(Kind.END, b"")],
        [(Kind.FINISHED, b""), (Kind.DATA, b"and another thing")],
    ],
    ids=["too large", "empty", "above the window", "unearned credit", "bad credit", "hello", "end", "data after the end"],
)
def test_a_stream_that_breaks_the_rules_is_the_senders_fault(frames: list[tuple[int, bytes]]) -> None:
    blamed: list[PeerId | None] = []

    async def never_read(stream: Stream) -> None:
        try:
            while True:
                await stream.send(b"tick")
                await asyncio.sleep(0.01)
        except RemoteProtocolError as error:
            with pytest.raises(RemoteProtocolError):
                while True:
                    await stream.receive()
            blamed.append(error.peer)
            raise

    async def play(stage: Stage) -> None:
        pipe, answers = await stage.raw()
        pipe.write(Kind.OPEN, Opening("stream", "tick", LONG_S, stage.member().proof.chain).encode())
        for frame in frames:
            pipe.write(*frame)
        assert await answers.refusal() == "protocol-error"
        assert blamed == [stage.member().peer]
        pipe.close()

    on_stage(play, Handlers(streams={"tick": never_read}))


def test_an_oversized_request_is_refused() -> None:
    async def play(stage: Stage) -> None:
        for frames in ([(Kind.DATA, bytes(MAX_CALL_BYTES + 1))], [(Kind.CREDIT, bytes(4))]):
            pipe, answers = await stage.raw()
            pipe.write(Kind.OPEN, Opening("call", "echo", LONG_S, stage.member().proof.chain).encode())
            for frame in frames:
                pipe.write(*frame)
            assert await answers.refusal() == "protocol-error"
            pipe.close()

    on_stage(play)


@pytest.mark.parametrize(
    "says",
    [
        [(Kind.DATA, b"without showing who it is")],
        [(Kind.HELLO, b"not a certificate")],
        [(Kind.HELLO, None), (Kind.DATA, bytes(MAX_CALL_BYTES + 1))],
        [(Kind.HELLO, None), (Kind.OPEN, b"what?")],
        [(Kind.HELLO, None), (Kind.HELLO, None)],
        [(Kind.HELLO, bytes(100_000))],
    ],
    ids=["no hello", "bad hello", "too large", "opening", "hello twice", "long hello"],
)
def test_a_server_that_breaks_the_rules_is_named(says: list[tuple[int, bytes | None]]) -> None:
    async def whole(pooled: list[PooledNode]) -> None:
        authority = RunAuthority()
        server, client = authority.certify(pooled[0].key), authority.certify(pooled[1].key)
        there = Endpoint(server.peer, "", b"", tuple(pooled[0].node.addresses()))
        transport = Libp2pStreams(pooled[1].node, client.proof)

        def accept(_peer: PeerId, pipe: Pipe) -> None:
            pipe.start(Frames())
            for kind, payload in says:
                pipe.write(kind, server.proof.chain if payload is None else payload)

        async with pooled[0].node.serve_pipes(PROTOCOL, accept):
            with pytest.raises(RemoteProtocolError) as caught:
                await transport.call(there, "anything", b"", timeout_s=LONG_S)
            assert caught.value.peer == server.peer
            with pytest.raises(RemoteProtocolError) as caught:
                async with transport.stream(there, "anything", timeout_s=LONG_S) as stream:
                    while True:
                        await stream.receive()
            assert caught.value.peer == server.peer

    POOL.run(whole)


def test_one_peer_has_only_so_many_streams_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_serving, "MAX_GUESTS_PER_PEER", 3)

    async def play(stage: Stage) -> None:
        dialler = stage.dialler()

        @asynccontextmanager
        async def opened() -> AsyncIterator[Stream]:
            async with dialler.stream(stage.there, "echo", timeout_s=600.0) as stream:  # none may end by itself before the last is refused
                await stream.send(b"1")
                assert await stream.receive() == b"1"
                yield stream

        async with opened(), opened(), opened():
            with pytest.raises(RemoteRefusal) as refused:
                async with opened():
                    pass
            assert refused.value.code == "busy"
            assert await Libp2pStreams(stage.pooled[2].node, stage.member(2).proof).call(stage.there, "echo", b"me", timeout_s=LONG_S)
        async with asyncio.timeout(LONG_S):
            while True:
                with suppress(RemoteRefusal):
                    await stage.assert_still_serving()
                    break

    on_stage(play)


def test_who_opens_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_serving, "OPEN_WITHIN_S", 0.05)

    async def play(stage: Stage) -> None:
        pipe, answers = await stage.raw()
        assert await answers.refusal() == ""
        pipe.close()

    on_stage(play)


# Ends


def test_large_messages_arrive_unchanged_while_both_sides_send() -> None:
    async def play(stage: Stage) -> None:
        blocks = [os.urandom(MIB) for _ in range(12)]
        async with stage.dialler().stream(stage.there, "echo", timeout_s=LONG_S) as stream, asyncio.TaskGroup() as group:

            async def send_all() -> None:
                for block in blocks:
                    await stream.send(block[:5], memoryview(block)[5:])
                await stream.finish_sending()

            group.create_task(send_all())
            for block in blocks:
                assert await stream.receive() == block
            assert await stream.receive() is None

    on_stage(play)


def test_a_killed_process_is_seen_at_once() -> None:
    async def main() -> None:
        authority = RunAuthority()
        keys = [Ed25519PrivateKey.generate() for _ in range(2)]
        ann, bob = (authority.certify(key) for key in keys)
        async with (
            Libp2pNode.start(keys[0].private_bytes_raw(), LOOPBACK) as ann_node,
            Libp2pNode.start(keys[1].private_bytes_raw(), LOOPBACK) as bob_node,
            Libp2pStreams(bob_node, bob.proof).serve(HANDLERS),
        ):
            there = Endpoint(bob.peer, "", b"", tuple(bob_node.addresses()))
            transport = Libp2pStreams(ann_node, ann.proof)
            async with transport.stream(there, "echo", timeout_s=60) as stream:
                await stream.send(b"1")
                assert await stream.receive() == b"1"
                os.kill(bob_node.daemon_pid, signal.SIGKILL)  # as it ends when its process is killed
                async with asyncio.timeout(LONG_S / 4):
                    with pytest.raises(RemoteTimeout):
                        await stream.receive()
            async with asyncio.timeout(LONG_S / 4):
                with pytest.raises(RemoteTimeout):  # libp2p may not have noticed yet
                    await transport.call(there, "echo", b"", timeout_s=LONG_S)
                with pytest.raises(RemoteTimeout):
                    await transport.call(there, "echo", b"", timeout_s=LONG_S)
            nobody = Endpoint(bob.peer, "", b"", (f"/ip4/127.0.0.1/tcp/1/p2p/{bob.peer}",))
            with pytest.raises(RemoteGone):
                await Libp2pStreams(ann_node, ann.proof).call(nobody, "echo", b"", timeout_s=LONG_S)

    uvloop.run(main())


def test_who_cannot_be_dialled_is_reached_over_the_connection_it_made() -> None:
    async def play(stage: Stage) -> None:
        key = Ed25519PrivateKey.generate()
        hidden = stage.authority.certify(key)
        async with Libp2pNode.start(key.private_bytes_raw(), Libp2pOptions(listen=(), start_timeout_s=LONG_S)) as node:
            transport = Libp2pStreams(node, hidden.proof)
            assert node.addresses() == []
            async with transport.serve(HANDLERS):
                assert await transport.call(stage.there, "echo", b"out", timeout_s=LONG_S) == b"out"
                back = Libp2pStreams(stage.pooled[0].node, stage.member(0).proof)
                assert await back.call(Endpoint(hidden.peer, ""), "echo", b"back", timeout_s=LONG_S) == b"back"

    on_stage(play)


def test_addresses_that_lead_to_somebody_else_are_passed_over() -> None:
    async def play(stage: Stage) -> None:
        stranger = Ed25519PrivateKey.generate()
        async with Libp2pNode.start(stranger.private_bytes_raw(), LOOPBACK) as node:
            transport = Libp2pStreams(node, stage.authority.certify(stranger).proof)
            others = (*stage.pooled[2].node.addresses(), "/ip4/127.0.0.1/tcp/1", "nonsense")
            there = dataclasses.replace(stage.there, libp2p_addresses=(*others, *stage.there.libp2p_addresses))
            assert await transport.call(there, "echo", b"found", timeout_s=LONG_S) == b"found"

    on_stage(play)
