"""One end of one stream on a link, at the side that dialled and at the side that serves."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from peers.interfaces import MAX_MESSAGE_BYTES, Traffic
from peers.transport.handling import BANNED
from peers.transport.limits import check_message_size
from peers.transport.links_flow import CREDIT_BYTES, Outgoing
from peers.transport.links_socket import RecordSocket
from peers.transport.links_wire import WINDOW_BYTES, RecordKind
from protocols.errors import LocalProtocolError, RemoteError, RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.ids import BytesLike, PeerId

_LENT_FROM_BYTES = 2**15
"""Messages of this size and more are handed out as views of a buffer that is used again; smaller ones are `bytes`."""


@dataclass(slots=True)
class _Message:
    """A message as its records come in, then as it waits to be received."""

    buffer: bytearray
    size_bytes: int
    filled: int = 0

    @property
    def complete(self) -> bool:
        return self.filled == self.size_bytes


class LinkStream:
    """One end of a stream; implements `Stream`.

    Args:
        link: carries it.
        peer: the authenticated other side.
        traffic: totals of this transport.
        is_banned: asked before every message is handed out.
    """

    def __init__(self, link: RecordSocket, peer: PeerId, traffic: Traffic, is_banned: Callable[[PeerId], bool]) -> None:
        self.on_abandon: Callable[[], object] = lambda: None
        """Tells the other end that this one broke the stream."""
        self._link = link
        self._peer = peer
        self._traffic = traffic
        self._is_banned = is_banned
        self._inbox: deque[_Message] = deque()
        self._partial: _Message | None = None
        self._lent: tuple[memoryview, bytearray] | None = None
        self._outgoing = Outgoing()
        self._far_may_send_bytes = WINDOW_BYTES
        self._owed_credit_bytes = 0
        self._finished = False  # we said that no more follows
        self._far_finished = False
        self._far_end: RemoteError | None = None  # the other end is over: what sending raises, and receiving unless it simply returned
        self._broken: RemoteError | None = None
        self._sending = asyncio.Lock()
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def peer(self) -> PeerId:
        """The authenticated other side."""
        return self._peer

    @property
    def broken(self) -> bool:
        """Over at this end."""
        return self._broken is not None

    # For whoever uses the stream

    async def send(self, *parts: BytesLike) -> None:
        """See `Stream.send`."""
        size_bytes = check_message_size(parts)
        async with self._sending:
            try:
                self._check_can_send()
                while not self._outgoing.may_send(size_bytes):
                    await self._changed()
                    self._check_can_send()
                self._outgoing.sent(size_bytes)
                await self._link.send_message(parts, size_bytes, lambda: self.broken)
            except asyncio.CancelledError:
                self.abandon(RemoteTimeout(self._peer, "a message was cancelled while it was being sent"))
                raise
            if self._broken is not None:
                raise self._broken
            self._traffic.sent_bytes += size_bytes

    async def receive(self) -> bytes | memoryview | None:
        """See `Stream.receive`."""
        self._take_back()
        while True:
            if self._broken is not None:
                raise self._broken
            if self._is_banned(self._peer):
                raise RemoteRefusal(self._peer, BANNED, "this peer is banned from the run")
            if self._inbox:
                return self._hand_out(self._inbox.popleft())
            if self._far_finished:
                return None
            if self._far_end is not None:
                raise self._far_end
            await self._changed()

    async def finish_sending(self) -> None:
        """See `Stream.finish_sending`."""
        async with self._sending:
            if not self._finished and self._broken is None and self._far_end is None:
                self._finished = True
                self._link.post(RecordKind.FINISHED)

    # For the link

    def place(self, value: int, size_bytes: int) -> memoryview | None:
        """Where the next part of a message goes. The header is not proved yet, so nonsense is told by `message_part` only."""
        if value and self._partial is None and self._broken is None and value <= MAX_MESSAGE_BYTES:
            lent = value >= _LENT_FROM_BYTES
            self._partial = _Message(self._link.buffers.take(value) if lent else bytearray(value), value)
        message = self._partial
        if message is None or message.filled + size_bytes > message.size_bytes:
            return None
        return memoryview(message.buffer)[message.filled : message.filled + size_bytes]

    def message_part(self, value: int, size_bytes: int) -> None:
        """A part of a message has come to the place we said.

        Raises:
            RemoteProtocolError: it is too large, out of order, or more than we allowed.
        """
        self._far_may_send_bytes -= size_bytes
        if self._far_may_send_bytes < 0 or self._far_finished or self._far_end is not None or not size_bytes:
            raise RemoteProtocolError(self._peer, "it sent more than it may on a stream")
        if self._broken is not None:
            return  # it cannot know yet
        message = self._partial
        begins = message is not None and not message.filled
        if message is None or bool(value) != begins or (value and value != message.size_bytes):
            raise RemoteProtocolError(self._peer, f"a part of {size_bytes} bytes of a message of {value} out of turn")
        if message.filled + size_bytes > message.size_bytes:
            raise RemoteProtocolError(self._peer, f"a part of {size_bytes} bytes does not fit a message of {message.size_bytes}")
        message.filled += size_bytes
        self._traffic.received_bytes += size_bytes
        if message.complete:
            self._partial = None
            self._inbox.append(message)
            self._wake()

    def credit(self, size_bytes: int) -> None:
        """The other end has read that much of what we sent.

        Raises:
            RemoteProtocolError: more than we had sent.
        """
        if not self._outgoing.credited(size_bytes):
            raise RemoteProtocolError(self._peer, f"credit for {size_bytes} bytes that were never sent")
        self._traffic.delivered_bytes += size_bytes
        self._wake()

    def far_finished(self) -> None:
        """The other end sends no more.

        Raises:
            RemoteProtocolError: in the middle of a message, or twice.
        """
        if self._broken is None and (self._partial is not None or self._far_finished):
            raise RemoteProtocolError(self._peer, "it finished a stream twice, or in the middle of a message")
        self._far_finished = True
        self._wake()

    def far_ended(self, error: RemoteError, *, orderly: bool) -> None:
        """The other end is over; what it had sent before can still be received.

        Args:
            error: what sending raises from now on, and receiving unless it ended in an orderly way.
            orderly: its handler has returned.
        """
        self._far_finished = self._far_finished or orderly
        self._far_end = error
        self._forget_partial()
        self._wake()

    def break_off(self, error: RemoteError) -> None:
        """Over at this end: what was not received is dropped. Only the first reason counts."""
        if self._broken is not None:
            return
        self._broken = error
        self._take_back()
        self._forget_partial()
        while self._inbox:
            self._give_back(self._inbox.popleft())
        self._wake()

    def abandon(self, error: RemoteError) -> None:
        """Break it off and tell the other end. Nothing happens if it is over already."""
        if self._broken is None:
            self.break_off(error)
            self.on_abandon()

    # Inside

    def _check_can_send(self) -> None:
        error = self._broken or self._far_end
        if error is not None:
            raise error
        if self._finished:
            raise LocalProtocolError("sending on a stream after finish_sending")

    def _hand_out(self, message: _Message) -> bytes | memoryview:
        self._owed_credit_bytes += message.size_bytes
        if self._owed_credit_bytes >= CREDIT_BYTES and self._far_end is None:
            self._link.post(RecordKind.CREDIT, self._owed_credit_bytes)
            self._far_may_send_bytes += self._owed_credit_bytes
            self._owed_credit_bytes = 0
        if message.size_bytes < _LENT_FROM_BYTES:
            return bytes(message.buffer)
        view = memoryview(message.buffer)[: message.size_bytes]
        self._lent = (view, message.buffer)
        return view

    def _take_back(self) -> None:
        """The message that was handed out last is no longer valid."""
        if self._lent is not None:
            view, buffer = self._lent
            self._lent = None
            with suppress(BufferError):  # somebody still looks at it, against the rules: let it keep the buffer
                view.release()
                self._link.buffers.give(buffer)

    def _forget_partial(self) -> None:
        partial, self._partial = self._partial, None
        if partial is not None:
            self._give_back(partial)

    def _give_back(self, message: _Message) -> None:
        if message.size_bytes >= _LENT_FROM_BYTES:
            self._link.buffers.give(message.buffer)

    async def _changed(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
