"""The seams of this package: each has two implementations that pass one contract suite (`tests/contracts`).

    Transport     peers.transport.simulated.SimulatedTransport    peers.transport.direct.DirectTransport
                                                                (and its half peers.transport.grpc_mtls.GrpcTransport)
                                                                peers.transport.libp2p_streams.Libp2pStreams
                                                                (and both: peers.transport.fallback.FallbackTransport)
    RecordStore   peers.store.memory.MemoryStore                  peers.store.hivemind_dht.HivemindStore
    Clock         peers.clock.SimulatedClock                      peers.clock.SystemClock

Deadlines are seconds from now on the event loop's clock. Under the simulator the loop itself runs on virtual time, so `asyncio.timeout`
and `asyncio.sleep` cost nothing there and nothing else needs a simulated twin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from protocols.ids import BytesLike, PeerId, SwarmTime

MAX_CALL_BYTES = 4 * 2**20
"""Largest request or reply of a call; larger things are streamed."""

MAX_MESSAGE_BYTES = 2 * 2**20
"""Largest single message on a stream."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and as whom a peer can be dialled.

    Args:
        peer: identity the connection must prove.
        address: "host:port" of its gRPC server; a node name under the simulator; empty for a peer that only libp2p reaches.
        certificate_pem: the exact TLS leaf the peer announced in its signed presence; the dialler accepts no other. Empty under
            the simulator.
        libp2p_addresses: full multiaddresses that it announced.
    """

    peer: PeerId
    address: str
    certificate_pem: bytes = b""
    libp2p_addresses: tuple[str, ...] = ()


class Stream(Protocol):
    """An ordered, reliable, flow-controlled message stream to one peer. Messages are raw bytes, at most `MAX_MESSAGE_BYTES`."""

    @property
    def peer(self) -> PeerId:
        """The authenticated other side."""

    async def send(self, *parts: BytesLike) -> None:
        """Queue one message, the concatenation of its parts; waits while the other side does not read. Parts must not change meanwhile.

        Raises:
            LocalProtocolError: the message is empty or too large, or follows `finish_sending`.
            RemoteTimeout: the stream is broken.
        """

    async def receive(self) -> bytes | memoryview | None:
        """Next message, or None once the other side has finished sending. It is valid until the next `receive`: copy what you keep.

        Raises:
            RemoteTimeout: the stream is broken.
            RemoteProtocolError: an oversized message.
            RemoteRefusal: the handler at the other side refused the stream.
        """

    async def finish_sending(self) -> None:
        """Say that no more messages follow; receiving goes on. A handler's return does this by itself."""


CallHandler = Callable[[PeerId, bytes], Awaitable[bytes]]
"""Serves one call: (authenticated caller, request) -> reply. May raise RemoteRefusal or RemoteProtocolError, which the caller sees as
RemoteRefusal with the same code and sentence; anything else is our bug and the caller sees code "internal"."""

StreamHandler = Callable[[Stream], Awaitable[None]]
"""Serves one incoming stream until it returns; the same rule for exceptions."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """What a peer serves, by method name ("join", "exchange", ...)."""

    calls: Mapping[str, CallHandler] = field(default_factory=dict)
    streams: Mapping[str, StreamHandler] = field(default_factory=dict)


def merged(*parts: Handlers) -> Handlers:
    """All handlers of several parts of a peer; their names must differ."""
    calls = {name: handler for part in parts for name, handler in part.calls.items()}
    streams = {name: handler for part in parts for name, handler in part.streams.items()}
    return Handlers(calls, streams)


@dataclass(slots=True)
class Traffic:
    """Bytes of payload that went through a transport since it started.

    Args:
        sent_bytes, received_bytes: of calls and streams.
        delivered_bytes: of what was sent on streams, how much the other side is known to have read; where a transport cannot know, what
            it was able to send.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    delivered_bytes: int = 0


class Transport(Protocol):
    """Carries calls and streams between authenticated members of one run."""

    @property
    def traffic(self) -> Traffic:
        """Running totals."""

    def serve(self, handlers: Handlers) -> AbstractAsyncContextManager[str]:
        """Accept connections while the context is open; yields the address ("host:port") that others can dial.

        Raises:
            NetworkSetupError: the port is taken or the address is not ours.
        """

    async def call(self, to: Endpoint, method: str, request: bytes, *, timeout_s: float) -> bytes:
        """One request, one reply.

        Raises:
            RemoteGone: nobody listens there.
            RemoteTimeout: unreachable, broken, or no reply within `timeout_s`.
            RemoteRefusal: the handler refused, or nobody serves `method` there (code "unknown-method").
            RemoteProtocolError: an oversized reply.
        """

    def stream(self, to: Endpoint, method: str, *, timeout_s: float) -> AbstractAsyncContextManager[Stream]:
        """Open a stream; `timeout_s` bounds its whole life. Leaving the context closes it at once.

        Raises:
            RemoteGone: nobody listens there.
            RemoteTimeout: unreachable, or `timeout_s` ran out (from any operation on the stream).
        """

    async def close(self) -> None:
        """Drop every connection. Idempotent."""


class RecordStore(Protocol):
    """A dictionary shared by the swarm: key -> subkey -> signed record, each with an expiry. Values are opaque, bounded bytes that were
    validated by the `RecordValidator` the store was built with: on store by every node that keeps them, and again on get.
    """

    async def put(self, key: str, subkey: str, value: bytes, expires_at: SwarmTime) -> bool:
        """Store one record; False if no node accepted it (a newer one exists, or it was refused)."""

    async def get(self, key: str) -> Mapping[str, bytes]:
        """All unexpired, valid records under `key`, by subkey. Empty when there are none or nobody answers."""

    async def close(self) -> None:
        """Stop taking part. Idempotent."""


RecordValidator = Callable[[str, str, bytes, SwarmTime, SwarmTime], str | None]
"""(key, subkey, value, expires_at, now) -> None if acceptable, else the reason in one sentence. Pure."""


class Clock(Protocol):
    """Wall-clock time that members compare with each other."""

    def now(self) -> SwarmTime:
        """Seconds since the Unix epoch."""
