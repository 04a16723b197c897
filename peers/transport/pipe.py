"""One raw libp2p stream, as the daemon hands it over on a Unix socket: first a word of the daemon's, then our frames, both ways.

    preamble   varint length | protobuf message of the daemon
    frame      u8 kind | u32 big-endian length | payload

A pipe never stops reading, because the daemon says nothing about the end of a stream to somebody who does not read. What bounds memory is
the sink, which is asked before a payload is given room. Nothing relies on half-close, which the daemon turns into a teardown.

Large payloads are received straight into the buffer that is handed out, and large parts are sent from where they lie: a copy costs about
as much as the daemon's encryption.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Protocol, cast

from protocols.errors import RemoteProtocolError
from protocols.ids import BytesLike

MAX_PREAMBLE_BYTES = 16 * 1024

OnPreamble = Callable[["Pipe", bytes | None], None]

_HEAD = struct.Struct(">BI")
_SCRATCH_BYTES = 64 * 1024
_JOIN_BELOW_BYTES = 16 * 1024
_MAX_VARINT_BYTES = 5


class FrameSink(Protocol):
    """What takes the frames of a pipe. Everything is called by the event loop and must not block."""

    def admit(self, kind: int, size_bytes: int) -> None:
        """Whether a frame of that kind and size may come now; may be asked twice of one frame.

        Raises:
            RemoteProtocolError: it may not.
        """

    def frame(self, kind: int, payload: BytesLike) -> None:
        """One whole frame, ours to keep.

        Raises:
            RemoteProtocolError: it is wrong.
        """

    def misbehaved(self, error: RemoteProtocolError) -> None:
        """What `admit` or `frame` raised. No more frames follow; the pipe stays open until the sink closes it."""

    def writable(self) -> None:
        """What was written has left; ask `Pipe.congested` again."""

    def ended(self) -> None:
        """The pipe is gone, whoever closed it. Called once."""


class Pipe(asyncio.BufferedProtocol):
    """One stream. Calls `on_preamble` when the daemon has spoken, then waits for `start` before it reads frames.

    Args:
        on_preamble: takes the pipe and the daemon's message, or None if the daemon hung up before it. Without this no preamble is
            expected.
    """

    def __init__(self, on_preamble: OnPreamble | None) -> None:
        self._on_preamble = on_preamble
        self._transport: asyncio.Transport | None = None
        self._sink: FrameSink | None = None
        self._deaf = False  # the other side broke the rules: the rest of what it sends is thrown away
        self._congested = False
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._held = 0
        self._body: memoryview | None = None
        self._body_kind = 0
        self._filled = 0

    # What the owner does

    @property
    def congested(self) -> bool:
        """Whether something that was written has not left yet."""
        return self._congested

    @property
    def open(self) -> bool:
        """Whether it still leads anywhere."""
        return self._transport is not None and not self._transport.is_closing()

    def start(self, sink: FrameSink) -> None:
        """Give all frames from now on to `sink`; may be called again, also from within `frame`, to hand over to another one."""
        first, self._sink = self._sink is None, sink
        if not first:
            return
        self._take_frames()
        if self._transport is not None:
            self._transport.resume_reading()
        else:
            sink.ended()

    def write_preamble(self, message: bytes) -> None:
        """Speak to the daemon."""
        if self._transport is not None:
            self._transport.write(_varint(len(message)) + message)

    def write(self, kind: int, *parts: BytesLike) -> None:
        """Send one frame, the concatenation of the parts. They must not change while the pipe is `congested`."""
        if self._transport is None or self._transport.is_closing():
            return  # the sink hears of the end
        size_bytes = sum(memoryview(part).nbytes for part in parts)
        head = _HEAD.pack(kind, size_bytes)
        if size_bytes < _JOIN_BELOW_BYTES:
            self._transport.write(b"".join((head, *parts)))
        else:
            self._transport.writelines((head, *parts))

    def close(self) -> None:
        """Let go at once; what was written and has not left is lost. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from asyncio's
        self._transport.set_write_buffer_limits(high=0)  # congested means: something has not left, so its buffer must not change
        if self._on_preamble is None:
            self._transport.pause_reading()

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Called by asyncio: where the next bytes go."""
        return self._scratch[self._held :] if self._body is None else self._body[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Called by asyncio: so many bytes went there."""
        if self._deaf:
            return
        if self._body is None:
            self._held += nbytes
            if self._on_preamble is not None:
                self._take_preamble()
            self._take_frames()
            return
        self._filled += nbytes
        if self._filled == len(self._body):
            kind, body, self._body = self._body_kind, self._body, None
            self._deliver(kind, body)

    def pause_writing(self) -> None:
        """Called by asyncio."""
        self._congested = True

    def resume_writing(self) -> None:
        """Called by asyncio."""
        self._congested = False
        if self._sink is not None:
            self._sink.writable()

    def eof_received(self) -> bool:
        """Called by asyncio: an end in one direction is an end in both."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        on_preamble, self._on_preamble = self._on_preamble, None
        self._transport = None
        if self._sink is not None:
            self._sink.ended()
        elif on_preamble is not None:
            on_preamble(self, None)

    # Parsing

    def _take_preamble(self) -> None:
        size_bytes, head_bytes = _read_varint(bytes(self._scratch[: min(self._held, _MAX_VARINT_BYTES)]))
        if size_bytes > MAX_PREAMBLE_BYTES:
            self.close()
            return
        end = head_bytes + size_bytes
        if not head_bytes or self._held < end or self._on_preamble is None:
            return
        message = bytes(self._scratch[head_bytes:end])
        self._drop(end)
        on_preamble, self._on_preamble = self._on_preamble, None
        if self._transport is not None:
            self._transport.pause_reading()  # until somebody takes the frames
        on_preamble(self, message)

    def _take_frames(self) -> None:
        taken = 0
        while self._sink is not None and self._body is None and not self._deaf and self._held - taken >= _HEAD.size:
            kind, size_bytes = _HEAD.unpack_from(self._scratch, taken)
            if not self._admitted(kind, size_bytes):
                break
            begin = taken + _HEAD.size
            here = min(size_bytes, self._held - begin)
            if here < size_bytes <= _SCRATCH_BYTES - _HEAD.size:
                break  # a small one: the rest will come
            taken = begin + here
            if here == size_bytes:
                self._deliver(kind, bytes(self._scratch[begin:taken]))
            else:
                self._body, self._body_kind, self._filled = memoryview(bytearray(size_bytes)), kind, here
                self._body[:here] = self._scratch[begin:taken]
        if not self._deaf:
            self._drop(taken)

    def _drop(self, count: int) -> None:
        if count:
            left = self._held - count
            self._scratch[:left] = bytes(self._scratch[count : self._held])
            self._held = left

    def _admitted(self, kind: int, size_bytes: int) -> bool:
        try:
            if self._sink is not None:
                self._sink.admit(kind, size_bytes)
        except RemoteProtocolError as error:
            self._stop_listening(error)
        return not self._deaf

    def _deliver(self, kind: int, payload: BytesLike) -> None:
        try:
            if self._sink is not None:
                self._sink.frame(kind, payload)
        except RemoteProtocolError as error:
            self._stop_listening(error)

    def _stop_listening(self, error: RemoteProtocolError) -> None:
        self._deaf, self._held = True, 0
        if self._sink is not None:
            self._sink.misbehaved(error)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes) -> tuple[int, int]:
    """A varint at the start of `data`.

    Returns:
        (its value, how many bytes it takes); (0, 0) while it is incomplete, and a value above all limits where it never ends.
    """
    value = 0
    for position, byte in enumerate(data):
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value, position + 1
    return (2**35 if len(data) >= _MAX_VARINT_BYTES else 0), 0
