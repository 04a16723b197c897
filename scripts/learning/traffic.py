"""Bytes that a round of averaging moves: real averagers on a simulated network, with vectors so large that everything else is little."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import torch

from peers.averaging.averager import Averager
from peers.averaging.context import AveragingRules, MemberContext
from peers.interfaces import Endpoint
from peers.testing import FixedDirectory, KeyNotary, make_key
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.codecs import codec_named
from protocols.ids import Epoch, RunId
from protocols.messages import Join

_LINK = LinkSpec(latency_s=0.03, jitter_s=0.01, bandwidth_bytes_per_s=1e8)  # bits do not depend on it
_RUN = RunId(b"t" * 32)
_BANDWIDTH = 100_000_000


async def bytes_of_a_round(members: int, codec: str, elems: int, block_elems: int) -> tuple[float, float]:
    """What a member sends and receives in one round, on average over all of them.

    Args:
        members: of one group.
        codec: how blocks travel.
        elems: of everybody's vector; normal numbers with something in common.
        block_elems: of a block.

    Returns:
        Bytes up and down, everything that goes over the transport: joins, plans, hashes and reports too.
    """
    rules = AveragingRules(_RUN, block_elems, codec_named(codec), max(members, 2))
    network = SimulatedNetwork(0, _LINK)
    notaries = [KeyNotary(make_key(number)) for number in range(members)]
    endpoints = {notary.peer: Endpoint(notary.peer, str(notary.peer)) for notary in notaries}
    generator = torch.Generator().manual_seed(0)
    common_D = torch.randn(elems, generator=generator)
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        transports, running = [], []
        for notary in notaries:
            transport = SimulatedTransport(network, notary.peer)
            context = MemberContext(notary.peer, transport, FixedDirectory(notary.peer, endpoints), notary, rules, tasks)
            averager = Averager(context, lambda _epoch: None)
            await stack.enter_async_context(transport.serve(averager.handlers))
            own_D = common_D + torch.randn(elems, generator=generator)
            transports.append(transport)
            running.append(averager.average_epoch(Join(Epoch(0), bytes(32), 1.0, _BANDWIDTH), own_D))
        await asyncio.gather(*running)
        traffics = [transport.traffic for transport in transports]
    return sum(t.sent_bytes for t in traffics) / members, sum(t.received_bytes for t in traffics) / members
