"""Records over one TCP connection: bytes in, records out, and the reverse."""

from __future__ import annotations

import asyncio
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import cast

from cryptography.exceptions import InvalidTag

from peers.transport.links_buffers import Buffers
from peers.transport.links_wire import (
    HEADER,
    MAX_CONTROL_BYTES,
    MAX_KEY_BYTES,
    MAX_RECORD_BYTES,
    OVERHEAD_BYTES,
    RECORD_BYTES,
    TAG_BYTES,
    RecordKey,
    RecordKind,
)
from protocols.errors import RemoteError, RemoteProtocolError, RemoteTimeout
from protocols.ids import BytesLike, PeerId

SMALL_PART_BYTES = 16 * 1024
"""Parts of a message up to this size are joined into one record instead of getting one each."""

_AHEAD_BYTES = 256  # read beyond the end of a record: small records and the next header come with it
_FIRST_BUFFER_BYTES = 2 * MAX_CONTROL_BYTES
_SEND_BUFFER_BYTES = RECORD_BYTES + SMALL_PART_BYTES + 2 * OVERHEAD_BYTES
_TCP_NOTSENT_LOWAT = 25  # Linux; Python names it from 3.12 on
_UNSENT_BYTES = 2**17
_SILENCE_S = 20
"""Bytes that nobody acknowledges, or a peer that does not answer the kernel's probes, break the connection after this long."""


