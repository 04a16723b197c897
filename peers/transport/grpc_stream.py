"""One stream over gRPC, at the side that dialled and at the side that serves.

On the wire each message is one gRPC message of raw bytes; an empty one says that no more follow in that direction. gRPC's own end of
stream is no substitute: a server cannot half-close, and at the server an orderly end and a broken connection look the same.

A task per stream (the pump, owned by whoever opened the stream) reads ahead by one message: cancelling a gRPC read kills the whole RPC,
so `receive` must not do it itself.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

from peers.interfaces import MAX_MESSAGE_BYTES, Traffic
from peers.transport.grpc_errors import as_remote_error, being_cancelled
from peers.transport.handling import BANNED
from peers.transport.limits import check_message_size, joined
from protocols.errors import LocalProtocolError, RemoteError, RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.ids import BytesLike, PeerId

_FINISHED = b""
_INVENTED_DETAILS = "Internal error from Core"
_FINAL_STATUS_S = 1.0
_STATUS_WAIT_S = 1.0

DialledCall = grpc.aio.StreamStreamCall[bytes, bytes]
_Value = TypeVar("_Value")
ServedContext = grpc.aio.ServicerContext[bytes, bytes]


def _at_once(asking: Coroutine[Any, Any, _Value]) -> _Value:
    """The result of asking a finished RPC, which never waits."""
    try:
        asking.send(None)
    except StopIteration as answer:
        value: _Value = answer.value
        return value
    raise RuntimeError("the RPC is not finished")


class GrpcStream(ABC):
    """What both sides share; implements `Stream`.

    Args:
        peer: the authenticated other side.
        traffic: totals of this transport.
    """

    def __init__(self, peer: PeerId, traffic: Traffic) -> None:
        self._peer = peer
        self._traffic = traffic
        self._inbox: asyncio.Queue[bytes | RemoteError | None] = asyncio.Queue(maxsize=1)
        self._received_all = False
        self._failure: RemoteError | None = None
        self._finished = False
        self._sending = asyncio.Lock()

    @property
    def peer(self) -> PeerId:
        """The authenticated other side."""
        return self._peer

    async def pump(self) -> None:
        """Move messages from the network to `receive`, until the end."""
        while True:
            arrived = await self._read()
            if isinstance(arrived, bytes):
                self._traffic.received_bytes += len(arrived)
                if arrived == _FINISHED:
                    arrived = None
                elif len(arrived) > MAX_MESSAGE_BYTES:
                    arrived = RemoteProtocolError(self._peer, f"a message of {len(arrived)} bytes, above the limit of {MAX_MESSAGE_BYTES}")
            await self._inbox.put(arrived)
            if not isinstance(arrived, bytes):
                return

    async def send(self, *parts: BytesLike) -> None:
        """See `Stream.send`."""
        check_message_size(parts)
        message = joined(parts)
        async with self._sending:
            if self._failure is not None:
                raise self._failure
            if self._finished:
                raise LocalProtocolError("sending on a stream after finish_sending")
            await self._guarded_write(message)

    async def receive(self) -> bytes | None:
        """See `Stream.receive`."""
        if self._received_all:
            return None
        if self._failure is not None and self._inbox.empty():
            raise self._failure
        arrived = await self._inbox.get()
        if arrived is None:
            self._received_all = True
        elif isinstance(arrived, RemoteError):
            self._failure = arrived
            raise arrived
        return arrived

    async def finish_sending(self) -> None:
        """See `Stream.finish_sending`."""
        async with self._sending:
            if self._finished or self._failure is not None:
                return
            self._finished = True
            try:
                await self._guarded_write(_FINISHED)
            except RemoteError:
                return  # the next operation tells

    async def _guarded_write(self, message: bytes) -> None:
        try:
            await self._write(message)
        except RemoteError as error:
            self._failure = error
            raise
        except asyncio.CancelledError:
            self._failure = RemoteTimeout(self._peer, "a message was cancelled while it was being sent")
            raise
        self._traffic.sent_bytes += len(message)
        self._traffic.delivered_bytes += len(message)

    @abstractmethod
    async def _read(self) -> bytes | RemoteError | None:
        """Next message, `_FINISHED`, None at gRPC's end of stream, or why it broke."""

    @abstractmethod
    async def _write(self, message: bytes) -> None:
        """Send, or raise RemoteError."""


