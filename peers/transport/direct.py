"""`Transport` for members that can dial each other: calls over gRPC, streams over links.

gRPC with mutual TLS costs 3.3 CPU-seconds per GB, both ends together, and blocks are what a peer mostly sends; links cost a third of that
and take their keys from a call over gRPC. Where the data port cannot be reached (a firewall, a port that is not forwarded) streams go
over gRPC as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from peers.interfaces import Endpoint, Handlers, Stream, Traffic
from peers.transport.addresses import join_address, split_address
from peers.transport.grpc_mtls import GrpcTransport
from peers.transport.links_buffers import Buffers
from peers.transport.links_dialling import DialledLinks
from peers.transport.links_serving import LinkServer
from peers.transport.links_wire import OPEN_LINK
from peers.transport.tls import TlsCredentials
from protocols.errors import NetworkSetupError


class DirectTransport:
    """One process's data plane; implements `Transport`. Belongs to the event loop it is first used in.

    Args:
        credentials: our certificate and whom we trust.
        listen: "host:port" of the gRPC server; port 0 takes any.
        announce_host: host name or address under which others reach us.
        data_port: where links are accepted, on the same host; 0 takes any.
    """

    def __init__(self, credentials: TlsCredentials, listen: str, announce_host: str, data_port: int = 0) -> None:
        self._credentials = credentials
        self._listen = listen
        self._data_port = data_port
        self._grpc = GrpcTransport(credentials, listen, announce_host, frozenset({OPEN_LINK}))
        self._buffers = Buffers()
        self._me = credentials.authenticate(credentials.certificate_chain_pem)
        self._links = DialledLinks(self._me, self._open_link, self._grpc.traffic, credentials.is_banned, self._buffers)

    @property
    def traffic(self) -> Traffic:
        """Running totals."""
        return self._grpc.traffic

    @asynccontextmanager
    async def serve(self, handlers: Handlers) -> AsyncIterator[str]:
        """See `Transport.serve`. Leaving it cancels the handlers."""
        server = LinkServer(self._me, self._data_address(), self._credentials.is_banned, self.traffic, self._buffers)
        both = Handlers({**handlers.calls, OPEN_LINK: server.open_link}, handlers.streams)
        async with server.serving(handlers.streams), self._grpc.serve(both) as address:
            yield address

    async def call(self, to: Endpoint, method: str, request: bytes, *, timeout_s: float) -> bytes:
        """See `Transport.call`."""
        return await self._grpc.call(to, method, request, timeout_s=timeout_s)

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: str, *, timeout_s: float) -> AsyncIterator[Stream]:
        """See `Transport.stream`."""
        link = await self._links.link_to(to, timeout_s)
        if link is None:
            async with self._grpc.stream(to, method, timeout_s=timeout_s) as stream:
                yield stream
        else:
            async with self._links.stream_on(link, method, timeout_s) as stream:
                yield stream

    async def close(self) -> None:
        """Drop every connection we dialled. Idempotent. What we serve ends with its `serve` context."""
        self._links.close()
        await self._grpc.close()

    def _data_address(self) -> str:
        try:
            host, _ = split_address(self._listen)
        except ValueError as error:
            raise NetworkSetupError(f"Cannot listen: {error}; give an address such as 0.0.0.0:7400.") from None
        return join_address(host, self._data_port)

    async def _open_link(self, to: Endpoint, request: bytes, timeout_s: float) -> bytes:
        return await self._grpc.call(to, OPEN_LINK, request, timeout_s=timeout_s)