def set_socket_options(connection: socket.socket) -> None:
    """No waiting for more to send; little in the kernel that TCP cannot send yet, or credit and heartbeats queue behind seconds of blocks
    on a slow uplink; and a dead machine is noticed even where nobody sets a deadline.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", _SILENCE_S // 2), ("TCP_KEEPINTVL", _SILENCE_S // 4), ("TCP_KEEPCNT", 2)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_S * 1000)


def record_payloads(parts: Sequence[BytesLike]) -> Iterator[BytesLike]:
    """Cut a message into records: small parts are joined, large ones are looked at in place."""
    small: list[memoryview] = []
    small_bytes = 0
    for part in parts:
        view = memoryview(part)
        if not view.nbytes:
            continue
        view = view.cast("B")
        if view.nbytes <= SMALL_PART_BYTES and small_bytes + view.nbytes <= SMALL_PART_BYTES:
            small.append(view)
            small_bytes += view.nbytes
            continue
        if small:
            yield b"".join(small)
            small, small_bytes = [], 0
        for offset in range(0, view.nbytes, RECORD_BYTES):
            yield view[offset : offset + RECORD_BYTES]
    if small:
        yield b"".join(small)


class RecordSocket(asyncio.BufferedProtocol, ABC):
    """One TCP connection that speaks records once it has keys.

    Bytes are received into a buffer of ours and decrypted to where the subclass wants them; records are sealed into a buffer that goes
    to the kernel as it is.

    Args:
        buffers: of this transport.
    """

    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers
        self._transport: asyncio.Transport | None = None
        self._sealing: RecordKey | None = None
        self._opening: RecordKey | None = None
        self._received = memoryview(bytearray(_FIRST_BUFFER_BYTES))
        self._filled = 0
        self._needed = HEADER.size
        self._in_header = True
        self._max_payload_bytes = MAX_CONTROL_BYTES
        self._failure: RemoteError | None = None
        self._paused = False
        self._waiting: list[asyncio.Future[None]] = []  # until the kernel has taken everything

    # What a subclass says

    @property
    @abstractmethod
    def peer(self) -> PeerId | None:
        """Whom to blame."""

    @abstractmethod
    def place(self, kind: int, value: int, size_bytes: int) -> memoryview | None:
        """Where the payload of a record shall go, exactly `size_bytes`; None for anywhere. Nothing about the record is proved yet."""

    @abstractmethod
    def arrived(self, kind: RecordKind, value: int, payload: memoryview) -> None:
        """A genuine record. Raises RemoteError to break the connection."""

    @abstractmethod
    def lost(self, error: RemoteError) -> None:
        """The connection is over. Called once."""

    # Life

    @property
    def alive(self) -> bool:
        """Connected and not broken."""
        return self._failure is None and self._transport is not None

    @property
    def used_bytes(self) -> int:
        """The larger amount that went under either key."""
        return max(key.used_bytes if key else 0 for key in (self._sealing, self._opening))

    def secure(self, sealing: bytes, opening: bytes) -> None:
        """From here on, speak records under these keys."""
        self._sealing, self._opening = RecordKey(sealing), RecordKey(opening)

    def allow_messages(self) -> None:
        """The other end has proved itself: its records may be large."""
        self._max_payload_bytes = MAX_RECORD_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._transport.set_write_buffer_limits(0)  # `resume_writing` then means that the kernel has everything, so buffers are free again
        with suppress(OSError):  # the other end may be gone already
            set_socket_options(transport.get_extra_info("socket"))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self.fail(RemoteTimeout(self.peer, f"the connection broke ({exc})" if exc else "the connection was closed at the other end"))

    def fail(self, error: RemoteError) -> None:
        """Break the connection, for that reason. Only the first counts."""
        if self._failure is not None:
            return
        self._failure = error
        if self._transport is not None:
            self._transport.abort()
        self._wake()
        self.lost(error)

    # Receiving

    def get_buffer(self, sizehint: int) -> memoryview:
        """See `asyncio.BufferedProtocol`."""
        return self._received[self._filled : self._needed + _AHEAD_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        self._filled += nbytes
        try:
            while self._filled >= self._needed and self._failure is None:
                self._step()
        except InvalidTag:
            # Anyone on the way can do that to a connection, so it is no evidence against the peer.
            self.fail(RemoteTimeout(self.peer, "a record was damaged or forged on its way"))
        except RemoteError as error:
            self.fail(error)

    def _step(self) -> None:
        if self._opening is None:
            self._consume(self._needed, self.greeted(bytes(self._received[: self._needed])))
        elif self._in_header:
            self._read_header()
        else:
            self._read_record(self._opening)

    def greeted(self, greeting: bytes) -> int:
        """Bytes before the first record, `expect_greeting` many; returns how many are needed next."""
        raise RemoteProtocolError(self.peer, "it spoke before the keys were agreed")

    def expect_greeting(self, size_bytes: int) -> None:
        """Before the first record comes a greeting that is not sealed."""
        self._needed = size_bytes

    def _read_header(self) -> None:
        sealed_bytes, _, _ = HEADER.unpack_from(self._received)
        if not TAG_BYTES <= sealed_bytes <= self._max_payload_bytes + TAG_BYTES:
            raise RemoteTimeout(self.peer, f"a record of {sealed_bytes} bytes: the connection is damaged")
        self._in_header = False
        self._needed = HEADER.size + sealed_bytes
        if self._needed + _AHEAD_BYTES > len(self._received):
            room = max(self._needed, RECORD_BYTES + OVERHEAD_BYTES) + _AHEAD_BYTES
            larger = memoryview(bytearray(room))
            larger[: self._filled] = self._received[: self._filled]
            self._received = larger

    def _read_record(self, key: RecordKey) -> None:
        record = self._received[: self._needed]
        _, kind, value = HEADER.unpack_from(record)
        size_bytes = self._needed - OVERHEAD_BYTES
        payload = self.place(kind, value, size_bytes)
        if payload is None:
            payload = memoryview(bytearray(size_bytes))
        key.open(record, payload)
        if key.used_bytes > MAX_KEY_BYTES:
            raise RemoteProtocolError(self.peer, "it used a key for longer than is safe")
        self._in_header = True
        self._consume(self._needed, HEADER.size)
        try:
            known = RecordKind(kind)
        except ValueError:
            raise RemoteProtocolError(self.peer, f"a record of unknown kind {kind}") from None
        if known is not RecordKind.MESSAGE and size_bytes > MAX_CONTROL_BYTES:
            raise RemoteProtocolError(self.peer, f"a {known.name} record of {size_bytes} bytes")
        self.arrived(known, value, payload)

    def _consume(self, size_bytes: int, needed: int) -> None:
        left = self._filled - size_bytes
        if left:
            self._received[:left] = bytes(self._received[size_bytes : self._filled])
        self._filled, self._needed = left, needed

    # Sending

    def write(self, data: BytesLike) -> None:
        """Send bytes that are not a record."""
        if self._transport is not None and self._failure is None:
            self._transport.write(data)

    def post(self, kind: RecordKind, value: int = 0, payload: bytes = b"") -> None:
        """Send a small record, behind what was sent before. Never waits; nothing happens on a broken connection."""
        if self._sealing is not None and self.alive:
            record = memoryview(bytearray(OVERHEAD_BYTES + len(payload)))
            self._sealing.seal(kind, value, payload, record)
            self.write(record)

    async def send_message(self, parts: Sequence[BytesLike], size_bytes: int, is_over: Callable[[], bool]) -> None:
        """Send one message; waits until the kernel has all of it. One task of a stream at a time.

        Args:
            parts: of the message.
            size_bytes: of all together.
            is_over: whether the stream has ended meanwhile; then the rest is not sent.

        Raises:
            RemoteError: the connection is broken.

        Cancellation: the message may be cut short, after which only small records make sense on this stream.
        """
        buffer = self.buffers.take(_SEND_BUFFER_BYTES)
        view, filled, value = memoryview(buffer), 0, size_bytes
        for payload in record_payloads(parts):
            if filled + OVERHEAD_BYTES + len(payload) > _SEND_BUFFER_BYTES:
                await self._flush(view[:filled])
                filled = 0
            if self._sealing is None or is_over():
                break
            filled += self._sealing.seal(RecordKind.MESSAGE, value, payload, view[filled:])
            value = 0
        await self._flush(view[:filled])
        self.buffers.give(buffer)  # only now: whatever went wrong before, the kernel may not have all of it

    async def _flush(self, records: memoryview) -> None:
        if self._failure is None and self._sealing is not None and self._sealing.used_bytes > MAX_KEY_BYTES:
            self.fail(RemoteTimeout(self.peer, "too much was sent under one key"))
        self.write(records)
        while self._paused and self._failure is None:
            drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(drained)
            await drained
        if self._failure is not None:
            raise self._failure

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._paused = True

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._paused = False
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for drained in waiting:
            if not drained.done():
                drained.set_result(None)
