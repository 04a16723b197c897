"""A reducer that gives its results to one member and shows all others nothing but life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from peers.interfaces import Handlers, Stream, Traffic, Transport
from protocols.frames import HEARTBEAT
from protocols.ids import BytesLike, PeerId
from tests.helpers.swarm_liars import RESULT

HEARTBEAT_S = 0.75


class Withheld:
    """A stream that carries heartbeats in place of the first result."""

    def __init__(self, inner: Stream) -> None:
        self._inner = inner

    @property
    def peer(self) -> PeerId:
        return self._inner.peer

    async def send(self, *parts: BytesLike) -> None:
        while parts[0][0] == RESULT:
            await self._inner.send(HEARTBEAT)
            await asyncio.sleep(HEARTBEAT_S)
        await self._inner.send(*parts)

    async def receive(self) -> bytes | memoryview | None:
        return await self._inner.receive()

    async def finish_sending(self) -> None:
        await self._inner.finish_sending()


class Favouring:
    """A transport whose owner, once it is `unfair`, serves its favourite only."""

    def __init__(self, inner: Transport, favourite: PeerId) -> None:
        self._inner = inner
        self._favourite = favourite
        self.unfair = False
        self.call = inner.call
        self.stream = inner.stream
        self.close = inner.close

    @property
    def traffic(self) -> Traffic:
        return self._inner.traffic

    @asynccontextmanager
    async def serve(self, handlers: Handlers) -> AsyncIterator[str]:
        async def exchange(stream: Stream) -> None:
            await handlers.streams["exchange"](Withheld(stream) if self.unfair and stream.peer != self._favourite else stream)

        async with self._inner.serve(Handlers(handlers.calls, {**handlers.streams, "exchange": exchange})) as address:
            yield address
