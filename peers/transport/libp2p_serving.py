"""The serving half of the transport over libp2p streams: who dials, whether it is a member, and which handler answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from peers.interfaces import CallHandler, Handlers, StreamHandler, Traffic
from peers.transport.handling import BAD_IDENTITY, BANNED, BUSY, PROTOCOL_ERROR, Answered, Broken, Refusal, run_handler, unknown_method
from peers.transport.libp2p_call import ServedCall
from peers.transport.libp2p_frames import Kind, Opening, encode_refusal, require_size
from peers.transport.libp2p_stream import ServedStream
from peers.transport.limits import check_call_size
from peers.transport.membership import MembershipProof
from peers.transport.owned_tasks import OwnedTasks
from peers.transport.pipe import Pipe
from protocols.errors import RemoteProtocolError
from protocols.ids import BytesLike, PeerId

MAX_GUESTS_PER_PEER = 64
"""Calls and streams that one peer may have open with us at a time; more are refused with code "busy"."""

MAX_GUESTS = 512
"""The same of all peers together, strangers included; more are dropped without a word."""

OPEN_WITHIN_S = 10.0
LINGER_S = 10.0
"""How long the dialler may take to read how it ended: closing first could cut that off."""


class Host:
    """Receives guests as long as `tasks` lives.

    Args:
        handlers: ours.
        proof: shows that we are a member, and says who else is.
        traffic: totals of this transport.
        tasks: owns the handlers.
    """

    def __init__(self, handlers: Handlers, proof: MembershipProof, traffic: Traffic, tasks: OwnedTasks) -> None:
        self.handlers = handlers
        self.proof = proof
        self.traffic = traffic
        self.tasks = tasks
        self._guests: dict[_Guest, None] = {}
        self._by_peer: Counter[PeerId] = Counter()

    def accept(self, peer: PeerId, pipe: Pipe) -> None:
        """Take over an incoming pipe from a peer that libp2p has authenticated."""
        if len(self._guests) >= MAX_GUESTS:
            pipe.close()
            return
        self._by_peer[peer] += 1
        guest = _Guest(self, peer, pipe)
        self._guests[guest] = None
        if self._by_peer[peer] > MAX_GUESTS_PER_PEER:
            guest.refuse(Refusal(BUSY, "too many streams at once, try again later"))
        pipe.start(guest)  # only now: what it says may be here already

    def forget(self, guest: _Guest) -> None:
        """It has gone."""
        if guest in self._guests:
            del self._guests[guest]
            self._by_peer[guest.peer] -= 1
            if not self._by_peer[guest.peer]:
                del self._by_peer[guest.peer]

    def close(self) -> None:
        """Send everybody away."""
        for guest in list(self._guests):
            guest.send_away()


class _Guest:
    """One incoming pipe; its `FrameSink` until it has opened something."""

    def __init__(self, host: Host, peer: PeerId, pipe: Pipe) -> None:
        self.peer = peer
        self._host = host
        self._pipe = pipe
        self._task: asyncio.Task[None] | None = None
        self._answered = False
        self._timer = asyncio.get_running_loop().call_later(OPEN_WITHIN_S, self.send_away)

    # FrameSink

    def admit(self, kind: int, size_bytes: int) -> None:
        """See `FrameSink.admit`."""
        if kind != Kind.OPEN:
            raise RemoteProtocolError(self.peer, f"a stream that begins with a frame of kind {kind}")
        require_size(kind, size_bytes, self.peer)

    def frame(self, kind: int, payload: BytesLike) -> None:
        """See `FrameSink.frame`."""
        if self._answered:
            return
        opening = Opening.decode(payload, self.peer)
        refusal = self._unwelcome(opening)
        if refusal is not None:
            self.refuse(refusal)
            return
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(opening.timeout_s, self.send_away)
        self._pipe.write(Kind.HELLO, self._host.proof.chain)
        if opening.shape == "call":
            self._open_call(opening.method, self._host.handlers.calls[opening.method])
        else:
            self._open_stream(opening.method, self._host.handlers.streams[opening.method])

    def misbehaved(self, error: RemoteProtocolError) -> None:
        """See `FrameSink.misbehaved`."""
        self.refuse(Refusal(PROTOCOL_ERROR, error.reason))

    def writable(self) -> None:
        """Nobody waits for that."""

    def ended(self) -> None:
        """See `FrameSink.ended`."""
        self._timer.cancel()
        self._host.forget(self)
        if self._task is not None and not self._answered:
            self._task.cancel()

    # What may happen to it

    def refuse(self, refusal: Refusal) -> None:
        """Tell it so, unless it has its answer, and wait until it goes."""
        if not self._answered:
            self._pipe.write(Kind.REFUSED, encode_refusal(refusal))
            self._wait_for_goodbye()

    def send_away(self) -> None:
        """Break the connection."""
        self._pipe.close()

    def _unwelcome(self, opening: Opening) -> Refusal | None:
        proof, handlers = self._host.proof, self._host.handlers
        try:
            proof.require_member(opening.chain, self.peer)
        except RemoteProtocolError as error:
            return Refusal(BAD_IDENTITY, error.reason)
        if proof.is_banned(self.peer):
            return Refusal(BANNED, "this peer is banned from the run")
        served: object = handlers.calls if opening.shape == "call" else handlers.streams
        return None if opening.method in served else unknown_method(opening.method)  # type: ignore[operator]

    def _open_call(self, method: str, handler: CallHandler) -> None:
        def answer(request: bytes) -> None:
            self._host.traffic.received_bytes += len(request)
            self._start(self._serve_call(method, handler, request))

        self._pipe.start(ServedCall(self.peer, answer, self.misbehaved, self.ended))

    def _open_stream(self, method: str, handler: StreamHandler) -> None:
        stream = ServedStream(self.peer, self._pipe, self._host.traffic, self._host.proof, self.ended)
        self._pipe.start(stream)
        self._start(self._serve_stream(method, handler, stream))

    async def _serve_call(self, method: str, handler: CallHandler, request: bytes) -> None:
        async def checked_reply() -> bytes:
            reply = await handler(self.peer, request)
            check_call_size(reply, "reply")
            return reply

        match await run_handler(checked_reply(), method, self.peer):
            case Answered(reply):
                self._host.traffic.sent_bytes += len(reply)
                self._pipe.write(Kind.DATA, reply)
                self._wait_for_goodbye()
            case Refusal() as refusal:
                self.refuse(refusal)
            case Broken():
                self.send_away()

    async def _serve_stream(self, method: str, handler: StreamHandler, stream: ServedStream) -> None:
        outcome = await run_handler(handler(stream), method, self.peer)
        if isinstance(outcome, Broken):
            self.send_away()
        else:
            stream.finish(outcome if isinstance(outcome, Refusal) else None)
            self._wait_for_goodbye()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        def cancelled(task: asyncio.Task[None]) -> None:
            if task.cancelled():
                self.send_away()

        self._task = self._host.tasks.start(work)
        self._task.add_done_callback(cancelled)

    def _wait_for_goodbye(self) -> None:
        self._answered = True
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self.send_away)
