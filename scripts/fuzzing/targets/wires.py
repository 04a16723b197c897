"""Frames and records of the transports, and what the health probe reads."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from peers.interfaces import Traffic
from peers.libp2p_wire import encode_reply, encode_request, read_reply, read_request
from peers.probe.report import Check, ProbeReport
from peers.probe.wire import bytes_field, ping_time, read_fields, unary_reply
from peers.transport.handling import Answered, Broken, Refusal
from peers.transport.libp2p_frames import (
    Kind,
    Opening,
    decode_credit,
    decode_refusal,
    encode_credit,
    encode_refusal,
    require_size,
)
from peers.transport.links_buffers import Buffers
from peers.transport.links_ends import decode_end, decode_open, encode_end, encode_open
from peers.transport.links_serving import LinkServer, ServedLink
from peers.transport.links_socket import RecordSocket
from peers.transport.links_wire import HEADER, OVERHEAD_BYTES, LinkReply, RecordKey, RecordKind, decode_request
from peers.transport.links_wire import encode_request as encode_link_request
from peers.transport.pipe import Pipe
from protocols.errors import LocalProtocolError, RemoteError, RemoteProtocolError, RemoteRefusal
from protocols.ids import BytesLike
from scripts.fuzzing.formats import BYTES, FIELDS, JSON, PROTOBUF
from scripts.fuzzing.target import SENDER, Target, message
from scripts.fuzzing.world import listed, unlisted

_T = TypeVar("_T")
_REFUSAL = Refusal("busy", "too many at once")
_CALL_ID = b"c" * 16


def _at_once(work: Coroutine[Any, Any, _T]) -> _T:
    """Run what never waits, because all of its bytes are there."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        work.close()
    raise RuntimeError("it waits for more than there is")


class _Bytes:
    """The part of `asyncio.StreamReader` that framed calls use."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def readexactly(self, count: int) -> bytes:
        taken, self._data = self._data[:count], self._data[count:]
        if len(taken) < count:
            raise asyncio.IncompleteReadError(taken, count)
        return taken


def _read_call(data: bytes) -> bytes:
    return _at_once(read_request(_Bytes(data), SENDER))  # type: ignore[arg-type]


def _read_answer(data: bytes) -> bytes:
    return _at_once(read_reply(_Bytes(data), SENDER))  # type: ignore[arg-type]


class _Sink:
    """Takes frames of any kind that has a size."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def admit(self, kind: int, size_bytes: int) -> None:
        if kind != Kind.DATA:
            require_size(kind, size_bytes, SENDER)
        elif size_bytes > 2**20:
            raise RemoteProtocolError(SENDER, "too large")

    def frame(self, kind: int, payload: BytesLike) -> None:
        match kind:
            case Kind.OPEN:
                self.seen.append(Opening.decode(payload, SENDER))
            case Kind.CREDIT:
                self.seen.append(decode_credit(payload))
            case Kind.REFUSED:
                self.seen.append(decode_refusal(payload))
            case _:
                self.seen.append((kind, bytes(payload)))

    def misbehaved(self, error: RemoteProtocolError) -> None:
        self.seen.append(error.reason)

    def writable(self) -> None:
        pass

    def ended(self) -> None:
        self.seen.append("ended")


class _NoTransport(asyncio.Transport):
    """Goes nowhere."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def abort(self) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return _NoSocket()


class _NoSocket:
    def setsockopt(self, *_: int) -> None:
        pass


def _arrive(protocol: Pipe | RecordSocket, data: bytes, most: int) -> None:
    while data and (not isinstance(protocol, RecordSocket) or protocol.alive):
        room = memoryview(protocol.get_buffer(-1))
        if not len(room):
            raise RuntimeError("no room for what comes")
        taken = min(len(room), len(data), most)
        room[:taken] = data[:taken]
        protocol.buffer_updated(taken)
        data = data[taken:]


def _piped(data: bytes) -> list[object]:
    """The daemon's preamble, then frames. The first byte says in which portions they come."""
    sink, heard = _Sink(), []

    def on_preamble(pipe: Pipe, words: bytes | None) -> None:
        heard.append(words)
        pipe.start(sink)

    pipe = Pipe(on_preamble)
    pipe.connection_made(_NoTransport())
    _arrive(pipe, data[1:], 1 + 7 * data[0] if data and data[0] else 2**20)
    return [*heard, *sink.seen]


def _frame(kind: int, payload: bytes) -> bytes:
    return bytes([kind]) + len(payload).to_bytes(4, "big") + payload


def _pipe_seeds() -> list[bytes]:
    opening = Opening("stream", "state.pieces", 2.5, b"chain").encode()
    frames = _frame(Kind.OPEN, opening) + _frame(Kind.DATA, b"hello") + _frame(Kind.CREDIT, encode_credit(7))
    frames += _frame(Kind.REFUSED, encode_refusal(_REFUSAL)) + _frame(Kind.FINISHED, b"")
    return [b"\x00\x05words" + frames, b"\x01\x05words" + frames, b"\x00\x00" + _frame(Kind.DATA, bytes(70000))]