class DialledStream(GrpcStream):
    """The side that dialled.

    Args:
        peer: whom.
        method: for error messages.
        call: the RPC.
        traffic: totals of this transport.
    """

    def __init__(self, peer: PeerId, method: str, call: DialledCall, traffic: Traffic) -> None:
        super().__init__(peer, traffic)
        self._method = method
        self._call = call
        self._status: grpc.aio.AioRpcError | None = None
        self._status_known = asyncio.Event()
        call.add_done_callback(self._note_status)

    async def connected(self) -> None:
        """Wait for the connection. A refusal that is faster than that is left for `receive`.

        Raises:
            RemoteTimeout: there is no connection.
        """
        try:
            await self._call.wait_for_connection()
        except grpc.aio.AioRpcError as error:
            failure = as_remote_error(error, self._peer, self._method)
            if isinstance(failure, RemoteTimeout):
                raise failure from None
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            raise self._dropped() from None

    async def finish_sending(self) -> None:
        """See `Stream.finish_sending`."""
        await super().finish_sending()
        await self._call.done_writing()

    async def _read(self) -> bytes | RemoteError | None:
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError:
            return await self._why_over()
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            return self._dropped()
        return message if isinstance(message, bytes) else None

    async def _write(self, message: bytes) -> None:
        try:
            await self._call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            ended = RemoteTimeout(self._peer, f"it has ended the stream {self._method!r}")
            raise await self._why_over() or ended from None
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            raise self._dropped() from None

    def _note_status(self, call: DialledCall) -> None:
        """Called whenever gRPC sets the RPC's status. A write that fails because the other side has ended the RPC makes it invent one,
        before or after the real one, and a refusal would look like a broken connection: keep the real one.
        """
        details = _at_once(call.details())
        if details != _INVENTED_DETAILS:
            self._status = grpc.aio.AioRpcError(
                _at_once(call.code()), grpc.aio.Metadata(), _at_once(call.trailing_metadata()), details, None
            )
            self._status_known.set()

    async def _why_over(self) -> RemoteError | None:
        """The error behind the RPC's final status; None if its handler returned."""
        try:
            async with asyncio.timeout(_FINAL_STATUS_S):
                await self._status_known.wait()
        except TimeoutError:
            return RemoteTimeout(self._peer, f"the stream {self._method!r} broke while sending")
        if self._status is None or self._status.code() is grpc.StatusCode.OK:
            return None
        return as_remote_error(self._status, self._peer, self._method)

    def _dropped(self) -> RemoteTimeout:
        return RemoteTimeout(self._peer, f"the stream {self._method!r} was dropped at this end")


class ServedStream(GrpcStream):
    """The side that serves.

    Args:
        peer: who dialled.
        context: the RPC.
        traffic: totals of this transport.
        is_banned: asked before every message.
    """

    def __init__(self, peer: PeerId, context: ServedContext, traffic: Traffic, is_banned: Callable[[PeerId], bool]) -> None:
        super().__init__(peer, traffic)
        self._context = context
        self._is_banned = is_banned

    async def _read(self) -> bytes | RemoteError | None:
        try:
            message: object = await self._context.read()  # the stub forgets EOF
        except grpc.aio.BaseError as error:
            return self._broken(error)
        if self._is_banned(self._peer):
            return RemoteRefusal(self._peer, BANNED, "this peer is banned from the run")
        return message if isinstance(message, bytes) else self._broken("it never said that it had finished")

    async def _write(self, message: bytes) -> None:
        try:
            await self._context.write(message)
        except grpc.aio.BaseError as error:
            raise self._broken(error) from None

    def _broken(self, why: object) -> RemoteTimeout:
        return RemoteTimeout(self._peer, f"the stream broke: {why}")
