"""One way to write a transport test for every implementation: a scenario is a coroutine function over a `World`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import uvloop

from peers.interfaces import Endpoint, Handlers, Stream, Transport
from peers.simulation import run_simulated
from peers.transport.direct import DirectTransport
from peers.transport.grpc_mtls import GrpcTransport
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.ids import PeerId
from tests.helpers.transport_certificates import RunAuthority

LONG_S = 20.0
"""A deadline that only a hanging test meets."""

MIB = 2**20


async def pass_time(seconds: float) -> None:
    """Let virtual time pass."""
    await asyncio.sleep(seconds)


async def echo(_caller: PeerId, request: bytes) -> bytes:
    """Call handler: replies with the request."""
    return request


async def echo_stream(stream: Stream) -> None:
    """Stream handler: sends back what comes."""
    while (message := await stream.receive()) is not None:
        await stream.send(message)


async def forever() -> bytes:
    """Waits until it is cancelled."""
    await asyncio.Event().wait()
    return b""


def loop_time() -> float:
    """Seconds on the running loop's clock."""
    return asyncio.get_running_loop().time()


def peer_named(name: str) -> PeerId:
    """A made-up identity that is the same on every run."""
    return PeerId(hashlib.sha256(name.encode()).digest())


@dataclass
class Node:
    """One peer of a test."""

    peer: PeerId
    transport: Transport
    certificate_pem: bytes = b""
    libp2p_addresses: tuple[str, ...] = ()

    def endpoint(self, address: str) -> Endpoint:
        return Endpoint(self.peer, address, self.certificate_pem, self.libp2p_addresses)

    @asynccontextmanager
    async def serving(self, handlers: Handlers) -> AsyncIterator[Endpoint]:
        async with self.transport.serve(handlers) as address:
            yield self.endpoint(address)


class World(Protocol):
    """Makes peers that can reach each other."""

    def node(self) -> Node:
        """A new peer of the same run; its transport is closed with the world."""


Scenario = Callable[[World], Awaitable[None]]


class _SimulatedWorld:
    def __init__(self) -> None:
        self.network = SimulatedNetwork(1, LinkSpec(latency_s=0.01, jitter_s=0.002, bandwidth_bytes_per_s=1e8))
        self.nodes: list[Node] = []

    def node(self) -> Node:
        peer = peer_named(f"node {len(self.nodes)}")
        self.nodes.append(Node(peer, SimulatedTransport(self.network, peer)))
        return self.nodes[-1]


class _RealWorld:
    """Peers on 127.0.0.1."""

    def __init__(self, make: type[GrpcTransport] | type[DirectTransport]) -> None:
        self.make = make
        self.authority = RunAuthority()
        self.nodes: list[Node] = []

    def node(self) -> Node:
        member = self.authority.certify()
        self.nodes.append(Node(member.peer, self.make(member.credentials, "127.0.0.1:0", "127.0.0.1"), member.leaf_pem))
        return self.nodes[-1]


class WorldOfNodes(World, Protocol):
    """One that knows what it has made."""

    nodes: list[Node]


async def play_in(world: WorldOfNodes, scenario: Scenario) -> None:
    """Play a scenario, then close every transport of its world."""
    async with AsyncExitStack() as stack:

        async def close_all() -> None:
            for node in world.nodes:
                await node.transport.close()

        stack.push_async_callback(close_all)
        await scenario(world)


def play_simulated(scenario: Scenario) -> None:
    run_simulated(play_in(_SimulatedWorld(), scenario), limit_s=3600.0)


def play_grpc(scenario: Scenario) -> None:
    uvloop.run(play_in(_RealWorld(GrpcTransport), scenario))


def play_direct(scenario: Scenario) -> None:
    uvloop.run(play_in(_RealWorld(DirectTransport), scenario))


PLAYERS: dict[str, Callable[[Scenario], None]] = {"simulated": play_simulated, "grpc": play_grpc, "direct": play_direct}
