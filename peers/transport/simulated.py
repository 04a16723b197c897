"""`Transport` between hosts of a `SimulatedNetwork`. Runs under `peers.simulation.run_simulated`; never under a real loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from peers.interfaces import CallHandler, Endpoint, Handlers, Stream, StreamHandler, Traffic
from peers.transport.handling import Answered, Broken, Refusal, run_handler, unknown_method
from peers.transport.limits import check_call_size
from peers.transport.owned_tasks import OwnedTasks, owned_tasks
from peers.transport.simulated_network import Host, LinkSpec, SimulatedNetwork
from peers.transport.simulated_stream import SimulatedStream
from protocols.errors import ExitCode, NetworkSetupError, RemoteError, RemoteGone, RemoteTimeout
from protocols.ids import PeerId

__all__ = ["LinkSpec", "SimulatedNetwork", "SimulatedTransport"]


class _OpenCall:
    """The calling side of one call, until its outcome is known."""

    def __init__(self, caller: Host, callee: Host, request: bytes, deadline_s: float) -> None:
        self.caller = caller
        self.callee = callee
        self.request = request
        self.deadline_s = deadline_s
        self.outcome: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.withdrawn = False
        self.on_withdraw: Callable[[], object] = lambda: None
        caller.connections[self] = None

    def reply(self, reply: bytes) -> None:
        if not self.outcome.done():
            self.outcome.set_result(reply)

    def fail(self, error: RemoteError) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)

    def withdraw(self) -> None:
        """At the callee: the caller has given up. It may come before the request, which waits in queues."""
        self.withdrawn = True
        self.on_withdraw()

    def crash(self) -> None:
        self.fail(RemoteTimeout(self.callee.peer, "the connection was dropped at this end"))


class _Listener:
    """What one host serves, and the tasks of its handlers."""

    def __init__(self, network: SimulatedNetwork, host: Host, handlers: Handlers, tasks: OwnedTasks, traffic: Traffic) -> None:
        self._network = network
        self._host = host
        self._handlers = handlers
        self._tasks = tasks
        self._traffic = traffic

    def crash(self) -> None:
        self._tasks.cancel()

    def accept_call(self, method: str, call: _OpenCall) -> None:
        if call.withdrawn:
            return
        handler = self._handlers.calls.get(method)
        if handler is None:
            self._fail_call(call, unknown_method(method).as_error(self._host.peer))
            return
        self._traffic.received_bytes += len(call.request)
        task = self._tasks.start(self._answer_call(handler, method, call))
        call.on_withdraw = task.cancel
        deadline = asyncio.get_running_loop().call_at(call.deadline_s, task.cancel)

        def answered(done: asyncio.Task[None]) -> None:
            deadline.cancel()
            if done.cancelled():
                self._reset_call(call)

        task.add_done_callback(answered)

    async def _answer_call(self, handler: CallHandler, method: str, call: _OpenCall) -> None:
        async def checked_reply() -> bytes:
            reply = await handler(call.caller.peer, call.request)
            check_call_size(reply, "reply")
            return reply

        match await run_handler(checked_reply(), method, call.caller.peer):
            case Answered(reply):
                self._traffic.sent_bytes += len(reply)
                self._network.post(self._host, call.caller, len(reply), lambda: call.reply(reply), None)
            case Refusal() as refusal:
                self._fail_call(call, refusal.as_error(self._host.peer))
            case Broken():
                self._reset_call(call)

    def _fail_call(self, call: _OpenCall, error: RemoteError) -> None:
        self._network.post(self._host, call.caller, 0, lambda: call.fail(error), None)

    def _reset_call(self, call: _OpenCall) -> None:
        self._network.signal(self._host, call.caller, lambda: call.fail(RemoteTimeout(self._host.peer, "it broke off the call")))

    def accept_stream(self, method: str, dialler: SimulatedStream) -> None:
        if dialler.reset_early:
            return
        stream = SimulatedStream(self._network, self._host, dialler.host, self._traffic)
        stream.far, dialler.far = dialler, stream
        handler = self._handlers.streams.get(method)
        if handler is None:
            stream.end(unknown_method(method))
            return
        task = self._tasks.start(self._serve_stream(handler, method, stream))
        stream.on_break = task.cancel
        late = RemoteTimeout(stream.peer, "the deadline of the stream has passed")
        deadline = asyncio.get_running_loop().call_at(dialler.deadline_s, lambda: stream.break_off(late))

        def served(done: asyncio.Task[None]) -> None:
            deadline.cancel()
            if done.cancelled():
                stream.close()

        task.add_done_callback(served)

    async def _serve_stream(self, handler: StreamHandler, method: str, stream: SimulatedStream) -> None:
        match await run_handler(handler(stream), method, stream.peer):
            case Answered():
                stream.end(None)
            case Refusal() as refusal:
                stream.end(refusal)
            case Broken():
                stream.close()


class SimulatedTransport:
    """One process's transport on a simulated network; implements `Transport`. Addresses are `str(peer)`.

    Args:
        network: shared by all.
        me: our identity, which everybody believes.
    """

    def __init__(self, network: SimulatedNetwork, me: PeerId) -> None:
        self._network = network
        self._host = network.host(me)
        self._address = str(me)
        self._traffic = Traffic()
        self._connections: dict[Any, None] = {}

    @property
    def traffic(self) -> Traffic:
        """Running totals."""
        return self._traffic

    @asynccontextmanager
    async def serve(self, handlers: Handlers) -> AsyncIterator[str]:
        """See `Transport.serve`. Leaving it cancels the handlers and resets their streams."""
        if self._host.listener is not None:
            raise NetworkSetupError(f"{self._address} is served already; stop the other one first", ExitCode.PORT_IN_USE)
        async with owned_tasks() as tasks:
            listener = _Listener(self._network, self._host, handlers, tasks, self._traffic)
            self._host.listener = listener
            try:
                yield self._address
            finally:
                if self._host.listener is listener:  # after a crash and restart it may be a newer one's
                    self._host.listener = None

    async def call(self, to: Endpoint, method: str, request: bytes, *, timeout_s: float) -> bytes:
        """See `Transport.call`."""
        check_call_size(request, "request")
        self._traffic.sent_bytes += len(request)
        callee = self._network.host(to.peer)
        call = _OpenCall(self._host, callee, request, asyncio.get_running_loop().time() + timeout_s)
        if not self._host.crashed:
            self._network.post(self._host, callee, len(request), lambda: self._request_arrived(to, method, call), None)
        self._connections[call] = None
        try:
            async with asyncio.timeout(timeout_s):
                reply = await call.outcome
        except TimeoutError:
            raise RemoteTimeout(to.peer, f"no reply to {method!r} within {timeout_s:g} s") from None
        finally:
            self._connections.pop(call, None)
            self._host.connections.pop(call, None)
            if call.outcome.cancelled():
                self._network.signal(self._host, callee, call.withdraw)
        self._traffic.received_bytes += len(reply)
        return reply

    def _request_arrived(self, to: Endpoint, method: str, call: _OpenCall) -> None:
        listener = self._listener_at(to)
        if listener is not None:
            listener.accept_call(method, call)
        else:
            self._network.signal(call.callee, self._host, lambda: call.fail(RemoteGone(to.peer, "connection refused")))

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: str, *, timeout_s: float) -> AsyncIterator[Stream]:
        """See `Transport.stream`. Opening costs no round trip of its own: what fails is seen by the first operation."""
        server = self._network.host(to.peer)
        stream = SimulatedStream(self._network, self._host, server, self._traffic)
        stream.deadline_s = asyncio.get_running_loop().time() + timeout_s
        if not self._host.crashed:
            self._network.post(self._host, server, 0, lambda: self._stream_arrived(to, method, stream), stream.lane)
        self._connections[stream] = None
        late = RemoteTimeout(to.peer, f"the stream {method!r} took longer than {timeout_s:g} s")
        timer = asyncio.get_running_loop().call_at(stream.deadline_s, lambda: stream.close(late))
        try:
            yield stream
        finally:
            timer.cancel()
            self._connections.pop(stream, None)
            stream.close()

    def _stream_arrived(self, to: Endpoint, method: str, stream: SimulatedStream) -> None:
        listener = self._listener_at(to)
        if listener is not None:
            listener.accept_stream(method, stream)
        else:
            server = self._network.host(to.peer)
            self._network.signal(server, self._host, lambda: stream.break_off(RemoteGone(to.peer, "connection refused")))

    def _listener_at(self, to: Endpoint) -> _Listener | None:
        listener = self._network.host(to.peer).listener
        return listener if isinstance(listener, _Listener) and to.address == str(to.peer) else None

    async def close(self) -> None:
        """Drop every connection. Idempotent."""
        for connection in list(self._connections):
            connection.crash()
        self._connections.clear()
