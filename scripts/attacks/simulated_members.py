"""Real averagers on a simulated network, with real signatures, for the table of attacks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import numpy as np

from peers.averaging.auditing import Replayer
from peers.averaging.averager import Averager
from peers.averaging.context import AveragingRules, MemberContext
from peers.conduct import HONEST, Conduct
from peers.interfaces import Endpoint, Handlers, merged
from peers.testing import FixedDirectory, KeyNotary, make_key
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.ids import Epoch, PeerId
from protocols.trust.ledger import Ledger

_LINK = LinkSpec(latency_s=0.02, jitter_s=0.005, bandwidth_bytes_per_s=1e7)


@dataclass(frozen=True, slots=True)
class Member:
    """One member."""

    peer: PeerId
    averager: Averager
    directory: FixedDirectory
    ledger: Ledger


def _ignored(_epoch: Epoch) -> None:
    """Everybody is always ready."""


class SimulatedMembers:
    """`async with SimulatedMembers(...) as members:` serves until the end of the block; use under `run_simulated`.

    Args:
        count: members, with keys 0 to count - 1.
        rules: of all.
        seed: of the network.
        conducts: of those that are not honest.
        replayer: of all.
        beside: what members serve beside averaging.

    Attributes:
        members: all, while it serves.
        endpoints: where they are.
    """

    def __init__(
        self,
        count: int,
        rules: AveragingRules,
        seed: int,
        conducts: Mapping[PeerId, Conduct],
        replayer: Replayer,
        beside: Mapping[PeerId, Handlers] | None = None,
    ) -> None:
        self._keys = [make_key(number) for number in range(count)]
        self._rules = rules
        self._seed = seed
        self._network = SimulatedNetwork(seed, _LINK)
        self._conducts = conducts
        self._replayer = replayer
        self._beside = beside or {}
        self._stack = AsyncExitStack()
        self.members: dict[PeerId, Member] = {}
        self.endpoints: dict[PeerId, Endpoint] = {}

    async def __aenter__(self) -> SimulatedMembers:
        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        peers = [PeerId(key.public_key().public_bytes_raw()) for key in self._keys]
        endpoints = self.endpoints = {peer: Endpoint(peer, str(peer)) for peer in peers}
        draw = np.random.default_rng((self._seed, 3)).bytes  # the same coins in every run of a seed
        for key, peer in zip(self._keys, peers, strict=True):
            transport, directory, ledger = SimulatedTransport(self._network, peer), FixedDirectory(peer, endpoints), Ledger()
            conduct = self._conducts.get(peer, HONEST)
            context = MemberContext(
                peer, transport, directory, KeyNotary(key), self._rules, tasks, ledger=ledger, conduct=conduct, random_bytes=draw
            )
            averager = Averager(context, _ignored, replayer=self._replayer)
            await self._stack.enter_async_context(transport.serve(merged(averager.handlers, self._beside.get(peer, Handlers()))))
            self.members[peer] = Member(peer, averager, directory, ledger)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def newcomer_id(self, number: int) -> PeerId:
        """Somebody who is no member; another for each number from 0."""
        return PeerId(make_key(len(self._keys) + number).public_key().public_bytes_raw())

    def newcomer(self, number: int) -> SimulatedTransport:
        """How that one reaches members; to be closed by the caller."""
        return SimulatedTransport(self._network, self.newcomer_id(number))

    async def settle(self, peers: Sequence[PeerId], beside_s: float) -> None:
        """Wait until these members are through with everything that they look into, and have heard of it."""
        while busy := [task for peer in peers if (guarding := self.members[peer].averager.guarding) for task in guarding.auditing.busy]:
            await asyncio.wait(busy)
        await asyncio.sleep(beside_s)
        for peer in peers:
            self.members[peer].directory.suspects.clear()
