"""A deterministic event loop on virtual time: the real code of a thousand peers, an hour of it in seconds, the same on every run.

When nothing is ready to run, the clock jumps to the next timer. There are no sockets, threads or signals: executors run their function
inline. Tasks are numbered, and hash by their number, so that even sets of tasks (TaskGroup, `asyncio.wait`) iterate in the same order in
every process.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from asyncio import base_events
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")

_SHOWN_TASKS = 10
_MIN_CANCELLED = 100


class SimulationError(Exception):
    """The simulated program cannot go on: a deadlock, or past its time limit."""


class _NumberedTask(asyncio.Task[Any]):
    """A task whose hash is its birth number instead of its address."""

    _number = 0

    def __init__(self, coro: Coroutine[Any, Any, Any], *, loop: SimulatedLoop, context: contextvars.Context | None) -> None:
        self._number = loop.next_task_number()
        super().__init__(coro, loop=loop, context=context)

    def __hash__(self) -> int:
        return self._number

    @classmethod
    def create(cls, loop: asyncio.AbstractEventLoop, coro: Any, context: contextvars.Context | None = None) -> _NumberedTask:
        """What `loop.create_task` calls."""
        if not isinstance(loop, SimulatedLoop):
            raise TypeError("a numbered task belongs to a simulated loop")
        return cls(coro, loop=loop, context=context)


class _Event(asyncio.TimerHandle):
    """A call that will be made: what `asyncio.TimerHandle` offers, without the bookkeeping that only real loops need."""

    __slots__ = ("args", "call", "context", "loop", "off")

    def __init__(
        self,
        call: Callable[..., object],
        args: tuple[Any, ...],
        loop: SimulatedLoop,
        when_s: float,
        context: contextvars.Context | None,
    ) -> None:
        self.call = call
        self.args = args
        self.loop = loop
        self.context = contextvars.copy_context() if context is None else context
        self.off = False
        self._when = when_s

    def __repr__(self) -> str:
        return f"<{self.call} at {self._when} s>"

    def cancel(self) -> None:
        """Never make it."""
        if not self.off:
            self.off = True
            self.args = ()  # what it holds may be large
            self.loop.note_cancelled()

    def cancelled(self) -> bool:
        """Whether it will not be made."""
        return self.off


class SimulatedLoop(base_events.BaseEventLoop):
    """The event loop of a simulation. Use `run_simulated`.

    Calls are made in the order in which they were asked for; the clock moves only when none is left, exactly to the time of the next timer,
    and timers of one instant fire in the order in which they were set.

    Args:
        seed: of `random`, the generator that everything in the simulation may draw from.
        limit_s: virtual seconds after which the run is an error.
    """

    def __init__(self, seed: int, limit_s: float = float("inf")) -> None:
        super().__init__()
        self.random = random.Random(seed)  # the point is that it can be predicted
        self._limit_s = limit_s
        self._now_s = 0.0
        self._tasks_born = 0
        self._timers_born = 0
        self._timers_cancelled = 0
        self._soon: deque[_Event] = deque()
        self._timers: list[tuple[float, int, _Event]] = []
        self._stopping = False
        self.set_task_factory(_NumberedTask.create)

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._now_s

    def call_soon(
        self, callback: Callable[[*_Arguments], object], *args: *_Arguments, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """As in asyncio."""
        event = _Event(callback, args, self, self._now_s, context)
        self._soon.append(event)
        return event

    call_soon_threadsafe = call_soon  # there are no threads

    def call_at(
        self, when: float, callback: Callable[[*_Arguments], object], *args: *_Arguments, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """As in asyncio; a time that has passed means now."""
        event = _Event(callback, args, self, when, context)
        self._timers_born += 1
        heapq.heappush(self._timers, (when, self._timers_born, event))
        return event

    def call_later(
        self, delay: float, callback: Callable[[*_Arguments], object], *args: *_Arguments, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """As in asyncio."""
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def note_cancelled(self) -> None:
        """An event of ours was cancelled; where many were, they are thrown away before their time."""
        self._timers_cancelled += 1
        if self._timers_cancelled > _MIN_CANCELLED and 2 * self._timers_cancelled > len(self._timers):
            self._timers = [timer for timer in self._timers if not timer[2].off]
            heapq.heapify(self._timers)
            self._timers_cancelled = 0

    def _run_once(self) -> None:
        """What `run_forever` calls until it is told to stop."""
        soon = self._soon
        while not self._stopping:
            if not soon:
                self._pass_time()
            event = soon.popleft()
            if event.off:
                continue
            try:
                event.context.run(event.call, *event.args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001  # the loop is the last owner of a callback, as in asyncio
                self.call_exception_handler({"message": f"exception in {event.call}", "exception": error, "handle": event})

    def _pass_time(self) -> None:
        """Jump to the next timer (exactly, so that sums of delays come out as computed by hand)."""
        timers = self._timers
        while timers and timers[0][2].off:
            heapq.heappop(timers)
        if not timers:
            raise SimulationError(f"deadlock at {self._now_s:.6f} s: no task can run and no timer is set; {self.describe_tasks()}")
        then_s = timers[0][0]
        if then_s > self._limit_s:
            raise SimulationError(f"still running at its limit of {self._limit_s} virtual seconds; {self.describe_tasks()}")
        self._now_s = max(self._now_s, then_s)
        while timers and timers[0][0] <= self._now_s:
            self._soon.append(heapq.heappop(timers)[2])

    def next_task_number(self) -> int:
        """Birth number of the next task, from 1."""
        self._tasks_born += 1
        return self._tasks_born

    def describe_tasks(self) -> str:
        """One line about the tasks that wait, and where."""
        waiting = [task for task in asyncio.all_tasks(self) if not task.done()]
        places = []
        for task in sorted(waiting, key=hash)[:_SHOWN_TASKS]:
            frames = task.get_stack()
            place = f"{frames[-1].f_code.co_qualname}:{frames[-1].f_lineno}" if frames else "not started"
            places.append(f"{task.get_name()} in {place}")
        more = f" and {len(waiting) - _SHOWN_TASKS} more" if len(waiting) > _SHOWN_TASKS else ""
        return f"{len(waiting)} waiting: " + ", ".join(places) + more

    def run_in_executor(
        self,
        executor: Executor | None,  # the signature is asyncio's
        func: Callable[[*_Arguments], _Result],
        *args: *_Arguments,
    ) -> asyncio.Future[_Result]:
        """Run `func` here and now: threads would make the order of events depend on the machine."""
        future: asyncio.Future[_Result] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  # belongs to whoever awaits the future, as with a real executor
            future.set_exception(error)
        return future

    def _write_to_self(self) -> None:
        """Nobody sleeps in a real poller, so nobody needs waking."""


def run_simulated(main: Coroutine[Any, Any, _Result], seed: int = 0, *, limit_s: float = float("inf")) -> _Result:
    """Run `main` to its end on a fresh simulated loop, then cancel what it left behind.

    Args:
        main: the program.
        seed: of the loop's generator and, for the time of the run, of the `random` module.
        limit_s: virtual seconds it may take.

    Returns:
        What `main` returns; whatever it raises comes out.

    Raises:
        SimulationError: deadlock (the message lists who waits where), or past `limit_s`.
    """
    outer_random_state = random.getstate()
    random.seed(seed)
    loop = SimulatedLoop(seed, limit_s)
    try:
        return loop.run_until_complete(main)
    finally:
        try:
            _cancel_rest(loop)
        finally:
            loop.close()
            random.setstate(outer_random_state)


def _cancel_rest(loop: SimulatedLoop) -> None:
    rest = sorted((task for task in asyncio.all_tasks(loop) if not task.done()), key=hash)
    for task in rest:
        task.cancel()
    if rest:
        loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
