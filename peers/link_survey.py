"""Measure our own link when we have joined, with a few members that let us: round trips, then down, then up.

What moves anyway is measured first of all: a joiner that fetches the state knows how fast bytes come in, and need not ask for more.
The rest is asked of members that are dialled anyway, several at once, because rounds talk to all at once too, and one member's link may
be slower than ours. It is over after some seconds and some MiB, or as soon as a round begins. What could not be measured so is taken from
rounds.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

from peers.bandwidth import BandwidthMeter, Sampler
from peers.interfaces import Endpoint, Handlers, Stream, Transport
from peers.link_server import LinkServer
from protocols.errors import RemoteError, RemoteProtocolError, RemoteTimeout, SwarmError
from protocols.link_figures import LinkFigures, steady_rate
from protocols.messages_measure import MEASURE_STREAM, MeasureRequest, padding, padding_bytes

log = logging.getLogger(__name__)

MEMBERS = 3
"""Asked at the same time; of up to twice as many, as some are busy."""

PINGS = 5
STEP_BYTES = 2**16
MOST_BYTES = 4 * 2**20
"""With each member and each way; `MEMBERS` times as much in all, however often it is tried."""

PHASE_S = 2.5
"""How long new steps are begun, each way."""

AHEAD_S = 0.5
MOST_IN_FLIGHT = 16
STREAM_S = 15.0
ANSWER_S = 5.0
LOOK_EVERY_S = 0.25
SAMPLE_EVERY_S = 0.05
WITHIN_S = 25.0
"""From the moment at which we hold a state: later nobody waits for the figures."""

_PING = MeasureRequest(0, 1)
_DOWN = MeasureRequest(0, STEP_BYTES)
_UP = MeasureRequest(STEP_BYTES, 1)


@dataclass
class _Phase:
    """What has arrived in one direction, over all members together."""

    times_s: list[float] = field(default_factory=list)
    totals_bytes: list[int] = field(default_factory=list)

    def arrived(self, now_s: float, size_bytes: int) -> None:
        self.times_s.append(now_s)
        self.totals_bytes.append((self.totals_bytes[-1] if self.totals_bytes else 0) + size_bytes)

    @property
    def rate(self) -> float | None:
        return steady_rate(self.times_s, self.totals_bytes)

    @property
    def moved_bytes(self) -> int:
        return self.totals_bytes[-1] if self.totals_bytes else 0


class LinkSurvey:
    """Serves others that measure their links, and measures ours once. Lives on the event loop.

    Args:
        transport: how to reach members.
        meter: of rounds; gets our figures as its first guess.
        candidates: members that can be dialled, now; of more than are needed some are drawn, so that everybody is asked as often.
    """

    def __init__(self, transport: Transport, meter: BandwidthMeter, candidates: Callable[[], Sequence[Endpoint]]) -> None:
        self._transport = transport
        self._meter = meter
        self._candidates = candidates
        self.holding = asyncio.Event()
        """Set once we hold a state: from then on our link may be measured."""
        self._rounds = 0
        self._fetching = 0
        self._server = LinkServer(self._busy)
        self._down_bytes_per_s: float | None = None

    def handlers(self) -> Handlers:
        """What to add to the peer's transport."""
        return self._server.handlers()

    @contextmanager
    def in_round(self) -> Iterator[None]:
        """Nothing is measured meanwhile, for us or for others."""
        self._rounds += 1
        try:
            yield
        finally:
            self._rounds -= 1

    @asynccontextmanager
    async def downloading(self) -> AsyncIterator[None]:
        """A state comes in: see how fast."""
        loop = asyncio.get_running_loop()
        sampler = Sampler(loop.time(), self._transport.traffic)

        async def watch() -> None:
            while True:
                await asyncio.sleep(SAMPLE_EVERY_S)
                sampler.sample(loop.time(), self._transport.traffic)

        failure: SwarmError | None = None
        self._fetching += 1
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(watch())
                try:
                    yield
                except SwarmError as error:  # raised below: the group would wrap it
                    failure = error
                watching.cancel()
        finally:
            self._fetching -= 1
        if failure is not None:
            raise failure
        self._down_bytes_per_s = sampler.received_rate(loop.time(), self._transport.traffic) or self._down_bytes_per_s

    async def survey(self, on_link: Callable[[LinkFigures], None]) -> None:
        """As `run`, and tell; whatever goes wrong, the member goes on without the figures."""
        try:
            found = await self.run()
        except Exception:  # the task's owner
            log.exception("measuring our link failed, which is a bug of ours; the member goes on")
            found = LinkFigures(note="The link could not be measured, by a bug of this program.")
        on_link(found)

    async def run(self) -> LinkFigures:
        """Measure once, as soon as we hold a state.

        Returns:
            What is known of our link, at the latest `WITHIN_S` after that. Members that fail are left out.
        """
        await self.holding.wait()
        loop = asyncio.get_running_loop()
        end_s = loop.time() + WITHIN_S
        found = LinkFigures()
        while found.slower_bytes_per_s is None and loop.time() < end_s:
            if not self._busy() and self._candidates():
                try:
                    async with asyncio.timeout_at(end_s):
                        found = self._with(found, await self._attempt(found))
                except TimeoutError:
                    log.info("link not measured in time: seconds=%g", WITHIN_S)
            await asyncio.sleep(LOOK_EVERY_S)
        slower = found.slower_bytes_per_s
        if slower is not None:
            self._meter.guess(slower)
            return found
        return self._from_rounds(found)

    def _busy(self) -> bool:
        return self._rounds > 0 or self._fetching > 0

    def _with(self, known: LinkFigures, found: LinkFigures) -> LinkFigures:
        trips_s = [rtt_s for rtt_s in (known.rtt_s, found.rtt_s) if rtt_s is not None]
        down = known.down_bytes_per_s or self._down_bytes_per_s or found.down_bytes_per_s
        return LinkFigures(
            known.up_bytes_per_s or found.up_bytes_per_s,
            down,
            min(trips_s, default=None),
            max(known.members, found.members),
            known.moved_bytes + found.moved_bytes,
            "Down is measured on the state that came in." if self._down_bytes_per_s else "",
        )

    def _from_rounds(self, found: LinkFigures) -> LinkFigures:
        in_rounds = self._meter.measured_bytes_per_s
        if in_rounds is None:
            reason = "no member could be asked" if not found.members else "members were busy, or what they let through was too little"
            return replace(found, note=f"The link could not be measured: {reason}.")
        up, down = found.up_bytes_per_s or in_rounds, found.down_bytes_per_s or in_rounds
        return replace(found, up_bytes_per_s=up, down_bytes_per_s=down, note="Measured in rounds, which the slower direction decides.")

    async def _attempt(self, known: LinkFigures) -> LinkFigures:
        """With some members at once, what is not known yet."""
        down, up, rtts_s = _Phase(), _Phase(), []
        most_steps = (MOST_BYTES - known.moved_bytes // (2 * MEMBERS)) // STEP_BYTES
        async with AsyncExitStack() as stack:
            streams: list[Stream] = []
            candidates = self._candidates()
            for member in random.sample(candidates, min(2 * MEMBERS, len(candidates))):
                if len(streams) == MEMBERS or self._busy():
                    break
                try:
                    opening = self._transport.stream(member, MEASURE_STREAM, timeout_s=STREAM_S)
                    stream = await stack.enter_async_context(opening)
                    rtts_s.append(await self._round_trip(stream))
                except RemoteError as error:
                    _left_out(error)
                    continue
                streams.append(stream)
            for step, phase, wanted in (
                (_DOWN, down, known.down_bytes_per_s is None and self._down_bytes_per_s is None),
                (_UP, up, known.up_bytes_per_s is None),
            ):
                if wanted:
                    await self._phase(streams, step, phase, most_steps)
        moved_bytes = down.moved_bytes + up.moved_bytes
        return LinkFigures(up.rate, down.rate, min(rtts_s, default=None), len(rtts_s), moved_bytes)

    async def _round_trip(self, stream: Stream) -> float:
        """Mean of all pings but the first, which a new stream may hold up. The loop's clock goes by milliseconds."""
        loop = asyncio.get_running_loop()
        times_s = []
        for _ in range(PINGS):
            await _ask(stream, _PING)
            await _answer(stream, _PING, lambda size_bytes: None)
            times_s.append(loop.time())
        return (times_s[-1] - times_s[0]) / (PINGS - 1)

    async def _phase(self, streams: list[Stream], step: MeasureRequest, phase: _Phase, most_steps: int) -> None:
        """One direction, with all members at once; whoever fails is left out from now on."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + PHASE_S
        phase.arrived(loop.time(), 0)

        async def work(stream: Stream) -> None:
            try:
                await self._steps(stream, step, phase, most_steps, until_s)
            except RemoteError as error:
                _left_out(error)
                streams.remove(stream)

        async with asyncio.TaskGroup() as tasks:
            for stream in streams:
                tasks.create_task(work(stream))

    async def _steps(self, stream: Stream, step: MeasureRequest, phase: _Phase, most_steps: int, until_s: float) -> None:
        """Steps, so many under way at once that round trips are not waited for, but hardly more than come in `AHEAD_S`: it has to end."""
        loop = asyncio.get_running_loop()
        up, began_s = step.up_bytes > 0, loop.time()
        asked, owed, at_once = 0, deque[MeasureRequest](), 2
        while True:
            while len(owed) < at_once and asked < most_steps and loop.time() < until_s and not self._busy():
                await _ask(stream, step)
                owed.append(step)
                asked += 1
            if not owed:
                return
            await _answer(stream, owed.popleft(), lambda size_bytes: None if up else phase.arrived(loop.time(), size_bytes))
            if up:
                phase.arrived(loop.time(), step.up_bytes)
            answered_per_s = (asked - len(owed)) / max(loop.time() - began_s, SAMPLE_EVERY_S)
            at_once = min(max(2, int(answered_per_s * AHEAD_S)), MOST_IN_FLIGHT)


async def _ask(stream: Stream, step: MeasureRequest) -> None:
    try:
        async with asyncio.timeout(ANSWER_S):
            await stream.send(step.encode())
            for chunk in padding(step.up_bytes):
                await stream.send(chunk)
    except TimeoutError as error:
        raise RemoteTimeout(stream.peer, f"took no bytes for {ANSWER_S:g} s while the link was measured") from error


async def _answer(stream: Stream, step: MeasureRequest, arrived: Callable[[int], None]) -> None:
    left_bytes = step.down_bytes
    while left_bytes:
        try:
            async with asyncio.timeout(ANSWER_S):
                data = await stream.receive()
        except TimeoutError as error:
            raise RemoteTimeout(stream.peer, f"gave no answer for {ANSWER_S:g} s while the link was measured") from error
        if data is None:
            raise RemoteTimeout(stream.peer, "ended the stream while the link was measured")
        size_bytes = padding_bytes(data, left_bytes, stream.peer)
        arrived(size_bytes)
        left_bytes -= size_bytes


def _left_out(error: RemoteError) -> None:
    """A member that does not help to measure: its fault only if it broke the protocol."""
    level = logging.WARNING if isinstance(error, RemoteProtocolError) else logging.INFO
    log.log(level, "member does not help to measure our link: peer=%s reason=%s", error.peer.short if error.peer else "?", error.reason)