class _Server(LinkServer):
    """Knows one link and serves nothing."""

    def __init__(self) -> None:
        super().__init__(SENDER, "127.0.0.1:0", lambda peer: False, Traffic(), Buffers())

    def start(self, stream: Any, method: str, ended: Any) -> Any:
        return _Busy()


class _Busy:
    def cancel(self) -> None:
        pass


class _Link(ServedLink):
    """Its timers are nobody's business."""

    def __init__(self) -> None:
        super().__init__(_Server(), Buffers())
        self.failed: RemoteError | None = None
        self._peer = SENDER
        self.connection_made(_NoTransport())
        self.secure(b"k" * 16, b"o" * 16)
        self.expect_greeting(HEADER.size)

    def lost(self, error: RemoteError) -> None:
        self.failed = error

    def _close_after(self, delay_s: float, reason: str) -> None:
        pass

    def _begin(self, peer: Any, method: str, timeout_s: float) -> None:
        self._stream = self._server.stream_for(self, peer)
        self._ended = self._left = False


def _linked(data: bytes) -> str:
    """Records, each sealed with the right key: kind, value and payload are the other end's. The last item is not sealed at all."""
    link = _Link()
    key, items = RecordKey(b"o" * 16), unlisted(data)
    for item in items[:-1]:
        kind, value, payload = int.from_bytes(item[:1], "big"), int.from_bytes(item[1:5], "little"), item[5:]
        record = memoryview(bytearray(OVERHEAD_BYTES + len(payload)))
        key.seal(kind, value, payload, record)  # type: ignore[arg-type]
        _arrive(link, bytes(record), 2**20)
        if not link.alive:
            return str(link.failed)
    _arrive(link, b"".join(items[-1:]), 2**20)
    return str(link.failed)


def _record(kind: int, value: int = 0, payload: bytes = b"") -> bytes:
    return bytes([kind]) + value.to_bytes(4, "little") + payload


def _link_seeds() -> list[bytes]:
    K = RecordKind
    stream = [_record(K.HELLO), _record(K.OPEN, 0, encode_open("blocks", 3.0))]
    stream += [_record(K.MESSAGE, 10, b"01234"), _record(K.MESSAGE, 0, b"56789"), _record(K.MESSAGE, 40_000, bytes(40_000))]
    return [listed(*stream, _record(K.FINISHED), _record(K.CLOSE), b""), listed(*stream[:3], _record(K.CREDIT, 5), b"\x20\x00\x00\x00")]


def _ended(payload: bytes) -> tuple[str, bool]:
    error, returned = decode_end(payload, SENDER)
    return f"{type(error).__name__} {error}", returned


def _probe_seeds() -> list[bytes]:
    return [bytes_field(1, _CALL_ID) + bytes_field(4, bytes_field(1, b"\x21" + bytes(8) + b"\x28\x01"))]


def _probed(data: bytes) -> float:
    return ping_time(unary_reply(data, _CALL_ID))


def _report_seeds() -> list[bytes]:
    checks = (Check("dial", True, "fine", 0.25, "s"), Check("ping", False, "no answer"))
    return [ProbeReport(checks, "agent", ("/p",), "/ip4/1.2.3.4", ("/ip4/1.1.1.1",)).to_json().encode()]


WIRES: tuple[Target, ...] = (
    Target("framed-call", _read_call, lambda: [encode_request(b"ask")], (RemoteProtocolError, EOFError), encode_request),
    Target(
        "framed-reply",
        _read_answer,
        lambda: [encode_reply(answer, "x") for answer in (Answered(b"reply"), _REFUSAL, Broken())],
        (RemoteProtocolError, RemoteRefusal, EOFError),
        lambda reply: encode_reply(Answered(reply), "x"),
    ),
    message("opening", Opening("call", "spec", 1.5, b"chain"), Opening("stream", "", 1.0, b""), form=BYTES),
    Target("refusal", decode_refusal, lambda: [encode_refusal(_REFUSAL)], (), encode_refusal),
    Target("pipe", _piped, _pipe_seeds, (), memory_factor=200),
    message("link-reply", LinkReply(b"i" * 16, b"s" * 32, 4001), form=BYTES, canonical=True),
    Target("link-request", lambda d: decode_request(d, SENDER), lambda: [encode_link_request(b"s" * 32)], encode=encode_link_request),
    Target(
        "link-open",
        lambda d: decode_open(d, SENDER),
        lambda: [encode_open("blocks", 5.0)],
        encode=lambda v: encode_open(*v),
        canonical=True,
    ),
    Target("link-end", _ended, lambda: [encode_end(end) for end in (Answered(None), _REFUSAL, Broken())]),
    Target("link-records", _linked, _link_seeds, (), form=FIELDS, memory_bytes=8 * 2**20),
    Target("probe-fields", lambda data: sorted(read_fields(data).items()), _probe_seeds, (ValueError,), form=PROTOBUF),
    Target("probe-ping", lambda data: repr(_probed(data)), _probe_seeds, (ValueError,), form=PROTOBUF),
    Target(
        "probe-report",
        lambda data: ProbeReport.from_json(data.decode(errors="replace")),
        _report_seeds,
        (LocalProtocolError,),
        form=JSON,
        memory_factor=200,
    ),
)
