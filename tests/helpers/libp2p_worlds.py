"""Worlds of `tests.helpers.transport_worlds` over real libp2p daemons."""

from __future__ import annotations

from collections.abc import Callable

from peers.interfaces import Endpoint
from peers.transport.fallback import FallbackTransport
from peers.transport.grpc_mtls import GrpcTransport
from peers.transport.libp2p_streams import Libp2pStreams
from tests.helpers.libp2p_pool import POOL, PooledNode
from tests.helpers.transport_certificates import RunAuthority
from tests.helpers.transport_worlds import Node, Scenario, play_in


class _Libp2pWorld:
    def __init__(self, pooled: list[PooledNode]) -> None:
        self.authority = RunAuthority()
        self.pooled = pooled
        self.nodes: list[Node] = []

    def node(self) -> Node:
        pooled = self.pooled[len(self.nodes)]
        member = self.authority.certify(pooled.key)
        transport = Libp2pStreams(pooled.node, member.proof)
        self.nodes.append(Node(member.peer, transport, libp2p_addresses=tuple(pooled.node.addresses())))
        return self.nodes[-1]


class _FallbackWorld:
    """Nobody listens at the address that a peer announces, so that everything goes over libp2p."""

    def __init__(self, pooled: list[PooledNode]) -> None:
        self.authority = RunAuthority()
        self.pooled = pooled
        self.nodes: list[Node] = []

    def node(self) -> Node:
        pooled = self.pooled[len(self.nodes)]
        member = self.authority.certify(pooled.key)
        direct = GrpcTransport(member.credentials, "127.0.0.1:0", "127.0.0.1")
        transport = FallbackTransport(direct, Libp2pStreams(pooled.node, member.proof))
        self.nodes.append(_Misplaced(member.peer, transport, member.leaf_pem, tuple(pooled.node.addresses())))
        return self.nodes[-1]


class _Misplaced(Node):
    def endpoint(self, address: str) -> Endpoint:
        return super().endpoint("127.0.0.1:1")


def play_libp2p(scenario: Scenario) -> None:
    POOL.run(lambda pooled: play_in(_Libp2pWorld(pooled), scenario))


def play_fallback(scenario: Scenario) -> None:
    POOL.run(lambda pooled: play_in(_FallbackWorld(pooled), scenario))


LIBP2P_PLAYERS: dict[str, Callable[[Scenario], None]] = {"libp2p": play_libp2p, "fallback": play_fallback}
