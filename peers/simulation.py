"""A deterministic event loop on virtual time: the real code of a thousand peers, an hour of it in seconds, the same on every run.

When nothing is ready to run, the clock jumps to the next timer. There are no sockets, threads or signals: executors run their function
inline. Tasks are numbered, and hash by their number, so that even sets of tasks (TaskGroup, `asyncio.wait`) iterate in the same order in
every process.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from asyncio import base_events
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")

_RESOLUTION_S = 1e-9
_SHOWN_TASKS = 10


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


class _VirtualSelector:
    """Stands where the loop expects its poller: passes the time that a real one would wait."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[object]:
        """Nothing ever arrives from outside; `timeout` None means that nothing inside will happen either."""
        if timeout is None:
            raise SimulationError(
                f"deadlock at {self._loop.time():.6f} s: no task can run and no timer is set; {self._loop.describe_tasks()}"
            )
        if timeout > 0:
            self._loop.pass_time(timeout)
        return []

    def close(self) -> None:
        """Nothing to close."""


class SimulatedLoop(base_events.BaseEventLoop):
    """The event loop of a simulation. Use `run_simulated`.

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
        self._selector = _VirtualSelector(self)
        self._clock_resolution = _RESOLUTION_S  # timers due within it count as due: must exceed a float's rounding
        self._scheduled: list[asyncio.TimerHandle]
        self.set_task_factory(_NumberedTask.create)

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._now_s

    def pass_time(self, at_most_s: float) -> None:
        """Jump to the next timer (exactly, so that sums of delays come out as computed by hand)."""
        then_s = min(self._scheduled[0].when(), self._now_s + at_most_s + _RESOLUTION_S) if self._scheduled else self._now_s + at_most_s
        if then_s > self._limit_s:
            raise SimulationError(f"still running at its limit of {self._limit_s} virtual seconds; {self.describe_tasks()}")
        self._now_s = max(self._now_s, then_s)

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

    def _process_events(self, event_list: list[object]) -> None:
        """No events from outside."""

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
