"""A few averagers on a simulated network: the real round, no sockets, virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import torch
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from peers.averaging.averager import Averaged, Averager
from peers.averaging.context import AveragingRules, MemberContext
from peers.interfaces import Endpoint
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.codecs import codec_named
from protocols.errors import RemoteProtocolError, RoundError
from protocols.ids import Epoch, PeerId, RunId
from protocols.messages import Join

RUN = RunId(bytes(range(32)))
STATE_HASH = b"s" * 32
SIGNATURE_BYTES = 64


class KeyNotary:
    """Signs with one key; opens what any key signed."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.peer = PeerId(key.public_key().public_bytes_raw())

    def seal(self, kind: str, payload: bytes) -> bytes:
        return self.peer.public_key + self._key.sign(kind.encode() + payload) + payload

    def open(self, kind: str, sealed: bytes) -> tuple[PeerId, bytes]:
        peer, signature, payload = PeerId(sealed[:32]), sealed[32 : 32 + SIGNATURE_BYTES], sealed[32 + SIGNATURE_BYTES :]
        try:
            Ed25519PublicKey.from_public_bytes(peer.public_key).verify(signature, kind.encode() + payload)
        except InvalidSignature as error:
            raise RemoteProtocolError(peer, "bad signature") from error
        return peer, payload


@dataclass
class FixedDirectory:
    """Everybody knows everybody, until they are suspected."""

    me: PeerId
    peers: Sequence[PeerId]
    suspects: set[PeerId] = field(default_factory=set)

    def live(self, epoch: Epoch) -> frozenset[PeerId]:
        return frozenset(self.peers) - {self.me} - self.suspects

    def endpoint(self, peer: PeerId) -> Endpoint | None:
        return Endpoint(peer, str(peer)) if peer in self.peers else None

    async def refresh(self) -> None:
        pass

    def suspect(self, peer: PeerId) -> None:
        self.suspects.add(peer)


@dataclass
class Member:
    """One simulated member."""

    peer: PeerId
    averager: Averager
    directory: FixedDirectory
    closed: list[Epoch]


def make_keys(count: int) -> list[Ed25519PrivateKey]:
    """Keys that are the same in every run."""
    return [Ed25519PrivateKey.from_private_bytes(bytes([number + 1]) * 32) for number in range(count)]


def rules(codec: str = "fp32", block_elems: int = 64, **changes: float) -> AveragingRules:
    """Small blocks, short deadlines."""
    base = {"join_timeout_s": 5.0, "stall_timeout_s": 3.0, "round_timeout_s": 30.0, **changes}
    return AveragingRules(RUN, block_elems, codec_named(codec), 64, base["join_timeout_s"], base["stall_timeout_s"], base["round_timeout_s"])


class SimulatedSwarm:
    """`async with SimulatedSwarm(n) as swarm:` gives n members that serve; use under `run_simulated`."""

    def __init__(self, count: int, *, link: LinkSpec | None = None, seed: int = 0, averaging: AveragingRules | None = None) -> None:
        self.network = SimulatedNetwork(seed, link or LinkSpec(latency_s=0.02, jitter_s=0.005, bandwidth_bytes_per_s=1e7))
        self.keys = make_keys(count)
        self.averaging = averaging or rules()
        self.members: list[Member] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> SimulatedSwarm:
        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        peers = [PeerId(key.public_key().public_bytes_raw()) for key in self.keys]
        for key, peer in zip(self.keys, peers, strict=True):
            transport = SimulatedTransport(self.network, peer)
            directory = FixedDirectory(peer, peers)
            context = MemberContext(peer, transport, directory, KeyNotary(key), self.averaging, tasks)
            closed: list[Epoch] = []
            averager = Averager(context, closed.append)
            await self._stack.enter_async_context(transport.serve(averager.handlers))
            self.members.append(Member(peer, averager, directory, closed))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def vector(self, number: int, size_elems: int) -> torch.Tensor:
        """The contribution of a member, the same in every run."""
        return torch.randn(size_elems, generator=torch.Generator().manual_seed(number))

    async def round(
        self,
        size_elems: int = 1000,
        *,
        epoch: int = 0,
        weights: Sequence[float] | None = None,
        bandwidths: Sequence[int] | None = None,
        who: Sequence[int] | None = None,
        after_s: Callable[[int], float] = lambda number: 0.0,
    ) -> list[Averaged | RoundError]:
        """Run one round of the members `who` (default all); each starts after its delay."""
        chosen = list(range(len(self.members))) if who is None else list(who)

        async def one(number: int) -> Averaged | RoundError:
            await asyncio.sleep(after_s(number))
            weight = weights[number] if weights else 1.0
            bandwidth = bandwidths[number] if bandwidths else 1_000_000
            join = Join(Epoch(epoch), STATE_HASH, weight, bandwidth)
            try:
                return await self.members[number].averager.run_round(join, self.vector(number, size_elems))
            except RoundError as error:
                return error

        return list(await asyncio.gather(*(one(number) for number in chosen)))
