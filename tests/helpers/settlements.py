"""Members with equal results that settle; nothing was exchanged before, and some of them show nothing but life."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace

from peers.averaging.context import MemberContext
from peers.averaging.liveness import ALIVE, next_frame
from peers.averaging.result import RoundResult
from peers.averaging.settling import SETTLE, Settling
from peers.averaging.verdicts import Verdict
from peers.interfaces import Endpoint, Handlers, Stream
from peers.testing import FixedDirectory, KeyNotary, make_key
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.codecs import codec_named
from protocols.frames import HEARTBEAT
from protocols.ids import PeerId
from protocols.layout import Blocks
from protocols.proto.swarm.v1 import control_pb2 as pb
from tests.helpers.averaging_swarm import rules
from tests.helpers.round_values import plan_of

STALL_S = 3.0
PATIENCE_S, LONGEST_S = 30.0, 1000.0
HASHES = tuple(bytes([number]) * 32 for number in range(6))


class Settlement:
    """Members with equal results that settle; nothing was exchanged.

    Args:
        ready_s: of each honest member: when its exchange is over.
        count: members; those that are not honest keep streams alive and say nothing.
    """

    def __init__(self, ready_s: Mapping[int, float], count: int) -> None:
        self.ready_s = ready_s
        self.plan = replace(plan_of([1.0] * count), counted=count)
        self.blamed: dict[PeerId, str] = {}
        self.settlings: dict[int, Settling] = {}
        self.ended_s: dict[int, float] = {}

    async def run(self) -> dict[int, Verdict]:
        network = SimulatedNetwork(0, LinkSpec(latency_s=0.02))
        peers = [member.peer for member in self.plan.members]
        endpoints = {one: Endpoint(one, str(one)) for one in peers}
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            contexts = []
            for one in peers:
                transport = SimulatedTransport(network, one)
                directory, notary = FixedDirectory(one, endpoints), KeyNotary(make_key(0))
                contexts.append(MemberContext(one, transport, directory, notary, rules(round_timeout_s=3600), tasks))
            for number, context in enumerate(contexts):
                if number in self.ready_s:
                    self.settlings[number] = Settling(context, self.plan, self.plan.digest, self.blamed.__setitem__)
                await stack.enter_async_context(context.transport.serve(self.handlers(number)))
            holding = [tasks.create_task(self.hold(contexts[n], peers[0])) for n in range(1, len(peers)) if n not in self.ready_s]
            running = {number: tasks.create_task(self.one(number, contexts[number])) for number in self.ready_s}
            await asyncio.wait(running.values())
            for task in holding:
                task.cancel()
            return {number: task.result() for number, task in running.items()}

    async def one(self, number: int, context: MemberContext) -> Verdict:
        settling, loop = self.settlings[number], asyncio.get_running_loop()
        result = RoundResult(Blocks(self.plan.size_elems, self.plan.block_elems), codec_named("fp32"), context.memory)
        result.hashes[:] = HASHES
        result.masks.update(dict.fromkeys(range(len(HASHES)), 1))  # type: ignore[arg-type]
        loop.call_later(self.ready_s[number], settling.report, result, set(), PATIENCE_S, LONGEST_S)
        verdict = await settling.run()
        self.ended_s[number] = loop.time()
        return verdict

    def handlers(self, number: int) -> Handlers:
        async def alive(_sender: PeerId, _request: bytes) -> bytes:
            return b""

        async def settle(stream: Stream) -> None:
            await next_frame(stream, STALL_S)
            if number in self.settlings:
                await self.settlings[number].serve(stream)
            else:
                await beat(stream)

        return Handlers(calls={ALIVE: alive}, streams={SETTLE: settle})

    async def hold(self, context: MemberContext, leader: PeerId) -> None:
        endpoint = context.directory.endpoint(leader)
        assert endpoint is not None
        async with context.transport.stream(endpoint, SETTLE, timeout_s=1e6) as stream:
            await stream.send(pb.ExchangeHeader(plan_digest=self.plan.digest).SerializeToString())
            await beat(stream)


async def beat(stream: Stream) -> None:
    while True:
        await stream.send(HEARTBEAT)
        await asyncio.sleep(STALL_S / 4)
