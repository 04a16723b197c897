"""The dialling half of the gRPC transport: one channel per peer, pinned to the certificate it announced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from peers.interfaces import Endpoint
from peers.transport.addresses import split_address
from peers.transport.grpc_options import CHANNEL_OPTIONS
from peers.transport.tls import TlsCredentials
from protocols.errors import RemoteProtocolError, RemoteTimeout
from protocols.ids import PeerId

_KEPT_IDLE_S = 60.0
"""How long a channel that nobody uses is kept: each costs a few hundred KiB, and in a long run most members ever dialled are gone."""


@dataclass(eq=False, slots=True)
class _Dial:
    endpoint: Endpoint
    channel: grpc.aio.Channel
    users: int = 0
    used_at_s: float = 0.0
    retired: bool = False


class GrpcChannels:
    """Opens channels when first needed and keeps them while they are used now and then.

    Args:
        credentials: ours.
    """

    def __init__(self, credentials: TlsCredentials) -> None:
        self._credentials = credentials
        self._dials: dict[PeerId, _Dial] = {}
        self._closed = False

    @asynccontextmanager
    async def channel(self, to: Endpoint) -> AsyncIterator[grpc.aio.Channel]:
        """The channel to an endpoint, for the length of one RPC. A peer that announces another address or certificate gets a new one;
        the old one closes with its last user.

        Raises:
            RemoteProtocolError: the announced address or certificate is unusable or not the peer's own.
            RemoteTimeout: this transport is closed.
        """
        if self._closed:
            raise RemoteTimeout(to.peer, "this transport is closed")
        dial = self._dials.get(to.peer)
        if dial is None or dial.endpoint != to:
            fresh = _Dial(to, self._dial(to))
            self._dials[to.peer] = fresh
            if dial is not None:
                await self._retire(dial)
            dial = fresh
            await self._retire_idle()
        dial.users += 1
        try:
            yield dial.channel
        finally:
            dial.users -= 1
            dial.used_at_s = asyncio.get_running_loop().time()
            if dial.retired:
                await self._retire(dial)

    async def close(self) -> None:
        """Close every channel. Idempotent; RPCs must have been cancelled before."""
        self._closed = True
        dials, self._dials = list(self._dials.values()), {}
        for dial in dials:
            await dial.channel.close(None)

    async def _retire_idle(self) -> None:
        """Called for each new channel, so that there are never more idle ones than were opened lately."""
        now = asyncio.get_running_loop().time()
        idle = [peer for peer, dial in self._dials.items() if dial.users == 0 and dial.used_at_s and now - dial.used_at_s > _KEPT_IDLE_S]
        for peer in idle:
            await self._retire(self._dials.pop(peer))

    @staticmethod
    async def _retire(dial: _Dial) -> None:
        dial.retired = True
        if dial.users == 0:
            await dial.channel.close(None)

    def _dial(self, to: Endpoint) -> grpc.aio.Channel:
        if self._credentials.authenticate(to.certificate_pem) != to.peer:
            raise RemoteProtocolError(to.peer, "the certificate it announced belongs to somebody else")
        try:
            split_address(to.address)
        except ValueError as error:
            raise RemoteProtocolError(to.peer, f"announced a bad address: {error}") from None
        ours = self._credentials
        pinned: Any = grpc.ssl_channel_credentials(to.certificate_pem, ours.private_key_pem, ours.certificate_chain_pem)
        options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", to.peer.tls_name)]
        return grpc.aio.secure_channel("dns:///" + to.address, pinned, options=options)
