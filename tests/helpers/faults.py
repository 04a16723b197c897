"""Members that fail in the middle of an exchange, each in its own way, at a moment that is the same in every run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

from peers.averaging.averager import Averaged
from peers.interfaces import Endpoint, Handlers, Stream, StreamHandler, Traffic, Transport
from peers.simulation import run_simulated
from protocols.butterfly import contributors_in, fold_order
from protocols.errors import RoundError
from protocols.frames import FrameKind
from protocols.ids import BlockIndex, BytesLike, PeerId
from tests.helpers.averaging_swarm import Member, SimulatedSwarm, rules

BLOCK_ELEMS = 16
ROUND_TIMEOUT_S = 6.0
CRAWL_S = 2.5
"""What a slow member takes for each frame: less than it takes to be thought dead, much more than anybody should wait."""

ARRIVED_S = 0.1
"""What was sent is there by then."""


class Fault(Enum):
    """What goes wrong with a member, once the group stands."""

    NONE = "none"
    FAIL_BEFORE = "fails before it sends anything"
    FAIL_SENDING = "fails half-way through its parts"
    SLOW_SENDING = "crawls when it sends its parts"
    FAIL_REDUCING = "fails half-way through its results"
    SLOW_REDUCING = "crawls when it gives its results"
    CANCEL = "stops averaging half-way through its parts, and stays"


SURVIVED = frozenset({Fault.NONE, Fault.SLOW_SENDING, Fault.SLOW_REDUCING})
"""Whom these befall is there at the end, with the same result as everybody."""


@dataclass
class Accident:
    """How a fault befalls one member.

    Args:
        fault: what goes wrong.
        after_frames: parts or results that get out before it happens, where it happens half-way.
        die: ends the process.
        cancel: ends its round.
        sent: kinds of the frames sent so far.
    """

    fault: Fault
    after_frames: int
    die: Callable[[], object] = lambda: None
    cancel: Callable[[], object] = lambda: None
    sent: list[int] = field(default_factory=list)

    async def before(self, message: bytes) -> None:
        """It is about to send a message of an exchange."""
        kind = message[0] if message else 0
        self.sent.append(kind)
        count = self.sent.count(kind)
        match self.fault, kind:
            case (Fault.SLOW_SENDING, FrameKind.PART) | (Fault.SLOW_REDUCING, FrameKind.RESULT):
                await asyncio.sleep(CRAWL_S)
            case (Fault.FAIL_SENDING, FrameKind.PART) | (Fault.FAIL_REDUCING, FrameKind.RESULT) if count > self.after_frames:
                await asyncio.sleep(ARRIVED_S)
                self.die()
            case (Fault.CANCEL, FrameKind.PART) if count > self.after_frames:
                self.cancel()

    def opening(self) -> None:
        """It is about to open an exchange."""
        if self.fault is Fault.FAIL_BEFORE:
            self.die()


class _WatchedStream:
    def __init__(self, inner: Stream, accident: Accident) -> None:
        self._inner = inner
        self._accident = accident

    @property
    def peer(self) -> PeerId:
        return self._inner.peer

    async def send(self, *parts: BytesLike) -> None:
        await self._accident.before(b"".join(parts))
        await self._inner.send(*parts)

    async def receive(self) -> bytes | memoryview | None:
        return await self._inner.receive()

    async def finish_sending(self) -> None:
        await self._inner.finish_sending()


class FaultyTransport:
    """A `Transport` of a member that an accident befalls.

    Args:
        inner: carries everything.
        accident: what happens.
    """

    def __init__(self, inner: Transport, accident: Accident) -> None:
        self._inner = inner
        self._accident = accident

    @property
    def traffic(self) -> Traffic:
        return self._inner.traffic

    @asynccontextmanager
    async def serve(self, handlers: Handlers) -> AsyncIterator[str]:
        streams = {name: self._watched(name, handler) for name, handler in handlers.streams.items()}
        async with self._inner.serve(Handlers(handlers.calls, streams)) as address:
            yield address

    def _watched(self, method: str, handler: StreamHandler) -> StreamHandler:
        async def watched(stream: Stream) -> None:
            await handler(_WatchedStream(stream, self._accident) if method == "exchange" else stream)

        return watched

    async def call(self, to: Endpoint, method: str, request: bytes, *, timeout_s: float) -> bytes:
        return await self._inner.call(to, method, request, timeout_s=timeout_s)

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: str, *, timeout_s: float) -> AsyncIterator[Stream]:
        if method == "exchange":
            self._accident.opening()
        async with self._inner.stream(to, method, timeout_s=timeout_s) as stream:
            yield _WatchedStream(stream, self._accident) if method == "exchange" else stream

    async def close(self) -> None:
        await self._inner.close()


@dataclass(frozen=True)
class Aftermath:
    """What a round with accidents left.

    Args:
        swarm: its members.
        survivors: number -> outcome, of everybody who neither died nor stopped.
        took_s: until the last survivor was through.
    """

    swarm: SimulatedSwarm
    survivors: dict[int, Averaged | RoundError]
    took_s: float


def average_with(faults: Mapping[int, Fault], weights: Sequence[float], bandwidths: Sequence[int], blocks: int) -> Aftermath:
    """One round, in which accidents befall some members. Whoever has no bandwidth is a client.

    Args:
        faults: member -> what goes wrong; halves are those of a member that reduces an equal share.
        weights, bandwidths: of all members.
        blocks: in the vector.
    """
    count = len(weights)
    share = blocks // sum(1 for bandwidth in bandwidths if bandwidth)
    halves = {Fault.FAIL_REDUCING: share * (count - 1) // 2}
    accidents = {number: Accident(fault, halves.get(fault, (blocks - share) // 2)) for number, fault in faults.items()}

    def wrap(number: int, transport: Transport) -> Transport:
        return FaultyTransport(transport, accidents[number]) if number in accidents else transport

    async def main() -> Aftermath:
        loop = asyncio.get_running_loop()
        clients = [number for number in range(count) if not bandwidths[number]]
        averaging = rules(block_elems=BLOCK_ELEMS, round_timeout_s=ROUND_TIMEOUT_S)
        async with SimulatedSwarm(count, averaging=averaging, clients=clients, wrap=wrap) as swarm, asyncio.TaskGroup() as tasks:
            size_elems = blocks * BLOCK_ELEMS - 1
            running = {
                number: tasks.create_task(swarm.round(size_elems, who=[number], weights=weights, bandwidths=bandwidths))
                for number in range(count)
            }

            def die(number: int) -> None:
                swarm.network.crash(swarm.members[number].peer)
                running[number].cancel()

            for number, accident in accidents.items():
                accident.die = partial(die, number)
                accident.cancel = running[number].cancel
            await asyncio.wait([task for number, task in running.items() if number not in accidents or accidents[number].fault in SURVIVED])
            took_s = loop.time()
            await asyncio.wait(running.values())
            return Aftermath(swarm, {number: task.result()[0] for number, task in running.items() if not task.cancelled()}, took_s)

    return run_simulated(main(), seed=3, limit_s=600)


def contributors_of_blocks(member: Member) -> list[tuple[int, ...]]:
    """Whose contributions the outcome of a member's last round names for each block: places in the plan, in the order of summing."""
    digest = member.rounds[-1].commit.first_plan_digest
    exchange = member.averager._rounds.exchanges.peek(digest)
    assert exchange
    masks = member.averager._rounds.results[digest].masks
    return [fold_order(exchange._plan, contributors_in(exchange._plan, masks[BlockIndex(block)]) or ()) for block in range(len(masks))]


def members_of_plan(member: Member) -> list[PeerId]:
    """The members of a member's last round, in the plan's order."""
    exchange = member.averager._rounds.exchanges.peek(member.rounds[-1].commit.first_plan_digest)
    assert exchange
    return [joined.peer for joined in exchange._plan.members]
