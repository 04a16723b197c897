"""The serving half of links: hands out keys, accepts connections that prove them, and runs the handlers of their streams."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from peers.interfaces import StreamHandler, Traffic
from peers.transport.addresses import split_address
from peers.transport.handling import BANNED, Answered, Broken, Refusal, run_handler, unknown_method
from peers.transport.links_buffers import Buffers
from peers.transport.links_ends import decode_open, encode_end
from peers.transport.links_socket import RecordSocket
from peers.transport.links_stream import LinkStream
from peers.transport.links_wire import HEADER, LINK_ID_BYTES, SHARE_BYTES, LinkKeys, LinkReply, RecordKind, agree, decode_request
from peers.transport.owned_tasks import OwnedTasks, owned_tasks
from protocols.errors import ExitCode, NetworkSetupError, RemoteError, RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.ids import PeerId

_LOG = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
"""How long agreed keys wait for their connection, and a connection for its proof."""

IDLE_S = 240.0
"""How long a link waits for its next stream: longer than a dialler keeps it."""

MAX_LINKS_PER_PEER = 16
MAX_LINKS = 1024
MAX_STRANGERS = 64
"""Connections that have not proved a key; when there are more, the oldest goes."""

GRACE_S = 2.0
"""How long a dialler may take to leave a stream whose deadline has passed."""

BUSY = "busy"
"""Refusal code: too many links."""


@dataclass(frozen=True, slots=True)
class _Agreed:
    """Keys that wait for their connection."""

    peer: PeerId
    keys: LinkKeys
    expiry: asyncio.TimerHandle


class ServedLink(RecordSocket):
    """A link that somebody else dialled.

    A stream on it is over when we have said how its handler ended, and the dialler that it has left. Whoever is first goes on hearing what
    the other sent before it knew.

    Args:
        server: knows who may come in, and what is served.
        buffers: of this transport.
    """

    def __init__(self, server: LinkServer, buffers: Buffers) -> None:
        super().__init__(buffers)
        self._server = server
        self._peer: PeerId | None = None
        self._proved = False
        self._stream: LinkStream | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        self._left = False
        self._timer: asyncio.TimerHandle | None = None
        self.expect_greeting(LINK_ID_BYTES)

    @property
    def peer(self) -> PeerId | None:
        """Who dialled; None until it has named its link."""
        return self._peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        super().connection_made(transport)
        self._close_after(HANDSHAKE_S, "it did not prove a key in time")
        self._server.stranger_came(self)

    def close(self, reason: str) -> None:
        """End it."""
        self.fail(RemoteTimeout(self._peer, reason))

    def greeted(self, greeting: bytes) -> int:
        """See `RecordSocket.greeted`: the link's id, which is good for one connection."""
        self._peer, keys = self._server.redeem(greeting)
        self.secure(keys.listener, keys.dialler)
        return HEADER.size

    def place(self, kind: int, value: int, size_bytes: int) -> memoryview | None:
        """See `RecordSocket.place`."""
        return self._stream.place(value, size_bytes) if kind == RecordKind.MESSAGE and self._stream is not None else None

    def arrived(self, kind: RecordKind, value: int, payload: memoryview) -> None:
        """See `RecordSocket.arrived`."""
        stream, peer = self._stream, self._peer
        if peer is None:
            raise RuntimeError("a record before the keys")
        if not self._proved:
            self._greet_back(kind, peer)
        elif stream is None:
            if kind is not RecordKind.OPEN:
                raise RemoteProtocolError(peer, f"a {kind.name} record without a stream")
            self._begin(peer, *decode_open(bytes(payload), peer))
        elif kind is RecordKind.MESSAGE:
            stream.message_part(value, len(payload))
        elif kind is RecordKind.CREDIT:
            stream.credit(value)
        elif kind is RecordKind.FINISHED:
            stream.far_finished()
        elif kind is RecordKind.CLOSE:
            self._left = True
            self._break_off(stream, RemoteTimeout(peer, "it has left the stream"))
            self._look()
        else:
            raise RemoteProtocolError(peer, f"a {kind.name} record from a dialler")

    def lost(self, error: RemoteError) -> None:
        """See `RecordSocket.lost`."""
        self._cancel_timer()
        self._server.link_gone(self)
        if self._stream is not None:
            self._break_off(self._stream, error)

    def _greet_back(self, kind: RecordKind, peer: PeerId) -> None:
        if kind is not RecordKind.HELLO:
            raise RemoteProtocolError(peer, "it did not begin with a greeting")
        self._proved = True
        self.allow_messages()
        self._server.stranger_proved(self, peer)
        self.post(RecordKind.HELLO)
        self._close_after(IDLE_S, "no stream for a while")

    def _begin(self, peer: PeerId, method: str, timeout_s: float) -> None:
        stream = self._stream = self._server.stream_for(self, peer)
        self._ended = self._left = False
        stream.on_abandon = lambda: self._end(stream, Broken())
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._late, stream)
        started = self._server.start(stream, method, lambda outcome: self._end(stream, outcome))
        if isinstance(started, Refusal):
            self._end(stream, started)
        else:
            self._task = started

    def _end(self, stream: LinkStream, outcome: Answered[None] | Refusal | Broken) -> None:
        """The handler of a stream is over: say so."""
        if self._stream is not stream or self._ended:
            return
        self._ended = True
        stream.break_off(RemoteTimeout(stream.peer, "the handler of this stream has returned"))
        self.post(RecordKind.ENDED, 0, encode_end(outcome))
        self._look()

    def _break_off(self, stream: LinkStream, error: RemoteError) -> None:
        stream.break_off(error)
        if self._task is not None:
            self._task.cancel()

    def _look(self) -> None:
        if self._ended and self._left:
            self._stream = self._task = None
            self._close_after(IDLE_S, "no stream for a while")

    def _late(self, stream: LinkStream) -> None:
        self._break_off(stream, RemoteTimeout(stream.peer, "the deadline of the stream has passed"))
        self._close_after(GRACE_S, "it did not leave a stream in time")

    def _close_after(self, delay_s: float, reason: str) -> None:
        self._cancel_timer()
        if self.alive:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.close, reason)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class LinkServer:
    """Everything that one peer serves over links.

    Args:
        me: our identity.
        host: address to listen on, without brackets.
        port: 0 for any.
        is_banned: asked when keys are agreed, when a link is proved, for every stream and every message.
        traffic: totals of this transport.
        buffers: of this transport.
    """

    def __init__(self, me: PeerId, address: str, is_banned: Callable[[PeerId], bool], traffic: Traffic, buffers: Buffers) -> None:
        self._me = me
        self._address = address
        self._is_banned = is_banned
        self._traffic = traffic
        self._buffers = buffers
        self._port = 0
        self._agreed: dict[bytes, _Agreed] = {}
        self._strangers: dict[ServedLink, None] = {}
        self._links: dict[ServedLink, PeerId] = {}
        self._streams: Mapping[str, StreamHandler] = {}
        self._tasks: OwnedTasks | None = None

    @asynccontextmanager
    async def serving(self, streams: Mapping[str, StreamHandler]) -> AsyncIterator[None]:
        """Accept links and run these handlers while the context is open.

        Raises:
            NetworkSetupError: the port is taken or the address is not ours.
        """
        server = await self._listen()
        self._port = server.sockets[0].getsockname()[1]
        async with owned_tasks() as tasks:
            self._streams, self._tasks = streams, tasks
            try:
                yield
            finally:
                server.close()
                for agreed in self._agreed.values():
                    agreed.expiry.cancel()
                self._agreed.clear()
                for link in [*self._strangers, *self._links]:
                    link.close("this peer has stopped serving")

    async def open_link(self, caller: PeerId, request: bytes) -> bytes:
        """Call handler of `OPEN_LINK`.

        Raises:
            RemoteProtocolError: a malformed request.
            RemoteRefusal: it has too many links, or all have.
        """
        share = decode_request(request, caller)
        theirs = sum(peer == caller for peer in self._links.values()) + sum(agreed.peer == caller for agreed in self._agreed.values())
        if theirs >= MAX_LINKS_PER_PEER or len(self._links) + len(self._agreed) >= MAX_LINKS:
            raise RemoteRefusal(caller, BUSY, "this member has as many links as it takes")
        reply = LinkReply(os.urandom(LINK_ID_BYTES), os.urandom(SHARE_BYTES), self._port)
        expiry = asyncio.get_running_loop().call_later(HANDSHAKE_S, self._agreed.pop, reply.link_id, None)
        self._agreed[reply.link_id] = _Agreed(caller, agree(caller, self._me, share, reply), expiry)
        return reply.encode()

    # For links

    def stranger_came(self, link: ServedLink) -> None:
        """Somebody has connected."""
        self._strangers[link] = None
        if len(self._strangers) > MAX_STRANGERS:
            next(iter(self._strangers)).close("too many connections that have not proved a key")

    def redeem(self, link_id: bytes) -> tuple[PeerId, LinkKeys]:
        """Whose link that is, once.

        Raises:
            RemoteTimeout: nobody's, or no longer.
            RemoteRefusal: its owner is banned.
        """
        agreed = self._agreed.pop(link_id, None)
        if agreed is None:
            raise RemoteTimeout(None, "a connection without agreed keys")
        agreed.expiry.cancel()
        if self._is_banned(agreed.peer):
            raise RemoteRefusal(agreed.peer, BANNED, "this peer is banned from the run")
        return agreed.peer, agreed.keys

    def stranger_proved(self, link: ServedLink, peer: PeerId) -> None:
        """It holds the keys."""
        self._strangers.pop(link, None)
        self._links[link] = peer

    def link_gone(self, link: ServedLink) -> None:
        """It is over."""
        self._strangers.pop(link, None)
        self._links.pop(link, None)

    def stream_for(self, link: ServedLink, peer: PeerId) -> LinkStream:
        """A stream that begins on a link."""
        return LinkStream(link, peer, self._traffic, self._is_banned)

    def start(
        self, stream: LinkStream, method: str, ended: Callable[[Answered[None] | Refusal | Broken], None]
    ) -> asyncio.Task[None] | Refusal:
        """Run the handler of a stream, and tell how it ended; or why it does not run."""
        handler = self._streams.get(method)
        if self._is_banned(stream.peer):
            return Refusal(BANNED, "this peer is banned from the run")
        if handler is None or self._tasks is None:
            return unknown_method(method)

        async def serve() -> None:
            ended(await run_handler(handler(stream), method, stream.peer))

        task = self._tasks.start(serve())
        task.add_done_callback(lambda done: ended(Broken()) if done.cancelled() else None)
        return task

    async def _listen(self) -> asyncio.Server:
        host, port = split_address(self._address)
        try:
            return await asyncio.get_running_loop().create_server(lambda: ServedLink(self, self._buffers), host.strip("[]"), port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                message = f"Cannot listen on {self._address}: the port is in use, choose another or stop the other program."
                raise NetworkSetupError(message, ExitCode.PORT_IN_USE) from None
            message = f"Cannot listen on {self._address} ({error.strerror or error}): choose an address of this machine."
            raise NetworkSetupError(message) from None
