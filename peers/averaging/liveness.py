"""Showing on a stream that we are alive, and noticing when the other side is not."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar

from peers.averaging.context import MemberContext
from peers.interfaces import Stream
from protocols.errors import RemoteError, RemoteGone, RemoteRefusal, RemoteTimeout
from protocols.frames import HEARTBEAT
from protocols.ids import PeerId

T = TypeVar("T")

_ASK_AGAIN = 1 / 16
"""Of a heartbeat: how soon a process that is just ending is asked again."""

ALIVE = "alive"
"""Name of the call that asks nothing but whether anybody is there."""


async def has_ended(context: MemberContext, peer: PeerId) -> bool:
    """Whether the process of a member has surely ended: its machine answers that nobody listens there.

    Somebody who ought to have opened a stream to us, and has not, may have ended before it could; without asking that looks like silence,
    which takes `stall_timeout_s` to be believed. A process that is just ending breaks the connection first: then we ask again. False for
    members that cannot be dialled.
    """
    endpoint = context.directory.endpoint(peer)
    if endpoint is None:
        return False
    loop, rules = asyncio.get_running_loop(), context.rules
    give_up_at_s = loop.time() + rules.heartbeat_s
    while True:
        try:
            await context.transport.call(endpoint, ALIVE, b"", timeout_s=rules.stall_timeout_s)
        except RemoteGone:
            context.directory.suspect(peer)
            return True
        except RemoteTimeout:
            if loop.time() >= give_up_at_s:
                return False
            await asyncio.sleep(rules.heartbeat_s * _ASK_AGAIN)
        except RemoteError:
            return False
        else:
            return False


async def is_alive(context: MemberContext, peer: PeerId) -> bool:
    """Whether a member answers now. False for members that cannot be dialled: whoever may have been cut off is not to blame."""
    endpoint = context.directory.endpoint(peer)
    if endpoint is None:
        return False
    try:
        await context.transport.call(endpoint, ALIVE, b"", timeout_s=context.rules.stall_timeout_s)
    except RemoteError:
        return False
    return True


async def next_frame(stream: Stream, stall_timeout_s: float) -> bytes | memoryview:
    """The next message, valid until the next call.

    Raises:
        RemoteTimeout: the stream broke, or not even a heartbeat came for `stall_timeout_s`.
        RemoteRefusal: the other side has ended the stream.
    """
    try:
        async with asyncio.timeout(stall_timeout_s):
            frame = await stream.receive()
    except TimeoutError as error:
        raise RemoteTimeout(stream.peer, f"silent for {stall_timeout_s:.1f} s") from error
    if frame is None:
        raise RemoteRefusal(stream.peer, "incomplete", "it ended the stream before everything was there")
    return frame


async def next_real_frame(stream: Stream, stall_timeout_s: float) -> bytes | memoryview:
    """The next message that is no heartbeat; raises what `next_frame` raises."""
    while True:
        frame = await next_frame(stream, stall_timeout_s)
        if frame != HEARTBEAT:
            return frame


async def beat_until(stream: Stream, heartbeat_s: float, wait: Callable[[], Awaitable[T]]) -> T:
    """Wait for something, showing once in a while that we are alive. `wait` is called again after each heartbeat.

    Raises:
        RemoteTimeout: the stream broke.
    """
    while True:
        try:
            async with asyncio.timeout(heartbeat_s):
                return await wait()
        except TimeoutError:
            await stream.send(HEARTBEAT)


async def beat_forever(stream: Stream, heartbeat_s: float) -> None:
    """Show that we are alive until cancelled.

    Raises:
        RemoteTimeout: the stream broke.
    """
    while True:
        await asyncio.sleep(heartbeat_s)
        await stream.send(HEARTBEAT)


_GROUPS_CANCEL_AGAIN = sys.version_info >= (3, 13)
"""A TaskGroup whose tasks fail while it is cancelled raises their errors; since then the next await of whoever catches them is cancelled.
Before, the cancellation was lost (python/cpython#116720)."""


@asynccontextmanager
async def alongside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run `work` beside the body, and stop it and wait for its end when the body is through; what it raises ends the body, as a group.

    Whoever is cancelled here stays cancelled, whatever `work` raises as it is stopped.
    """
    me = asyncio.current_task()
    if me is None:
        raise RuntimeError("there is nobody to run it alongside")
    cancelled_before, cancelled = me.cancelling(), False
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            try:
                yield
            finally:
                task.cancel()
                cancelled = await _others_cancelled(me, task, cancelled_before)
    except BaseExceptionGroup as errors:
        if cancelled and not _GROUPS_CANCEL_AGAIN:
            raise asyncio.CancelledError from errors
        raise
    if cancelled:
        raise asyncio.CancelledError


async def _others_cancelled(me: asyncio.Task[None], task: asyncio.Task[None], cancelled_before: int) -> bool:
    """Wait for the end of a group's only task, however often we are cancelled; whether that was not the group's doing alone."""
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])  # if that task failed the group hears of it first, and has cancelled us by now: once
            await asyncio.sleep(0)
            break
    failed = not task.cancelled() and task.exception() is not None
    return me.cancelling() > cancelled_before + failed


@contextmanager
def plain_remote_errors() -> Iterator[None]:
    """Turn the exception group of a TaskGroup in which only RemoteErrors happened into the first of them."""
    try:
        yield
    except BaseExceptionGroup as group:
        remote, rest = group.split(RemoteError)
        if remote is None or rest is not None:
            raise
        error: BaseException = remote
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group
