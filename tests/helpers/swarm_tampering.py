"""An honest member whose messages are changed on their way out: how tests make a liar, or a broken program."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from peers.interfaces import CallHandler, Endpoint, Handlers, Stream, StreamHandler, Traffic, Transport
from protocols.errors import RemoteError
from protocols.ids import BytesLike, PeerId


def _as_it_is(_method: str, message: bytes) -> bytes:
    return message


def _alone(_method: str, message: bytes) -> list[bytes]:
    return [message]


@dataclass(frozen=True)
class Tamper:
    """What is done to one member's messages; each function gets the method's name first.

    Args:
        request: changes what it asks.
        reply: changes what it answers; may wait.
        dialled: changes what it sends on streams that it opened, one message into several.
        served: the same on streams that others opened.
        twice: every exchange stream is opened a second time, with the same messages.
    """

    request: Callable[[str, bytes], bytes] = _as_it_is
    reply: Callable[[str, bytes], Awaitable[bytes]] | None = None
    dialled: Callable[[str, bytes], list[bytes]] = _alone
    served: Callable[[str, bytes], list[bytes]] = _alone
    twice: bool = False


class _TamperedStream:
    """A stream whose outgoing messages are changed, and copied to a second one."""

    def __init__(self, inner: Stream, change: Callable[[bytes], list[bytes]], copy: Stream | None = None) -> None:
        self._inner = inner
        self._change = change
        self._copy = copy

    @property
    def peer(self) -> PeerId:
        return self._inner.peer

    async def send(self, *parts: BytesLike) -> None:
        for changed in self._change(b"".join(parts)):
            await self._inner.send(changed)
            if self._copy:
                with suppress(RemoteError):
                    await self._copy.send(changed)

    async def receive(self) -> bytes | memoryview | None:
        return await self._inner.receive()

    async def finish_sending(self) -> None:
        await self._inner.finish_sending()


class TamperedTransport:
    """A `Transport` that changes what goes out.

    Args:
        inner: carries it.
        tamper: what is done.
    """

    def __init__(self, inner: Transport, tamper: Tamper) -> None:
        self._inner = inner
        self._tamper = tamper

    @property
    def traffic(self) -> Traffic:
        return self._inner.traffic

    @asynccontextmanager
    async def serve(self, handlers: Handlers) -> AsyncIterator[str]:
        calls = {name: self._call_handler(name, handler) for name, handler in handlers.calls.items()}
        streams = {name: self._stream_handler(name, handler) for name, handler in handlers.streams.items()}
        async with self._inner.serve(Handlers(calls, streams)) as address:
            yield address

    def _call_handler(self, method: str, handler: CallHandler) -> CallHandler:
        async def changed(caller: PeerId, request: bytes) -> bytes:
            reply = self._tamper.reply
            if reply is None:
                return await handler(caller, request)
            try:
                answer = await handler(caller, request)
            except RemoteError:
                answer = b""
            return await reply(method, answer)

        return changed

    def _stream_handler(self, method: str, handler: StreamHandler) -> StreamHandler:
        async def changed(stream: Stream) -> None:
            await handler(_TamperedStream(stream, lambda message: self._tamper.served(method, message)))

        return changed

    async def call(self, to: Endpoint, method: str, request: bytes, *, timeout_s: float) -> bytes:
        return await self._inner.call(to, method, self._tamper.request(method, request), timeout_s=timeout_s)

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: str, *, timeout_s: float) -> AsyncIterator[Stream]:
        async with AsyncExitStack() as stack:
            copy = await stack.enter_async_context(self._inner.stream(to, method, timeout_s=timeout_s)) if self._tamper.twice else None
            stream = await stack.enter_async_context(self._inner.stream(to, method, timeout_s=timeout_s))
            yield _TamperedStream(stream, lambda message: self._tamper.dialled(method, message), copy)

    async def close(self) -> None:
        await self._inner.close()
