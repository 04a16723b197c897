"""A pipe's parsing, whatever the pieces in which the bytes arrive; its writing, and its ends."""

from __future__ import annotations

import asyncio
import random
import struct

import pytest

from peers.transport.pipe import MAX_PREAMBLE_BYTES, Pipe
from protocols.errors import RemoteProtocolError
from protocols.ids import BytesLike

PREAMBLE = b"the daemon says hello" * 10
FRAMES = [(1, b""), (2, b"x"), (3, b"abc" * 100), (4, bytes(70_000)), (5, b""), (6, bytes(range(256)) * 1024), (7, b"end" * 20_000)]


def framed(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BI", kind, len(payload)) + payload


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80, value >> 7]) if value > 0x7F else bytes([value])


class FakeTransport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.paused = False
        self.aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def writelines(self, list_of_data: object) -> None:
        for data in list_of_data:  # type: ignore[attr-defined]
            self.write(data)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


class Sink:
    """Notes everything; refuses frames of kind 66 and up by size, 77 by content."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.notes: list[str] = []

    def admit(self, kind: int, size_bytes: int) -> None:
        if kind == 66:
            raise RemoteProtocolError(None, "too large")

    def frame(self, kind: int, payload: BytesLike) -> None:
        if kind == 77:
            raise RemoteProtocolError(None, "nonsense")
        self.frames.append((kind, bytes(payload)))

    def misbehaved(self, error: RemoteProtocolError) -> None:
        self.notes.append(error.reason)

    def writable(self) -> None:
        self.notes.append("writable")

    def ended(self) -> None:
        self.notes.append("ended")


class Line:
    """A pipe on a fake transport, and how the far side feeds it."""

    def __init__(self) -> None:
        self.preambles: list[bytes | None] = []
        self.pipe = Pipe(lambda _pipe, message: self.preambles.append(message))
        self.transport = FakeTransport()
        self.pipe.connection_made(self.transport)
        self.unread = b""

    def feed(self, data: bytes, most: int = 2**20) -> None:
        """As the event loop does: never while reading is paused, never more than there is room for."""
        self.unread += data
        while self.unread and not self.transport.paused:
            room = self.pipe.get_buffer(-1)
            count = min(len(room), len(self.unread), most)
            assert count
            room[:count] = self.unread[:count]
            self.unread = self.unread[count:]
            self.pipe.buffer_updated(count)


@pytest.mark.parametrize("most", [1, 2, 7, 4096, 65_536, 2**20])
def test_frames_come_out_whole_whatever_the_pieces(most: int) -> None:
    line, sink = Line(), Sink()
    line.feed(varint(len(PREAMBLE)) + PREAMBLE + b"".join(framed(*frame) for frame in FRAMES), most)
    assert line.preambles == [PREAMBLE]
    assert line.transport.paused, "frames wait for whoever takes them"
    line.pipe.start(sink)
    line.feed(b"", most)
    assert sink.frames == FRAMES
    assert sink.notes == []


def test_random_pieces() -> None:
    draw = random.Random(11)
    for _ in range(50):
        frames = [(draw.randrange(60), draw.randbytes(draw.choice((0, 3, 1000, 65_530, 65_536, 200_000)))) for _ in range(8)]
        line, sink = Line(), Sink()
        line.feed(varint(1) + b"!")
        line.pipe.start(sink)
        data = b"".join(framed(*frame) for frame in frames)
        while data:
            count = draw.choice((1, 10, 5000, 65_536, 150_000))
            line.feed(data[:count])
            data = data[count:]
        assert sink.frames == frames


def test_another_sink_can_take_over_within_a_frame() -> None:
    line, second = Line(), Sink()

    class First(Sink):
        def frame(self, kind: int, payload: BytesLike) -> None:
            super().frame(kind, payload)
            line.pipe.start(second)

    first = First()
    line.feed(varint(1) + b"!")
    line.pipe.start(first)
    line.feed(b"".join(framed(*frame) for frame in FRAMES))
    assert (first.frames, second.frames) == (FRAMES[:1], FRAMES[1:])


@pytest.mark.parametrize("bad", [struct.pack(">BI", 66, 2**31), framed(77, b"x"), framed(77, bytes(100_000))])
def test_after_misbehaviour_nothing_more_is_heard(bad: bytes) -> None:
    line, sink = Line(), Sink()
    line.feed(varint(1) + b"!")
    line.pipe.start(sink)
    line.feed(framed(1, b"good") + bad + framed(2, b"more") * 10_000)
    assert sink.frames == [(1, b"good")]
    assert len(sink.notes) == 1
    assert line.pipe.open, "it is the sink that decides"
    line.pipe.connection_lost(None)
    assert sink.notes[-1] == "ended"


def test_a_preamble_that_never_ends_closes_the_pipe() -> None:
    for data in (b"\xff" * 20, varint(MAX_PREAMBLE_BYTES - 1)[:1] + b"\xff\xff\xff\xff\x7f"):
        line = Line()
        line.feed(data, most=1)
        assert line.transport.aborted
        assert line.preambles == []


def test_the_daemon_hangs_up_before_it_speaks() -> None:
    line = Line()
    line.feed(varint(10) + b"half")
    line.pipe.connection_lost(None)
    assert line.preambles == [None]


def test_an_end_between_preamble_and_start_is_told_to_the_sink_behind_what_came_before() -> None:
    line, sink = Line(), Sink()
    line.feed(varint(1) + b"!" + framed(3, b"last words"))
    line.pipe.connection_lost(None)
    line.pipe.start(sink)
    assert sink.frames == [(3, b"last words")]
    assert sink.notes == ["ended"]


def test_writing() -> None:
    line, sink = Line(), Sink()
    line.pipe.write_preamble(b"p" * 300)
    line.pipe.start(sink)
    large = bytes(50_000)
    line.pipe.write(3, b"small ", memoryview(b"parts"))
    line.pipe.write(4, large, bytearray(b"!"))
    assert line.transport.written == varint(300) + b"p" * 300 + framed(3, b"small parts") + framed(4, large + b"!")
    line.pipe.pause_writing()
    assert line.pipe.congested
    line.pipe.resume_writing()
    assert not line.pipe.congested
    assert sink.notes == ["writable"]
    line.pipe.close()
    line.pipe.write(5)
    line.pipe.connection_lost(None)
    line.pipe.write(5)
    line.pipe.close()
    assert not line.pipe.open
    assert line.transport.written.endswith(b"!"), "nothing after the end"
