"""Members without papers, for simulations and tests: keys that are the same in every run, and a directory in which everybody is known.

For whole nodes, a transport whose addresses look real.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peers.interfaces import Endpoint, Handlers, Stream, Traffic, Transport
from protocols.errors import RemoteProtocolError
from protocols.ids import PUBLIC_KEY_BYTES, Epoch, PeerId
from protocols.signing import SIGNATURE_BYTES, verify_signature

is_signed = lru_cache(maxsize=4096)(verify_signature)
"""All simulated members live in one process: each signature is verified once instead of once by everybody."""


@lru_cache(maxsize=4096)
def make_key(number: int) -> Ed25519PrivateKey:
    """A key that is the same in every run."""
    return Ed25519PrivateKey.from_private_bytes((number + 1).to_bytes(4, "little") * 8)


class KeyNotary:
    """Signs with one key; opens what any key has signed. Implements `Notary`."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.peer = PeerId(key.public_key().public_bytes_raw())

    def seal(self, kind: str, payload: bytes) -> bytes:
        """See `Notary.seal`."""
        return self.peer.public_key + self._key.sign(kind.encode() + payload) + payload

    def open(self, kind: str, sealed: bytes) -> tuple[PeerId, bytes]:
        """See `Notary.open`."""
        start = PUBLIC_KEY_BYTES + SIGNATURE_BYTES
        if len(sealed) < start:
            raise RemoteProtocolError(None, "too short for a signature")
        peer, signature, payload = PeerId(sealed[:PUBLIC_KEY_BYTES]), sealed[PUBLIC_KEY_BYTES:start], sealed[start:]
        if not is_signed(peer.public_key, signature, kind.encode() + payload):
            raise RemoteProtocolError(peer, "bad signature")
        return peer, payload

    def open_old(self, kind: str, sealed: bytes) -> tuple[PeerId, bytes]:
        """See `Notary.open_old`."""
        return self.open(kind, sealed)


@dataclass
class FixedDirectory:
    """Everybody knows everybody, until they are suspected. Implements `Directory`.

    Args:
        me: whose view it is.
        endpoints: of all, ourselves included.
        undialable: those that nobody can dial.
        suspects: whom we take for gone; whoever simulates forgives.
    """

    me: PeerId
    endpoints: Mapping[PeerId, Endpoint]
    undialable: frozenset[PeerId] = frozenset()
    suspects: set[PeerId] = field(default_factory=set)

    def placed(self, epoch: Epoch) -> tuple[frozenset[PeerId], frozenset[PeerId]]:
        """See `Directory.placed`."""
        others = frozenset(self.endpoints) - {self.me}
        return others - self.undialable, others & self.undialable

    def live(self, epoch: Epoch) -> frozenset[PeerId]:
        """See `Directory.live`."""
        return frozenset(self.endpoints) - {self.me} - self.suspects

    def endpoint(self, peer: PeerId) -> Endpoint | None:
        """See `Directory.endpoint`."""
        return None if peer in self.undialable else self.endpoints.get(peer)

    def reachable(self, peer: PeerId) -> Endpoint | None:
        """See `Directory.reachable`."""
        return self.endpoint(peer)

    def age_s(self, peer: PeerId) -> float | None:
        """All began long ago."""
        return math.inf if peer in self.endpoints else None

    async def refresh(self) -> None:
        """Nothing changes."""

    def suspect(self, peer: PeerId) -> None:
        """See `Directory.suspect`."""
        self.suspects.add(peer)


_PORT = ":4001"


class PortedTransport:
    """A simulated transport whose addresses look like those that whole nodes announce: "host:port". Implements `Transport`.

    Args:
        inner: knows no ports.
    """

    def __init__(self, inner: Transport) -> None:
        self._inner = inner

    @property
    def traffic(self) -> Traffic:
        """See `Transport.traffic`."""
        return self._inner.traffic

    @asynccontextmanager
    async def serve(self, handlers: Handlers) -> AsyncIterator[str]:
        """See `Transport.serve`."""
        async with self._inner.serve(handlers) as address:
            yield address + _PORT

    async def call(self, to: Endpoint, method: str, request: bytes, *, timeout_s: float) -> bytes:
        """See `Transport.call`."""
        return await self._inner.call(_without_port(to), method, request, timeout_s=timeout_s)

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: str, *, timeout_s: float) -> AsyncIterator[Stream]:
        """See `Transport.stream`."""
        async with self._inner.stream(_without_port(to), method, timeout_s=timeout_s) as stream:
            yield stream

    async def close(self) -> None:
        """See `Transport.close`."""
        await self._inner.close()


def _without_port(to: Endpoint) -> Endpoint:
    return replace(to, address=to.address.removesuffix(_PORT))
