"""The dialling half of links: agrees on keys, connects, and keeps links for the next stream."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from peers.interfaces import Endpoint, Stream, Traffic
from peers.transport.addresses import split_address
from peers.transport.links_buffers import Buffers
from peers.transport.links_ends import decode_end, encode_open
from peers.transport.links_socket import RecordSocket
from peers.transport.links_stream import LinkStream
from peers.transport.links_wire import RETIRE_BYTES, SHARE_BYTES, LinkReply, RecordKind, agree, encode_request
from protocols.errors import RemoteError, RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.ids import PeerId

_LOG = logging.getLogger(__name__)

CONNECT_S = 1.0
"""How long the data port may take to answer before a stream goes over gRPC instead: the exchange gives a silent member 3 s."""

IDLE_S = 120.0
"""How long a link waits for its next stream."""

DRAIN_S = 2.0
"""How long the other end may take to end a stream that we have left, before its link is given up."""

MAX_LINKS_PER_PEER = 8
AVOID_S = 60.0
"""How long a data port that did not answer is not tried again; doubles with each failure in a row."""

_MAX_AVOID_S = 3600.0
_MAX_REMEMBERED = 4096

OpenLink = Callable[[Endpoint, bytes, float], Awaitable[bytes]]
"""The call that agrees on keys: (whom, request, timeout in seconds) -> reply."""


class DialledLink(RecordSocket):
    """A link that we dialled.

    Args:
        to: whom.
        buffers: of this transport.
        on_idle: called when it can carry the next stream.
        on_lost: called when it is over.
    """

    def __init__(
        self, to: Endpoint, buffers: Buffers, on_idle: Callable[[DialledLink], None], on_lost: Callable[[DialledLink], None]
    ) -> None:
        super().__init__(buffers)
        self.to = to
        self.greeted_back: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._stream: LinkStream | None = None
        self._far_over = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def peer(self) -> PeerId:
        """Whom we dialled."""
        return self.to.peer

    def greet(self, link_id: bytes) -> None:
        """Say which link this is, and prove the key."""
        self.write(link_id)
        self.post(RecordKind.HELLO)

    def begin(self, stream: LinkStream, method: str, timeout_s: float) -> None:
        """Carry a stream from now on."""
        self._cancel_timer()
        self._stream, self._far_over = stream, False
        stream.on_abandon = self._leave
        self.post(RecordKind.OPEN, 0, encode_open(method, timeout_s))

    def wait_for_work(self) -> None:
        """Nothing to carry: end after a while."""
        self._set_timer(IDLE_S, "no stream for a while")

    def close(self, reason: str) -> None:
        """End it."""
        self.fail(RemoteTimeout(self.peer, reason))

    def place(self, kind: int, value: int, size_bytes: int) -> memoryview | None:
        """See `RecordSocket.place`."""
        return self._stream.place(value, size_bytes) if kind == RecordKind.MESSAGE and self._stream is not None else None

    def arrived(self, kind: RecordKind, value: int, payload: memoryview) -> None:
        """See `RecordSocket.arrived`."""
        stream = self._stream
        if kind is RecordKind.HELLO and not self.greeted_back.done():
            self.allow_messages()
            self.greeted_back.set_result(None)
        elif stream is None or self._far_over:
            raise RemoteProtocolError(self.peer, f"a {kind.name} record without a stream")
        elif kind is RecordKind.MESSAGE:
            stream.message_part(value, len(payload))
        elif kind is RecordKind.CREDIT:
            stream.credit(value)
        elif kind is RecordKind.FINISHED:
            stream.far_finished()
        elif kind is RecordKind.ENDED:
            error, orderly = decode_end(bytes(payload), self.peer)
            self._far_over = True
            stream.far_ended(error, orderly=orderly)
            if stream.broken:
                self._over()
        else:
            raise RemoteProtocolError(self.peer, f"a {kind.name} record from a listener")

    def lost(self, error: RemoteError) -> None:
        """See `RecordSocket.lost`."""
        self._cancel_timer()
        if not self.greeted_back.done():
            self.greeted_back.set_exception(error)
            self.greeted_back.exception()  # whoever waited may have gone
        if self._stream is not None and not self._far_over:
            self._stream.far_ended(error, orderly=False)
        self._on_lost(self)

    def _leave(self) -> None:
        """We have left the stream. The other end says when it has, too."""
        self.post(RecordKind.CLOSE)
        if self._far_over:
            self._over()
        elif self.alive:
            self._set_timer(DRAIN_S, "the other end did not end a stream that was left")

    def _over(self) -> None:
        self._stream = None
        self._cancel_timer()
        if not self.alive:
            return
        if self.used_bytes > RETIRE_BYTES:
            self.close("its keys have been used enough")
        else:
            self._on_idle(self)

    def _set_timer(self, delay_s: float, reason: str) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self.close, reason)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@dataclass(slots=True)
class _Known:
    """What we know about the way to one peer."""

    endpoint: Endpoint
    links: int = 0  # those that are being opened, too
    idle: list[DialledLink] = field(default_factory=list)
    failures: int = 0
    avoid_until_s: float = 0.0


class DialledLinks:
    """Opens links when they are needed and keeps them.

    Args:
        me: our identity.
        open_link: the call that agrees on keys.
        traffic: totals of this transport.
        is_banned: asked before every message.
        buffers: of this transport.
    """

    def __init__(self, me: PeerId, open_link: OpenLink, traffic: Traffic, is_banned: Callable[[PeerId], bool], buffers: Buffers) -> None:
        self._me = me
        self._open_link = open_link
        self._traffic = traffic
        self._is_banned = is_banned
        self._buffers = buffers
        self._known: dict[PeerId, _Known] = {}
        self._links: dict[DialledLink, _Known] = {}
        self.closed = False

    async def link_to(self, to: Endpoint, timeout_s: float) -> DialledLink | None:
        """A link that carries nothing, the one that was used last if there is one.

        Returns:
            None if streams to that peer have to go another way.

        Raises:
            RemoteGone, RemoteTimeout: the peer itself cannot be reached.
            RemoteProtocolError: its certificate, address or reply is bad.
        """
        if self.closed:
            raise RemoteTimeout(to.peer, "this transport is closed")
        known = self._known_way(to)
        while known.idle:
            if (kept := known.idle.pop()).alive:
                return kept
        now_s = asyncio.get_running_loop().time()
        if known.links >= MAX_LINKS_PER_PEER or now_s < known.avoid_until_s:
            return None
        known.links += 1
        try:
            link = await self._dial(to, timeout_s)
        except BaseException:
            known.links -= 1
            raise
        if link is None:
            known.links -= 1
            known.failures += 1
            known.avoid_until_s = now_s + min(AVOID_S * 2 ** (known.failures - 1), _MAX_AVOID_S)
            return None
        known.failures = 0
        self._links[link] = known
        if not link.alive:
            self._lost(link)
        if self.closed:
            link.close("this transport is closed")
        return link

    @asynccontextmanager
    async def stream_on(self, link: DialledLink, method: str, timeout_s: float) -> AsyncIterator[Stream]:
        """Carry one stream on a link. Leaving it hands the link back."""
        stream = LinkStream(link, link.peer, self._traffic, self._is_banned)
        link.begin(stream, method, timeout_s)
        late = RemoteTimeout(link.peer, f"the stream {method!r} took longer than {timeout_s:g} s")
        timer = asyncio.get_running_loop().call_later(timeout_s, stream.abandon, late)
        try:
            yield stream
        finally:
            timer.cancel()
            stream.abandon(RemoteTimeout(link.peer, "the stream was closed at this end"))

    def close(self) -> None:
        """Drop every link."""
        self.closed = True
        for link in list(self._links):
            link.close("this transport is closed")

    def _known_way(self, to: Endpoint) -> _Known:
        known = self._known.get(to.peer)
        if known is None or known.endpoint != to:
            if known is not None:
                for link in list(known.idle):
                    link.close("the peer has moved")
            if len(self._known) >= _MAX_REMEMBERED:
                self._forget_unused()
            known = self._known[to.peer] = _Known(to)
        return known

    def _forget_unused(self) -> None:
        self._known = {peer: known for peer, known in self._known.items() if known.links}

    async def _dial(self, to: Endpoint, timeout_s: float) -> DialledLink | None:
        share = os.urandom(SHARE_BYTES)
        try:
            reply = LinkReply.decode(await self._open_link(to, encode_request(share), timeout_s), to.peer)
        except RemoteRefusal as refusal:
            _LOG.debug("no link: peer=%s reason=%s", to.peer.short, refusal.reason)
            return None
        keys = agree(self._me, to.peer, share, reply)
        host = split_address(to.address)[0].strip("[]")
        link = DialledLink(to, self._buffers, self._idle, self._lost)
        link.secure(keys.dialler, keys.listener)
        try:
            async with asyncio.timeout(min(CONNECT_S, timeout_s)):
                await asyncio.get_running_loop().create_connection(lambda: link, host, reply.port)
                link.greet(reply.link_id)
                await link.greeted_back
        except (OSError, TimeoutError, RemoteTimeout) as error:
            link.close("its data port did not answer")
            _LOG.info("streams go over gRPC: peer=%s data_port=%d reason=%s", to.peer.short, reply.port, error)
            return None
        except BaseException:
            link.close("nobody waits for it any more")
            raise
        return link

    def _idle(self, link: DialledLink) -> None:
        known = self._links[link]
        if self._known.get(link.peer) is known:
            known.idle.append(link)
            link.wait_for_work()
        else:
            link.close("the peer has moved")

    def _lost(self, link: DialledLink) -> None:
        known = self._links.pop(link, None)
        if known is not None:
            known.links -= 1
            if link in known.idle:
                known.idle.remove(link)
