"""A few libp2p nodes that live as long as the tests of one process: starting their daemons takes longer than most tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peers.libp2p_daemon import Libp2pOptions
from peers.libp2p_node import Libp2pNode

NODES = 3
TEST_LIMIT_S = 120.0


@dataclass
class PooledNode:
    """A node that tests share, one after the other."""

    key: Ed25519PrivateKey
    node: Libp2pNode


class Pool:
    """Runs scenarios on the loop to which the nodes belong, in a thread of its own."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._nodes: Future[list[PooledNode]] = Future()

    def run(self, scenario: Callable[[list[PooledNode]], Awaitable[None]]) -> None:
        """Run one to its end; raises what it raises."""
        if self._thread is None:
            self._thread = threading.Thread(target=lambda: uvloop.run(self._live()), name="libp2p-pool", daemon=True)
            self._thread.start()
        pooled = self._nodes.result(TEST_LIMIT_S)

        async def bounded() -> None:
            async with asyncio.timeout(TEST_LIMIT_S):
                await scenario(pooled)

        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(bounded(), self._loop).result()

    def close(self) -> None:
        """End the daemons and the thread."""
        if self._thread is not None and self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)
            self.__init__()  # type: ignore[misc]  # the next test starts new ones

    async def _live(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with AsyncExitStack() as stack:
            try:
                nodes = []
                for _ in range(NODES):
                    key = Ed25519PrivateKey.generate()
                    options = Libp2pOptions(listen=("/ip4/127.0.0.1/tcp/0",), start_timeout_s=60.0)
                    node = await stack.enter_async_context(Libp2pNode.start(key.private_bytes_raw(), options))
                    nodes.append(PooledNode(key, node))
            except BaseException as error:
                self._nodes.set_exception(error)
                raise
            self._nodes.set_result(nodes)
            await self._stop.wait()


POOL = Pool()
