"""Tasks that live as long as a block of code and not longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


class OwnedTasks:
    """Starts tasks in a TaskGroup and can cancel them all. Made by `owned_tasks`."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._running: dict[asyncio.Task[None], None] = {}  # a dict keeps the order of birth, so that cancelling is deterministic

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start `work`, which must not raise anything but CancelledError."""
        task = self._group.create_task(work)
        self._running[task] = None
        task.add_done_callback(lambda done: self._running.pop(done, None))
        return task

    def cancel(self) -> None:
        """Cancel everything that runs."""
        for task in list(self._running):
            task.cancel()


@asynccontextmanager
async def owned_tasks() -> AsyncIterator[OwnedTasks]:
    """A TaskGroup that cancels its tasks when the block ends, waits for them, and lets the block's own exception out unwrapped.

    Cancellation: the tasks are cancelled and awaited first.
    """
    failure: BaseException | None = None
    async with asyncio.TaskGroup() as group:
        tasks = OwnedTasks(group)
        try:
            yield tasks
        except BaseException as error:  # noqa: BLE001  # raised again below; inside the group it would come out as an ExceptionGroup
            failure = error
        tasks.cancel()
    if failure is not None:
        raise failure
