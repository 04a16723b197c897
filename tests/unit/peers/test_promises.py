"""What a member has promised counts for one group only: its join for the leader it waits for, its report while it waits for the verdict."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest

from peers.averaging.context import MemberContext
from peers.averaging.gathering import Gathering, GatheringHooks, Group
from peers.averaging.result import RoundResult
from peers.averaging.settling import Settling
from peers.interfaces import Stream
from peers.simulation import run_simulated
from peers.testing import FixedDirectory, KeyNotary, make_key
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.codecs import codec_named
from protocols.errors import RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.frames import HEARTBEAT
from protocols.ids import Epoch, PeerId, RoundId
from protocols.layout import Blocks
from protocols.messages import Commit, Join, Report, SealedJoin
from protocols.rendezvous import RendezvousRules
from protocols.settlement import GiveUp
from tests.helpers.averaging_swarm import RUN, STATE_HASH, rules
from tests.helpers.round_values import peer, plan_of

HASHES = tuple(bytes([number]) * 32 for number in range(6))
PLAN = plan_of([1.0, 1.0, 1.0])


def context_of(tasks: asyncio.TaskGroup, number: int = 0) -> MemberContext:
    """A member that can dial nobody."""
    notary = KeyNotary(make_key(number))
    transport = SimulatedTransport(SimulatedNetwork(0, LinkSpec()), notary.peer)
    return MemberContext(notary.peer, transport, FixedDirectory(notary.peer, {}), notary, rules(), tasks)


def blame(who: PeerId, reason: str) -> None:
    raise AssertionError((who, reason))


@dataclass
class ReportingStream:
    """A member's side of a settlement: its report, then heartbeats until it breaks off."""

    peer: PeerId
    breaks_off_s: float
    verdicts: list[bytes] = field(default_factory=list)
    reported: bool = False

    async def receive(self) -> bytes:
        if self.reported:
            await asyncio.Event().wait()
        self.reported = True
        return Report(PLAN.digest, HASHES).encode()

    async def send(self, message: bytes) -> None:
        if message != HEARTBEAT:
            self.verdicts.append(message)
        elif asyncio.get_running_loop().time() > self.breaks_off_s:
            raise RemoteTimeout(self.peer, "broken off")


@pytest.mark.parametrize(("breaks_off_s", "verdict"), [(1.0, GiveUp), (99.0, Commit)])
def test_a_report_counts_only_while_its_member_waits_for_the_verdict(breaks_off_s: float, verdict: type[GiveUp | Commit]) -> None:
    """It may average with others by the time the leader decides. The third member never comes."""

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            context = context_of(tasks)
            context = MemberContext(peer(0), context.transport, context.directory, context.notary, context.rules, tasks)
            settling = Settling(context, PLAN, PLAN.digest, blame)
            stream: Stream = ReportingStream(peer(1), breaks_off_s)  # type: ignore[assignment]

            async def serve() -> None:
                with suppress(RemoteTimeout, RemoteRefusal):
                    await settling.serve(stream)

            tasks.create_task(serve())
            result = RoundResult(Blocks(PLAN.size_elems, PLAN.block_elems), codec_named("fp32"), context.memory)
            result.hashes[:] = HASHES
            result.masks.update(dict.fromkeys(range(len(HASHES)), 0b111))  # type: ignore[arg-type]
            settling.report(result, set(), patience_s=60.0, longest_s=60.0)
            assert isinstance(await settling.run(), verdict)

    run_simulated(main(), seed=1)


class Broken:
    """A member's stream that carries nothing until it breaks."""

    def __init__(self, who: PeerId) -> None:
        self.peer = who
        self.breaks = asyncio.Event()

    async def receive(self) -> bytes:
        await self.breaks.wait()
        raise RemoteTimeout(self.peer, "broken")

    async def send(self, *_parts: bytes) -> None:
        """Nobody reads it."""


def test_a_second_stream_is_a_breach_only_while_the_first_is_open() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            settling = Settling(replace(context_of(tasks), me=peer(0)), PLAN, PLAN.digest, blame)
            first = Broken(peer(1))
            serving = asyncio.ensure_future(settling.serve(first))  # type: ignore[arg-type]
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await asyncio.shield(serving)
            with pytest.raises(RemoteProtocolError, match="second stream"):
                await settling.serve(Broken(peer(1)))  # type: ignore[arg-type]
            first.breaks.set()
            with pytest.raises(RemoteTimeout):
                await serving
            with pytest.raises(RemoteRefusal) as caught:
                await settling.serve(Broken(peer(1)))  # type: ignore[arg-type]
            assert caught.value.code == "broken-off"
            assert not isinstance(caught.value, RemoteProtocolError)

    run_simulated(main())


def joins_and_context(tasks: asyncio.TaskGroup) -> tuple[MemberContext, list[SealedJoin]]:
    members = [context_of(tasks, number) for number in range(3)]
    join = Join(Epoch(0), STATE_HASH, 1.0, 1000)
    sealed = [SealedJoin(member.me, join, member.notary.seal("join", join.encode())) for member in members]
    context = members[0]
    everybody = frozenset(member.me for member in members)
    directory = FixedDirectory(context.me, {}, suspects=set())
    directory.live = lambda epoch: everybody - {context.me}  # type: ignore[method-assign]
    return MemberContext(context.me, context.transport, directory, context.notary, context.rules, tasks), sealed


def test_a_member_that_comes_back_to_a_leader_whose_plan_holds_it_gets_that_plan() -> None:
    """It had left, and the leader heard of that when the plan was made."""

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            context, (own, second, third) = joins_and_context(tasks)
            hooks = GatheringHooks(lambda: None, lambda: False, blame)
            gathering = Gathering(context, RoundId(RUN, Epoch(0)), RendezvousRules(5.0, 5.0, 3.0, 64), hooks, number=7)
            with gathering.waiting(second), gathering.waiting(third) as waiting:
                plan = await gathering.form(own.join, 100, Group(frozenset({context.me, second.peer, third.peer})))
                assert await waiting == plan
            assert (plan.counted, plan.number) == (3, 7)
            with gathering.waiting(second) as again:
                assert await again == plan
            stranger = SealedJoin(second.peer, second.join, b"another join")
            with pytest.raises(RemoteRefusal, match="without you"), gathering.waiting(stranger):
                pass

    run_simulated(main(), seed=1)


def test_whoever_stops_waiting_for_the_group_leaves_no_trace_of_that() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            context, (own, second, third) = joins_and_context(tasks)
            hooks = GatheringHooks(lambda: None, lambda: False, blame)
            gathering = Gathering(context, RoundId(RUN, Epoch(0)), RendezvousRules(5.0, 5.0, 3.0, 64), hooks, number=0)
            everybody = Group(frozenset({context.me, second.peer, third.peer}))
            with gathering.waiting(second) as waiting:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await gathering.form(own.join, 100, everybody)
                assert not waiting.done()
                gathering.close()
                with pytest.raises(RemoteRefusal, match="without you"):
                    await waiting

    run_simulated(main(), seed=1)
