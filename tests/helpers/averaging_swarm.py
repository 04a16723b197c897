"""Several averagers on one simulated network, with real signatures and a directory in which everybody knows everybody."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import torch

from peers.averaging.auditing import Replayer
from peers.averaging.averager import Averaged, Averager, RoundDone
from peers.averaging.context import AveragingRules, MemberContext
from peers.averaging.guarding import cannot_replay
from peers.averaging.trust_rules import TrustRules
from peers.bandwidth import Bandwidth
from peers.conduct import HONEST, Conduct
from peers.interfaces import Endpoint, Transport
from peers.testing import FixedDirectory, KeyNotary, make_key
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.codecs import codec_named
from protocols.errors import RoundError
from protocols.ids import Epoch, PeerId, RunId
from protocols.messages import Join
from protocols.trust.ledger import Ledger
from tests.helpers.swarm_tampering import Tamper, TamperedTransport

RUN = RunId(bytes(range(32)))
STATE_HASH = b"s" * 32


@dataclass
class Member:
    """One simulated member."""

    peer: PeerId
    averager: Averager
    directory: FixedDirectory
    transport: Transport
    notary: KeyNotary
    closed: list[Epoch]
    rounds: list[RoundDone]
    ledger: Ledger


def rules(
    codec: str = "fp32", block_elems: int = 64, max_group: int = 64, trust: TrustRules | None = None, **changes: float
) -> AveragingRules:
    """Small blocks, short deadlines."""
    times = {"join_timeout_s": 5.0, "stall_timeout_s": 3.0, "round_timeout_s": 30.0, **changes}
    return AveragingRules(RUN, block_elems, codec_named(codec), max_group, **times, trust=trust)


def same_bytes(outcomes: Sequence[Averaged]) -> bool:
    """Whether every outcome holds the same vector, bit for bit."""
    return len({outcome.vector_D.numpy().tobytes() for outcome in outcomes}) == 1


def averaged(outcomes: Sequence[Averaged | RoundError]) -> list[Averaged]:
    """Those that ended well."""
    return [outcome for outcome in outcomes if isinstance(outcome, Averaged)]


def contribution(number: int, size_elems: int) -> torch.Tensor:
    """What a member brings, the same in every run."""
    return torch.randn(size_elems, generator=torch.Generator().manual_seed(number))


class SimulatedSwarm:
    """`async with SimulatedSwarm(n) as swarm:` gives n members that serve; use under `run_simulated`.

    Args:
        count: members, numbered from 0.
        link, seed: of the network.
        averaging: rules of all.
        tampers: what is done to the messages of some members on their way out.
        clients: members that nobody can dial.
        wrap: what is put around a member's transport.
        conducts: of members that are not honest.
        replayer: computes contributions again, for all.
    """

    def __init__(
        self,
        count: int,
        *,
        link: LinkSpec | None = None,
        seed: int = 0,
        averaging: AveragingRules | None = None,
        tampers: Mapping[int, Tamper] | None = None,
        clients: Sequence[int] = (),
        wrap: Callable[[int, Transport], Transport] = lambda _number, transport: transport,
        conducts: Mapping[int, Conduct] | None = None,
        replayer: Replayer = cannot_replay,
    ) -> None:
        self.network = SimulatedNetwork(seed, link or LinkSpec(latency_s=0.02, jitter_s=0.005, bandwidth_bytes_per_s=1e7))
        self.keys = [make_key(number) for number in range(count)]
        self.averaging = averaging or rules()
        self.members: list[Member] = []
        self._tampers = tampers or {}
        self._clients = clients
        self._seed = seed
        self._wrap = wrap
        self._conducts = conducts or {}
        self._replayer = replayer
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> SimulatedSwarm:
        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        peers = [PeerId(key.public_key().public_bytes_raw()) for key in self.keys]
        endpoints = {peer: Endpoint(peer, str(peer)) for peer in peers}
        draw = random.Random(self._seed).randbytes
        undialable = frozenset(peers[number] for number in self._clients)
        for number, (key, peer) in enumerate(zip(self.keys, peers, strict=True)):
            transport = self._wrap(number, SimulatedTransport(self.network, peer))
            if number in self._tampers:
                transport = TamperedTransport(transport, self._tampers[number])
            directory, notary = FixedDirectory(peer, endpoints, undialable), KeyNotary(key)
            dialable, bandwidth = peer not in undialable, self.bandwidth_of(number)
            settings: dict[str, Any] = {"dialable": dialable, "bandwidth": bandwidth, "ledger": Ledger(), "random_bytes": draw}
            conduct = self._conducts.get(number, HONEST)
            context = MemberContext(peer, transport, directory, notary, self.averaging, tasks, conduct=conduct, **settings)
            closed: list[Epoch] = []
            rounds: list[RoundDone] = []
            averager = Averager(context, closed.append, rounds.append, self._replayer)
            await self._stack.enter_async_context(transport.serve(averager.handlers))
            self.members.append(Member(peer, averager, directory, transport, notary, closed, rounds, settings["ledger"]))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def bandwidth_of(self, number: int) -> Bandwidth | None:
        """What a member measures with; nothing here, so that bandwidths are as said."""
        return None

    def vector(self, number: int, size_elems: int) -> torch.Tensor:
        """The contribution of a member."""
        return contribution(number, size_elems)

    async def round(
        self,
        size_elems: int = 1000,
        *,
        epoch: int = 0,
        weights: Sequence[float] | None = None,
        bandwidths: Sequence[int] | None = None,
        states: Mapping[int, bytes] | None = None,
        who: Sequence[int] | None = None,
        after_s: Callable[[int], float] = lambda number: 0.0,
    ) -> list[Averaged | RoundError]:
        """Run one round of the members `who` (default all); each starts after its delay. `states` names those with another state."""
        chosen = list(range(len(self.members))) if who is None else list(who)

        async def one(number: int) -> Averaged | RoundError:
            await asyncio.sleep(after_s(number))
            weight = weights[number] if weights else 1.0
            bandwidth = bandwidths[number] if bandwidths else 1_000_000
            join = Join(Epoch(epoch), (states or {}).get(number, STATE_HASH), weight, bandwidth)
            try:
                return await self.members[number].averager.average_epoch(join, self.vector(number, size_elems))
            except RoundError as error:
                return error

        return list(await asyncio.gather(*(one(number) for number in chosen)))
