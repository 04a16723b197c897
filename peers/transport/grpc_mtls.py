"""`Transport` over gRPC with mutual TLS: raw bytes in generic methods `/swarm.v1.Peer/<method>`.

Who is who: a server accepts only certificates under the run's CA and takes the caller's identity from the certificate; a dialler accepts
only the exact leaf that the other announced in its signed presence. Start no process by fork once one of these exists: gRPC does not
survive it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from peers.interfaces import Endpoint, Handlers, Stream, Traffic
from peers.transport.addresses import join_address, split_address
from peers.transport.grpc_channels import GrpcChannels
from peers.transport.grpc_errors import as_remote_error, being_cancelled
from peers.transport.grpc_options import SERVER_OPTIONS, SERVICE_PATH
from peers.transport.grpc_serving import Router
from peers.transport.grpc_stream import DialledStream
from peers.transport.limits import check_call_size
from peers.transport.owned_tasks import owned_tasks
from peers.transport.tls import TlsCredentials
from protocols.errors import ExitCode, NetworkSetupError, RemoteTimeout

_LOG = logging.getLogger(__name__)

STOP_S = 0.9
"""How long leaving `serve` may take."""


class GrpcTransport:
    """One process's data plane; implements `Transport`. Belongs to the event loop it is first used in.

    Args:
        credentials: our certificate and whom we trust.
        listen: "host:port" to serve on; port 0 takes any.
        announce_host: host name or address under which others reach us.
        uncounted: calls that are not payload, so not traffic.
    """

    def __init__(self, credentials: TlsCredentials, listen: str, announce_host: str, uncounted: frozenset[str] = frozenset()) -> None:
        self._credentials = credentials
        self._listen = listen
        self._announce_host = announce_host
        self._uncounted = uncounted
        self._traffic = Traffic()
        self._channels = GrpcChannels(credentials)
        self._rpcs: dict[Any, None] = {}

    @property
    def traffic(self) -> Traffic:
        """Running totals."""
        return self._traffic

    @asynccontextmanager
    async def serve(self, handlers: Handlers) -> AsyncIterator[str]:
        """See `Transport.serve`. Leaving it cancels the handlers and takes at most a second."""
        router = Router(handlers, self._credentials, self._traffic, self._uncounted)
        server = grpc.aio.server(handlers=(router,), options=SERVER_OPTIONS)
        port = self._bind(server)
        await server.start()
        _LOG.info("serving: listen=%s port=%d", self._listen, port)
        try:
            yield join_address(self._announce_host, port)
        finally:
            router.cancel()
            try:
                async with asyncio.timeout(STOP_S):
                    await server.stop(None)
                    await router.finished()
            except TimeoutError:
                _LOG.warning("server did not stop in time: handlers=%d", router.running)

    async def call(self, to: Endpoint, method: str, request: bytes, *, timeout_s: float) -> bytes:
        """See `Transport.call`."""
        check_call_size(request, "request")
        async with self._channels.channel(to) as channel:
            if method not in self._uncounted:
                self._traffic.sent_bytes += len(request)
            rpc = channel.unary_unary(SERVICE_PATH + method, None, None)(request, timeout=timeout_s, wait_for_ready=False)
            self._rpcs[rpc] = None
            try:
                reply: bytes = await rpc
            except grpc.aio.AioRpcError as error:
                raise as_remote_error(error, to.peer, method) from None
            except asyncio.CancelledError:
                if being_cancelled():
                    raise
                raise RemoteTimeout(to.peer, f"the call {method!r} was dropped at this end") from None
            finally:
                self._rpcs.pop(rpc, None)
        if method not in self._uncounted:
            self._traffic.received_bytes += len(reply)
        return reply

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: str, *, timeout_s: float) -> AsyncIterator[Stream]:
        """See `Transport.stream`."""
        async with self._channels.channel(to) as channel:
            rpc = channel.stream_stream(SERVICE_PATH + method, None, None)(None, timeout=timeout_s, wait_for_ready=False)
            self._rpcs[rpc] = None
            stream = DialledStream(to.peer, method, rpc, self._traffic)
            try:
                await stream.connected()
                async with owned_tasks() as tasks:
                    _pump = tasks.start(stream.pump())
                    yield stream
            finally:
                rpc.cancel()
                self._rpcs.pop(rpc, None)

    async def close(self) -> None:
        """Drop every connection we dialled. Idempotent. What we serve ends with its `serve` context."""
        for rpc in list(self._rpcs):
            rpc.cancel()
        await self._channels.close()

    def _bind(self, server: grpc.aio.Server) -> int:
        try:
            host, port = split_address(self._listen)
        except ValueError as error:
            raise NetworkSetupError(f"Cannot listen: {error}; give an address such as 0.0.0.0:7400.") from None
        ours = self._credentials
        identity = [(ours.private_key_pem, ours.certificate_chain_pem)]
        tls = grpc.ssl_server_credentials(identity, root_certificates=ours.run_ca_pem, require_client_auth=True)
        try:
            return server.add_secure_port(self._listen, tls)
        except RuntimeError:
            raise _why_not_bound(host, port) from None


def _why_not_bound(host: str, port: int) -> NetworkSetupError:
    """Bind by hand to learn why: gRPC only says that it failed."""
    address = join_address(host, port)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"Cannot listen on {address}: the port is in use, choose another or stop the other program."
            return NetworkSetupError(message, ExitCode.PORT_IN_USE)
        return NetworkSetupError(f"Cannot listen on {address} ({error.strerror or error}): choose an address of this machine.")
    return NetworkSetupError(f"Cannot listen on {address}: choose another port.")
