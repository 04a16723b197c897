"""`Transport` over raw streams of a libp2p node: for members that no TCP connection of our own reaches, but libp2p does.

Libp2p dials, goes through relays, and uses a connection in whichever direction it was made, so whoever has reached us can be reached. It
proves who is who (Noise, Ed25519); that both are members of the run is shown by the first frame each way. A call or stream here is one
libp2p stream; frames are in `peers.transport.libp2p_frames`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from peers.interfaces import Endpoint, Handlers, Stream, Traffic
from peers.transport.libp2p_call import AskedCall
from peers.transport.libp2p_frames import PROTOCOL, Kind, Opening, Shape
from peers.transport.libp2p_serving import Host
from peers.transport.libp2p_stream import DialledStream
from peers.transport.limits import check_call_size
from peers.transport.membership import MembershipProof
from peers.transport.owned_tasks import owned_tasks
from peers.transport.pipe import Pipe
from protocols.errors import RemoteTimeout
from protocols.ids import PeerId

_LOG = logging.getLogger(__name__)

Accept = Callable[[PeerId, Pipe], None]


class PipeNode(Protocol):
    """What the transport needs of a libp2p node (`peers.libp2p_node.Libp2pNode`)."""

    async def open_pipe(self, to: PeerId, addresses: Sequence[str], name: str, *, timeout_s: float) -> Pipe:
        """A new stream to a peer; `Pipe.start` is left to the caller.

        Raises:
            RemoteGone: nobody listens there.
            RemoteTimeout: it cannot be reached.
        """

    def serve_pipes(self, name: str, accept: Accept) -> AbstractAsyncContextManager[None]:
        """Hand over incoming streams while the context is open."""


class Libp2pStreams:
    """Implements `Transport`. Belongs to the event loop of its node.

    Args:
        node: carries the streams; outlives this.
        proof: shows that we are a member, and says who else is.
    """

    def __init__(self, node: PipeNode, proof: MembershipProof) -> None:
        self._node = node
        self._proof = proof
        self._traffic = Traffic()
        self._open: dict[AskedCall | DialledStream, None] = {}
        self._closed = False

    @property
    def traffic(self) -> Traffic:
        """Running totals."""
        return self._traffic

    @asynccontextmanager
    async def serve(self, handlers: Handlers) -> AsyncIterator[str]:
        """See `Transport.serve`; yields "", since others find the node's addresses in our presence. Leaving it cancels the handlers."""
        async with owned_tasks() as tasks:
            host = Host(handlers, self._proof, self._traffic, tasks)
            try:
                async with self._node.serve_pipes(PROTOCOL, host.accept):
                    yield ""
            finally:
                host.close()

    async def call(self, to: Endpoint, method: str, request: bytes, *, timeout_s: float) -> bytes:
        """See `Transport.call`."""
        check_call_size(request, "request")
        try:
            async with asyncio.timeout(timeout_s):
                pipe = await self._dial(to, timeout_s)
                call = AskedCall(to.peer, pipe, self._proof)
                self._open[call] = None
                try:
                    self._begin(pipe, "call", method, timeout_s)
                    self._traffic.sent_bytes += len(request)
                    pipe.write(Kind.DATA, request)
                    pipe.start(call)
                    reply = await call.reply
                finally:
                    self._open.pop(call, None)
                    call.close()
        except TimeoutError:
            raise RemoteTimeout(to.peer, f"no reply to {method!r} within {timeout_s:g} s") from None
        self._traffic.received_bytes += len(reply)
        return reply

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: str, *, timeout_s: float) -> AsyncIterator[Stream]:
        """See `Transport.stream`."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        pipe = await self._dial(to, timeout_s)
        stream = DialledStream(to.peer, pipe, self._traffic, self._proof)
        late = RemoteTimeout(to.peer, f"the stream {method!r} took longer than {timeout_s:g} s")
        timer = loop.call_at(deadline_s, lambda: stream.close(late))
        self._open[stream] = None
        try:
            self._begin(pipe, "stream", method, max(0.0, deadline_s - loop.time()))
            pipe.start(stream)
            yield stream
        finally:
            timer.cancel()
            self._open.pop(stream, None)
            stream.close()

    async def close(self) -> None:
        """Drop every stream we dialled. Idempotent. What we serve ends with its `serve` context, and the node is not ours."""
        self._closed = True
        for dialled in list(self._open):
            dialled.close()

    async def _dial(self, to: Endpoint, timeout_s: float) -> Pipe:
        if self._closed:
            raise RemoteTimeout(to.peer, "this transport is closed")
        return await self._node.open_pipe(to.peer, to.libp2p_addresses, PROTOCOL, timeout_s=timeout_s)

    def _begin(self, pipe: Pipe, shape: Shape, method: str, timeout_s: float) -> None:
        pipe.write(Kind.OPEN, Opening(shape, method, timeout_s, self._proof.chain).encode())
