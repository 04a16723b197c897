"""One stream over a libp2p pipe, at the side that dialled and at the side that serves."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from peers.interfaces import MAX_MESSAGE_BYTES, Traffic
from peers.transport.handling import BANNED, Refusal
from peers.transport.libp2p_frames import (
    CREDIT_EVERY_BYTES,
    WINDOW_BYTES,
    Kind,
    decode_credit,
    decode_refusal,
    encode_credit,
    encode_refusal,
    require_size,
)
from peers.transport.limits import check_message_size
from peers.transport.membership import MembershipProof
from peers.transport.pipe import Pipe
from protocols.errors import LocalProtocolError, RemoteError, RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.ids import BytesLike, PeerId


class Libp2pStream:
    """What both sides share; implements `Stream` and `FrameSink`.

    Args:
        peer: the other side, as libp2p proved it.
        pipe: to it.
        traffic: totals of this transport.
        proof: whom we take for a member.
    """

    def __init__(self, peer: PeerId, pipe: Pipe, traffic: Traffic, proof: MembershipProof) -> None:
        self._peer = peer
        self._pipe = pipe
        self._traffic = traffic
        self._proof = proof
        self._inbox: deque[BytesLike] = deque()
        self._unread_bytes = 0  # arrived, and the sender does not know yet that it was taken
        self._taken_bytes = 0  # of these, what was taken
        self._in_flight_bytes = 0  # sent, and not known to be taken
        self._finished = False  # we said that no more follows
        self._far_finished = False
        self._over: RemoteError | None = None  # what sending raises; receiving too, once the inbox is empty and unless they had finished
        self._sending = asyncio.Lock()
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def peer(self) -> PeerId:
        """The authenticated other side."""
        return self._peer

    async def send(self, *parts: BytesLike) -> None:
        """See `Stream.send`."""
        size_bytes = check_message_size(parts)
        async with self._sending:
            self._check_can_send()
            try:
                while self._in_flight_bytes + size_bytes > WINDOW_BYTES:
                    await self._changed()
                    self._check_can_send()
                self._in_flight_bytes += size_bytes
                self._traffic.sent_bytes += size_bytes
                self._pipe.write(Kind.DATA, *parts)
                while self._pipe.congested:
                    await self._changed()
                    self._check_can_send()
            except asyncio.CancelledError:
                self.close(RemoteTimeout(self._peer, "a message was cancelled while it was being sent"))
                raise

    async def receive(self) -> bytes | memoryview | None:
        """See `Stream.receive`."""
        while not self._inbox:
            if self._far_finished:
                return None
            if self._over is not None:
                raise self._over
            await self._changed()
        message = self._inbox.popleft()
        self._taken_bytes += len(message)
        if self._taken_bytes >= CREDIT_EVERY_BYTES:
            self._pipe.write(Kind.CREDIT, encode_credit(self._taken_bytes))
            self._unread_bytes -= self._taken_bytes
            self._taken_bytes = 0
        return message if isinstance(message, bytes) else memoryview(message)

    async def finish_sending(self) -> None:
        """See `Stream.finish_sending`."""
        async with self._sending:
            if not self._finished and self._over is None:
                self._finished = True
                self._pipe.write(Kind.FINISHED)

    def close(self, reason: RemoteError | None = None) -> None:
        """Let go at once; the other side sees a broken stream unless all was said. Idempotent."""
        self._end(reason or RemoteTimeout(self._peer, "the stream was closed at this end"))
        self._pipe.close()

    # FrameSink

    def admit(self, kind: int, size_bytes: int) -> None:
        """See `FrameSink.admit`."""
        if kind != Kind.DATA:
            require_size(kind, size_bytes, self._peer)
        elif not 0 < size_bytes <= MAX_MESSAGE_BYTES:
            raise RemoteProtocolError(self._peer, f"a message of {size_bytes} bytes, above the limit of {MAX_MESSAGE_BYTES} or empty")
        elif self._unread_bytes + size_bytes > WINDOW_BYTES:
            raise RemoteProtocolError(self._peer, "more messages than there was room for")

    def frame(self, kind: int, payload: BytesLike) -> None:
        """See `FrameSink.frame`."""
        if kind == Kind.DATA and not self._far_finished:
            self._unread_bytes += len(payload)
            self._traffic.received_bytes += len(payload)
            self._inbox.append(payload)
        elif kind == Kind.CREDIT:
            taken_bytes = decode_credit(payload)
            self._in_flight_bytes -= taken_bytes
            if self._in_flight_bytes < 0:
                raise RemoteProtocolError(self._peer, "it has taken more than was sent")
            self._traffic.delivered_bytes += taken_bytes
        elif kind == Kind.FINISHED:
            self._far_finished = True
        else:
            raise RemoteProtocolError(self._peer, f"a frame of kind {kind} where none belongs")
        self._wake()

    def misbehaved(self, error: RemoteProtocolError) -> None:
        """See `FrameSink.misbehaved`."""
        self._far_finished = False
        self._end(error)

    def writable(self) -> None:
        """See `FrameSink.writable`."""
        self._wake()

    def ended(self) -> None:
        """See `FrameSink.ended`."""
        self._end(RemoteTimeout(self._peer, "the stream broke"))

    # For the sides

    def _end(self, error: RemoteError) -> None:
        """The first reason stays."""
        if self._over is None:
            self._over = error
        self._wake()

    def _check_can_send(self) -> None:
        if self._over is not None:
            raise self._over
        if self._finished:
            raise LocalProtocolError("sending on a stream after finish_sending")

    async def _changed(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class DialledStream(Libp2pStream):
    """The side that dialled. Whatever ends the stream ends the pipe: the other side waits for that."""

    _greeted = False

    def admit(self, kind: int, size_bytes: int) -> None:
        """See `FrameSink.admit`."""
        if not self._greeted and kind not in (Kind.HELLO, Kind.REFUSED):
            raise RemoteProtocolError(self._peer, "it has not shown that it is a member")
        super().admit(kind, size_bytes)

    def frame(self, kind: int, payload: BytesLike) -> None:
        """See `FrameSink.frame`."""
        if kind == Kind.HELLO and not self._greeted:
            self._proof.require_member(bytes(payload), self._peer)
            self._greeted = True
        elif kind == Kind.END:
            self._far_finished = True
            self.close(RemoteTimeout(self._peer, "it has ended the stream"))
        elif kind == Kind.REFUSED:
            self.close(decode_refusal(payload).as_error(self._peer))
        else:
            super().frame(kind, payload)

    def misbehaved(self, error: RemoteProtocolError) -> None:
        """See `FrameSink.misbehaved`."""
        super().misbehaved(error)
        self._pipe.close()


class ServedStream(Libp2pStream):
    """The side that serves, from after the opening.

    Args:
        on_gone: called when the dialler has let go.
    """

    def __init__(self, peer: PeerId, pipe: Pipe, traffic: Traffic, proof: MembershipProof, on_gone: Callable[[], None]) -> None:
        super().__init__(peer, pipe, traffic, proof)
        self._on_gone = on_gone

    def frame(self, kind: int, payload: BytesLike) -> None:
        """See `FrameSink.frame`."""
        if self._over is not None:
            return  # the handler has returned, or refuses
        if kind == Kind.DATA and self._proof.is_banned(self._peer):
            self._end(RemoteRefusal(self._peer, BANNED, "this peer is banned from the run"))
            return
        super().frame(kind, payload)

    def ended(self) -> None:
        """See `FrameSink.ended`."""
        super().ended()
        self._on_gone()

    def finish(self, refusal: Refusal | None) -> None:
        """Our handler is over: say so, behind what it has sent."""
        self._end(RemoteTimeout(self._peer, "the handler of this stream has returned"))
        if refusal is None:
            self._pipe.write(Kind.END)
        else:
            self._pipe.write(Kind.REFUSED, encode_refusal(refusal))
