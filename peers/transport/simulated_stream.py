"""One end of a stream on the simulated network."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

from peers.interfaces import Traffic
from peers.transport.handling import Refusal
from peers.transport.limits import check_message_size, joined
from peers.transport.simulated_network import Host, Lane, SimulatedNetwork
from protocols.errors import LocalProtocolError, RemoteError, RemoteTimeout
from protocols.ids import BytesLike, PeerId

WINDOW_BYTES = 4 * 2**20
"""A sender waits while more than this is on its way or unread at the other end. Credit for what was read comes back at once."""


class SimulatedStream:
    """One end of a stream; implements `Stream`. The other end is `far`, once it exists.

    Args:
        network: carries the messages.
        host: of this end.
        far_host: of the other end.
        traffic: totals of this end's transport.
    """

    def __init__(self, network: SimulatedNetwork, host: Host, far_host: Host, traffic: Traffic) -> None:
        self.host = host
        self.far: SimulatedStream | None = None
        self.lane = Lane()
        self.deadline_s = math.inf
        self.reset_early = False  # our reset overtook the opening, which waits in queues
        self.on_break: Callable[[], object] = lambda: None
        self._network = network
        self._far_host = far_host
        self._traffic = traffic
        self._inbox: deque[bytes] = deque()
        self._unread_bytes = 0  # sent by us and not yet read by the other end
        self._finished = False  # we said that no more follows
        self._far_finished = False
        self._far_end: RemoteError | None = None  # the other end is over: what sending raises, and receiving unless it simply returned
        self._broken: RemoteError | None = None
        self._sending = asyncio.Lock()
        self._waiters: list[asyncio.Future[None]] = []
        host.connections[self] = None

    @property
    def peer(self) -> PeerId:
        """The authenticated other side."""
        return self._far_host.peer

    async def send(self, *parts: BytesLike) -> None:
        """See `Stream.send`."""
        check_message_size(parts)
        message = joined(parts)
        async with self._sending:
            self._check_can_send()
            try:
                while self._unread_bytes and self._unread_bytes + len(message) > WINDOW_BYTES:
                    await self._changed()
                    self._check_can_send()
            except asyncio.CancelledError:
                self.close(RemoteTimeout(self.peer, "a message was cancelled while it was being sent"))
                raise
            self._unread_bytes += len(message)
            self._traffic.sent_bytes += len(message)
            self._post(len(message), lambda far: far.deliver(message))

    async def receive(self) -> bytes | None:
        """See `Stream.receive`."""
        while True:
            if self._broken is not None:
                raise self._broken
            if self._inbox:
                message = self._inbox.popleft()
                if self.far is not None:
                    self.far.credit(len(message))
                return message
            if self._far_finished:
                return None
            if self._far_end is not None:
                raise self._far_end
            await self._changed()

    async def finish_sending(self) -> None:
        """See `Stream.finish_sending`."""
        async with self._sending:
            if self._finished or self._broken is not None or self._far_end is not None:
                return
            self._finished = True
            self._post(0, lambda far: far.far_finished())

    def deliver(self, message: bytes) -> None:
        """A message has arrived."""
        if self._broken is None:
            self._inbox.append(message)
            self._traffic.received_bytes += len(message)
            self._wake()

    def credit(self, size_bytes: int) -> None:
        """The other end has read a message of ours."""
        self._unread_bytes -= size_bytes
        self._traffic.delivered_bytes += size_bytes
        self._wake()

    def far_finished(self) -> None:
        """The other end sends no more."""
        self._far_finished = True
        self._wake()

    def end(self, refusal: Refusal | None) -> None:
        """Our handler is over: tell the other end, behind the messages that it still has to read."""
        if self._broken is None:
            self._post(0, lambda far: far.far_ended(refusal))
            self._forget(RemoteTimeout(self.peer, "the handler of this stream has returned"))

    def far_ended(self, refusal: Refusal | None) -> None:
        """The handler at the other end is over."""
        if refusal is None:
            self._far_finished = True
            self._far_end = RemoteTimeout(self.peer, "it has ended the stream")
        else:
            self._far_end = refusal.as_error(self.peer)
        self._wake()

    def close(self, reason: RemoteTimeout | None = None) -> None:
        """Break both ends, ours now and the other when the reset arrives. Nothing happens if the stream is over already."""
        if self._broken is not None:
            return
        over = self._far_end is not None
        self._forget(reason or RemoteTimeout(self.peer, "the stream was closed at this end"))
        if not over:
            self._network.signal(self.host, self._far_host, self._reset_far)

    def _reset_far(self) -> None:
        self.reset_early = self.far is None
        if self.far is not None:
            self.far.break_off(RemoteTimeout(self.host.peer, "it reset the stream"))

    def break_off(self, error: RemoteTimeout) -> None:
        """A reset has arrived: unread messages are lost; a handler is cancelled."""
        if self._broken is None:
            self._forget(error)
            self.on_break()

    def crash(self) -> None:
        """Our process is gone."""
        self.close(RemoteTimeout(self.peer, "this host crashed or closed its transport"))

    def _forget(self, error: RemoteTimeout) -> None:
        self._broken = error
        self._inbox.clear()
        self.host.connections.pop(self, None)
        self._wake()

    def _check_can_send(self) -> None:
        error = self._broken or self._far_end
        if error is not None:
            raise error
        if self._finished:
            raise LocalProtocolError("sending on a stream after finish_sending")

    def _post(self, size_bytes: int, action: Callable[[SimulatedStream], None]) -> None:
        def arrived() -> None:
            if self.far is not None:
                action(self.far)

        self._network.post(self.host, self._far_host, size_bytes, arrived, self.lane)

    async def _changed(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
