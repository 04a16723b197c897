"""Let members that have joined measure their links against ours: the other end of `peers.link_survey`.

It is a favour that costs our own link, so there is little of it: nothing while a round runs, few callers at once, and so many bytes for
each caller, and for all of them together, in a while. An identity costs nothing in an open run: it is the sum that bounds what is taken.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

from peers.interfaces import Handlers, Stream
from protocols.errors import RemoteRefusal, RemoteTimeout
from protocols.ids import PeerId
from protocols.messages_measure import MEASURE_STREAM, MeasureRequest, padding, padding_bytes

CALLER_BYTES = 6 * 2**20
"""Each way, of one caller in `WHILE_S`: a survey takes four MiB at most, and what is under way."""

ALL_BYTES = 48 * 2**20
"""Each way, of all callers in `WHILE_S`: 0.6 Mbit/s on average."""

STEP_BYTES = 2**14
"""A step counts for so much each way at least: what is remembered of callers stays small however small their steps are."""

WHILE_S = 600.0
MAX_STREAMS = 4
IDLE_S = 8.0
STREAM_S = 30.0
"""A stream lives no longer, however slow it is."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What was granted: when, to whom, and what it counts for."""

    time_s: float
    caller: PeerId
    up_bytes: int
    down_bytes: int


class LinkServer:
    """Serves measuring streams. Lives on the event loop.

    Args:
        busy: whether our link has something better to do.
    """

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._busy = busy
        self._streams = 0
        self._steps: deque[_Step] = deque()
        self._callers: defaultdict[PeerId, list[int]] = defaultdict(lambda: [0, 0])
        self._all = [0, 0]

    def handlers(self) -> Handlers:
        """What to add to the peer's transport."""
        return Handlers(streams={MEASURE_STREAM: self._measure})

    async def _measure(self, stream: Stream) -> None:
        """Answer steps in order until the other side has finished."""
        if self._streams >= MAX_STREAMS:
            raise RemoteRefusal(stream.peer, "busy", "others are measuring their links with this member; ask somebody else")
        self._streams += 1
        try:
            async with asyncio.timeout(STREAM_S):
                while (message := await self._receive(stream)) is not None:
                    await self._step(stream, MeasureRequest.decode(message, stream.peer))
        except TimeoutError as error:
            raise RemoteTimeout(stream.peer, f"took longer than {STREAM_S:g} s to measure its link") from error
        finally:
            self._streams -= 1

    async def _step(self, stream: Stream, request: MeasureRequest) -> None:
        self._admit(stream.peer, request)
        left_bytes = request.up_bytes
        while left_bytes:
            data = await self._receive(stream)
            if data is None:
                raise RemoteTimeout(stream.peer, "ended a step of measuring half-way")
            left_bytes -= padding_bytes(data, left_bytes, stream.peer)
        for chunk in padding(request.down_bytes):
            try:
                async with asyncio.timeout(IDLE_S):
                    await stream.send(chunk)
            except TimeoutError as error:
                raise RemoteTimeout(stream.peer, f"took no padding for {IDLE_S:g} s") from error

    def _admit(self, caller: PeerId, request: MeasureRequest) -> None:
        """Count a step before anything moves.

        Raises:
            RemoteRefusal: not now, or not so much.
        """
        if self._busy():
            raise RemoteRefusal(caller, "busy", "this member is in a round; ask somebody else, or later")
        now_s = asyncio.get_running_loop().time()
        while self._steps and now_s - self._steps[0].time_s > WHILE_S:
            self._count(self._steps.popleft(), -1)
        step = _Step(now_s, caller, max(request.up_bytes, STEP_BYTES), max(request.down_bytes, STEP_BYTES))
        own = self._callers.get(caller, [0, 0])
        for (up_bytes, down_bytes), most_bytes in ((own, CALLER_BYTES), (self._all, ALL_BYTES)):
            if max(up_bytes + step.up_bytes, down_bytes + step.down_bytes) > most_bytes:
                raise RemoteRefusal(caller, "enough", f"no more than {most_bytes} bytes are moved for measuring in {WHILE_S:g} s")
        self._steps.append(step)
        self._count(step, 1)

    def _count(self, step: _Step, sign: int) -> None:
        for totals in (self._callers[step.caller], self._all):
            totals[0] += sign * step.up_bytes
            totals[1] += sign * step.down_bytes
        if not any(self._callers[step.caller]):
            del self._callers[step.caller]

    @staticmethod
    async def _receive(stream: Stream) -> bytes | memoryview | None:
        try:
            async with asyncio.timeout(IDLE_S):
                return await stream.receive()
        except TimeoutError as error:
            raise RemoteTimeout(stream.peer, f"sent nothing for {IDLE_S:g} s while it measured its link") from error
