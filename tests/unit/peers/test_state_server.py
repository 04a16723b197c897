"""Serving a state: the trainer is asked only when somebody wants it, and strangers get what they ask for or a clear refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import torch

from peers.interfaces import Endpoint
from peers.simulation import run_simulated
from peers.state_server import StateServer
from peers.state_snapshot import StateSnapshot
from peers.state_transfer import fetch_state
from peers.transport.simulated import SimulatedNetwork, SimulatedTransport
from protocols.errors import RemoteRefusal
from protocols.ids import PeerId
from protocols.messages_state import (
    MANIFEST_CALL,
    MAX_PIECES_PER_REQUEST,
    PIECES_STREAM,
    ManifestRequest,
    PieceChunk,
    PiecesRequest,
)

JOINER = PeerId(b"j" * 32)


def snapshot(epoch: int = 3) -> StateSnapshot:
    """A state of twenty pieces."""
    values = torch.arange(20 * 256, dtype=torch.float32)
    return StateSnapshot.of([("param/w", values)], epoch=epoch, accepted_samples=epoch * 128, meta={}, piece_bytes=1024)


def serve_alone(scenario: Callable[[StateServer, SimulatedTransport, Endpoint, list[str]], Awaitable[None]]) -> None:
    """Run a scenario against one real `StateServer`; the list counts its questions to the trainer."""

    async def main() -> None:
        network, peer, asked = SimulatedNetwork(0), PeerId(b"s" * 32), list[str]()
        server = StateServer(lambda: asked.append("snapshot"), publish_wait_s=5.0, idle_s=30.0)
        async with SimulatedTransport(network, peer).serve(server.handlers()) as address:
            await scenario(server, SimulatedTransport(network, JOINER), Endpoint(peer, address), asked)

    run_simulated(main(), limit_s=300)


def test_the_trainer_is_asked_only_when_somebody_wants_the_state() -> None:
    async def scenario(server: StateServer, transport: SimulatedTransport, to: Endpoint, asked: list[str]) -> None:
        server.announce(snapshot().state_hash)
        assert asked == []
        asyncio.get_running_loop().call_later(2.0, server.publish, snapshot())
        fetched = await fetch_state(transport, [to], snapshot().state_hash)
        assert fetched.state_hash == snapshot().state_hash
        assert asyncio.get_running_loop().time() == 2.0
        assert asked == ["snapshot"]
        await fetch_state(transport, [to], None)
        assert asked == ["snapshot"]

    serve_alone(scenario)


def test_a_state_that_the_trainer_has_left_is_refused_at_once() -> None:
    async def scenario(server: StateServer, transport: SimulatedTransport, to: Endpoint, asked: list[str]) -> None:
        server.announce(snapshot(epoch=4).state_hash)
        started_s = asyncio.get_running_loop().time()
        with pytest.raises(RemoteRefusal) as caught:
            await transport.call(to, MANIFEST_CALL, ManifestRequest(snapshot().state_hash).encode(), timeout_s=60)
        assert caught.value.code == "unknown-state"
        assert asyncio.get_running_loop().time() - started_s < 1

    serve_alone(scenario)


def test_a_trainer_that_does_not_answer_in_time_leaves_the_last_snapshot_or_a_refusal() -> None:
    async def scenario(server: StateServer, transport: SimulatedTransport, to: Endpoint, asked: list[str]) -> None:
        with pytest.raises(RemoteRefusal, match="no state yet"):
            await transport.call(to, MANIFEST_CALL, ManifestRequest().encode(), timeout_s=60)
        server.announce(snapshot().state_hash)
        with pytest.raises(RemoteRefusal, match="no state yet"):
            await transport.call(to, MANIFEST_CALL, ManifestRequest().encode(), timeout_s=60)
        server.publish(snapshot())
        server.announce(snapshot(epoch=4).state_hash)
        reply = await transport.call(to, MANIFEST_CALL, ManifestRequest().encode(), timeout_s=60)
        assert reply == snapshot().manifest.encoded

    serve_alone(scenario)


def test_a_running_download_survives_newer_snapshots() -> None:
    async def scenario(server: StateServer, transport: SimulatedTransport, to: Endpoint, asked: list[str]) -> None:
        old = snapshot()
        server.publish(old)
        async with transport.stream(to, PIECES_STREAM, timeout_s=60) as stream:
            for epoch in (3, 4, 5, 6):
                server.publish(snapshot(epoch=epoch))
                await stream.send(PiecesRequest(old.state_hash, (epoch,)).encode())
                message = await stream.receive()
                assert message is not None
                assert bytes(PieceChunk.decode(message, None).data) == bytes(old.piece(epoch))

    serve_alone(scenario)


@pytest.mark.parametrize(
    "message",
    [
        b"\x01",
        b"\x02" + bytes(34),
        PiecesRequest(snapshot().state_hash, (20,)).encode(),
        PiecesRequest(snapshot().state_hash, (2**32 - 1,)).encode(),
        PiecesRequest(snapshot().state_hash, (1,)).encode() + b"x",
        PiecesRequest(snapshot().state_hash, (1,) * MAX_PIECES_PER_REQUEST).encode()[:-1],
    ],
)
def test_a_malformed_request_is_refused_and_the_server_goes_on(message: bytes) -> None:
    async def scenario(server: StateServer, transport: SimulatedTransport, to: Endpoint, asked: list[str]) -> None:
        server.publish(snapshot())
        with pytest.raises(RemoteRefusal):
            async with transport.stream(to, PIECES_STREAM, timeout_s=60) as stream:
                await stream.send(message)
                await stream.receive()
        assert (await fetch_state(transport, [to], snapshot().state_hash)).state_hash == snapshot().state_hash

    serve_alone(scenario)
