"""A run with one serving member and one client of it, over gRPC on 127.0.0.1."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvloop

from peers.interfaces import Endpoint, Handlers
from peers.transport.grpc_mtls import GrpcTransport
from tests.helpers.transport_certificates import Member, RunAuthority
from tests.helpers.transport_worlds import LONG_S, echo, echo_stream

HANDLERS = Handlers(calls={"echo": echo}, streams={"echo-stream": echo_stream})


def transport_of(member: Member, listen: str = "127.0.0.1:0") -> GrpcTransport:
    return GrpcTransport(member.credentials, listen, "127.0.0.1")


class Stage:
    """A run with one serving member and one client of it."""

    def __init__(self, authority: RunAuthority, server: Member, client: Member, there: Endpoint) -> None:
        self.authority = authority
        self.server = server
        self.client_member = client
        self.client = transport_of(client)
        self.there = there

    @property
    def port(self) -> int:
        return int(self.there.address.rpartition(":")[2])

    async def assert_still_serving(self) -> None:
        assert await self.client.call(self.there, "echo", b"alive", timeout_s=LONG_S) == b"alive"


def on_stage(play: Callable[[Stage], Awaitable[None]], handlers: Handlers = HANDLERS) -> None:
    async def whole() -> None:
        authority = RunAuthority()
        server = authority.certify()
        async with transport_of(server).serve(handlers) as address:
            stage = Stage(authority, server, authority.certify(), Endpoint(server.peer, address, server.leaf_pem))
            try:
                await play(stage)
            finally:
                await stage.client.close()

    uvloop.run(whole())


@asynccontextmanager
async def dialler(member: Member) -> AsyncIterator[GrpcTransport]:
    transport = transport_of(member)
    try:
        yield transport
    finally:
        await transport.close()
