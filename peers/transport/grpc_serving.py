"""The serving half of the gRPC transport: who calls, and which handler answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from peers.interfaces import CallHandler, Handlers, StreamHandler, Traffic
from peers.transport.grpc_errors import refuse
from peers.transport.grpc_options import SERVICE_PATH
from peers.transport.grpc_stream import ServedContext, ServedStream
from peers.transport.handling import BAD_IDENTITY, BANNED, Answered, Refusal, run_handler
from peers.transport.limits import check_call_size
from peers.transport.owned_tasks import owned_tasks
from peers.transport.tls import TlsCredentials
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId

_MAX_REMEMBERED_CERTIFICATES = 4096


class Router(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Finds the handler of each RPC and runs it in the task that gRPC made for the RPC.

    Args:
        handlers: ours.
        credentials: say whose certificate it is, and who is banned.
        traffic: totals of this transport.
        uncounted: calls that are not traffic.
    """

    def __init__(self, handlers: Handlers, credentials: TlsCredentials, traffic: Traffic, uncounted: frozenset[str]) -> None:
        self._handlers = handlers
        self._credentials = credentials
        self._traffic = traffic
        self._uncounted = uncounted
        self._identities: dict[bytes, PeerId] = {}
        self._tasks: dict[asyncio.Task[Any], None] = {}

    @property
    def running(self) -> int:
        """Number of handlers at work."""
        return len(self._tasks)

    def cancel(self) -> None:
        """Cancel all handlers."""
        for task in list(self._tasks):
            task.cancel()

    async def finished(self) -> None:
        """Wait for all handlers."""
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """What gRPC asks for each RPC; None makes it UNIMPLEMENTED, which the caller sees as "unknown-method"."""
        prefix, _, method = handler_call_details.method.rpartition("/")
        if prefix + "/" != SERVICE_PATH:
            return None
        if method in self._handlers.calls:
            return self._call_method(method, self._handlers.calls[method])
        if method in self._handlers.streams:
            return self._stream_method(method, self._handlers.streams[method])
        return None

    def _call_method(self, method: str, handler: CallHandler) -> grpc.RpcMethodHandler[Any, Any]:
        traffic = Traffic() if method in self._uncounted else self._traffic

        async def serve(request: bytes, context: ServedContext) -> bytes:
            async def checked_reply(caller: PeerId) -> bytes:
                reply = await handler(caller, request)
                check_call_size(reply, "reply")
                return reply

            with self._registered():
                caller = self._identify(context)
                if isinstance(caller, Refusal):
                    await refuse(context, caller)
                traffic.received_bytes += len(request)
                outcome = await run_handler(checked_reply(caller), method, caller)
                if isinstance(outcome, Refusal):
                    await refuse(context, outcome)
                if not isinstance(outcome, Answered):
                    await context.abort(grpc.StatusCode.CANCELLED)
                traffic.sent_bytes += len(outcome.reply)
                return outcome.reply

        return grpc.unary_unary_rpc_method_handler(serve)

    def _stream_method(self, method: str, handler: StreamHandler) -> grpc.RpcMethodHandler[Any, Any]:
        async def serve(_requests: object, context: ServedContext) -> None:
            with self._registered():
                caller = self._identify(context)
                if isinstance(caller, Refusal):
                    await refuse(context, caller)
                async with owned_tasks() as tasks:
                    stream = ServedStream(caller, context, self._traffic, self._credentials.is_banned)
                    _pump = tasks.start(stream.pump())
                    outcome = await run_handler(handler(stream), method, caller)
                if isinstance(outcome, Refusal):
                    await refuse(context, outcome)
                if not isinstance(outcome, Answered):
                    await context.abort(grpc.StatusCode.CANCELLED)

        return grpc.stream_stream_rpc_method_handler(serve)

    @contextmanager
    def _registered(self) -> Iterator[None]:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("gRPC runs handlers in tasks")
        self._tasks[task] = None
        try:
            yield
        finally:
            self._tasks.pop(task, None)

    def _identify(self, context: ServedContext) -> PeerId | Refusal:
        leaf = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
        caller = self._identities.get(leaf)
        if caller is None:
            try:
                caller = self._credentials.authenticate(leaf)
            except RemoteProtocolError as error:
                return Refusal(BAD_IDENTITY, error.reason)
            if len(self._identities) >= _MAX_REMEMBERED_CERTIFICATES:
                self._identities.clear()
            self._identities[leaf] = caller
        if self._credentials.is_banned(caller):
            return Refusal(BANNED, "this peer is banned from the run")
        return caller
