"""`Transport` that has two ways to a peer: a direct connection, and libp2p where none can be made (NAT, firewalls, no server at all).

Which way leads to a peer is found out by asking it something that nobody serves: being told so is the answer. The direct way gets a head
start; then both are tried, and the first that answers is taken from then on. A way is asked again when an operation on it failed; who is
reached over the second way is tried directly once in a while.

A process that has ended is noticed as quickly as without a second way: where a direct connection used to work, "connection refused" is
final, and where none did, the second way gets a moment only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from peers.interfaces import Endpoint, Handlers, Stream, Traffic, Transport
from peers.transport.owned_tasks import owned_tasks
from protocols.errors import RemoteError, RemoteGone, RemoteTimeout
from protocols.ids import PeerId

_LOG = logging.getLogger(__name__)

_QUESTION = "which-way"  # nobody serves it


@dataclass(frozen=True, slots=True)
class FallbackRules:
    """How long things may take, seconds.

    Args:
        head_start_s: before the other way is tried beside the preferred one; a TLS handshake over a slow line takes half of it.
        reach_s: until a peer that answers on neither way is given up.
        after_refusal_s: the same for the other way once the preferred one said that nobody listens.
        trust_s: after the last success on a way, until it is asked again.
        recheck_s: between attempts to reach directly those whom the second way reaches.
        forget_s: after the last success, until a peer is forgotten.
    """

    head_start_s: float = 1.0
    reach_s: float = 5.0
    after_refusal_s: float = 1.0
    trust_s: float = 300.0
    recheck_s: float = 60.0
    forget_s: float = 3600.0


@dataclass(eq=False, slots=True)
class _Road:
    """What we know of the way to one endpoint."""

    endpoint: Endpoint
    proven_s: float
    way: Transport | None = None
    doubted: bool = False
    finding: asyncio.Lock = field(default_factory=asyncio.Lock)

    def trusted(self, trust_s: float) -> bool:
        """Whether the way led there not long ago."""
        return self.way is not None and _now_s() - self.proven_s < trust_s

    def prove(self, way: Transport) -> None:
        """It led there just now."""
        self.way, self.proven_s, self.doubted = way, _now_s(), False


class FallbackTransport:
    """Implements `Transport` over two others.

    Args:
        direct: preferred.
        second: for peers that `direct` does not reach, as far as they announce libp2p addresses or have no address at all.
        rules: timing.
    """

    def __init__(self, direct: Transport, second: Transport, rules: FallbackRules | None = None) -> None:
        self._direct = direct
        self._second = second
        self._rules = rules or FallbackRules()
        self._roads: dict[PeerId, _Road] = {}

    @property
    def traffic(self) -> Traffic:
        """Running totals of both."""
        direct, second = self._direct.traffic, self._second.traffic
        return Traffic(
            direct.sent_bytes + second.sent_bytes,
            direct.received_bytes + second.received_bytes,
            direct.delivered_bytes + second.delivered_bytes,
        )

    @asynccontextmanager
    async def serve(self, handlers: Handlers) -> AsyncIterator[str]:
        """See `Transport.serve`: on both ways; yields the direct address."""
        async with self._direct.serve(handlers) as address, self._second.serve(handlers), owned_tasks() as tasks:
            _rechecking = tasks.start(self._keep_rechecking())
            yield address

    async def call(self, to: Endpoint, method: str, request: bytes, *, timeout_s: float) -> bytes:
        """See `Transport.call`."""
        deadline_s = _now_s() + timeout_s
        road, way = await self._way(to, timeout_s)
        with _noting(road, way):
            return await way.call(to, method, request, timeout_s=max(0.0, deadline_s - _now_s()))

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: str, *, timeout_s: float) -> AsyncIterator[Stream]:
        """See `Transport.stream`."""
        deadline_s = _now_s() + timeout_s
        road, way = await self._way(to, timeout_s)
        with _noting(road, way):
            async with way.stream(to, method, timeout_s=max(0.0, deadline_s - _now_s())) as stream:
                yield stream

    async def close(self) -> None:
        """Close both. Idempotent."""
        await self._direct.close()
        await self._second.close()

    def reached_directly(self, peer: PeerId) -> bool | None:
        """Which way leads to a peer; None while that is unknown."""
        road = self._roads.get(peer)
        return None if road is None or road.way is None else road.way is self._direct

    async def _way(self, to: Endpoint, timeout_s: float) -> tuple[_Road, Transport]:
        """The way that leads to an endpoint as far as we know, asking now unless we know.

        Raises:
            RemoteGone, RemoteTimeout: none does.
        """
        road = self._roads.get(to.peer)
        if road is None or road.endpoint != to:
            road = self._roads[to.peer] = _Road(to, _now_s())
        if not to.address:
            return road, self._second
        if not to.libp2p_addresses:
            return road, self._direct
        try:
            async with asyncio.timeout(timeout_s), road.finding:
                if road.way is None or road.doubted or not road.trusted(self._rules.trust_s):
                    road.prove(await self._find(road, min(timeout_s, self._rules.reach_s)))
                    _LOG.debug("way found: peer=%s direct=%s", to.peer.short, road.way is self._direct)
        except TimeoutError:
            raise RemoteTimeout(to.peer, f"it answered on no way within {timeout_s:g} s") from None
        return road, road.way or self._direct

    async def _find(self, road: _Road, within_s: float) -> Transport:
        """Ask on the preferred way, then on both; returns the first that answers."""
        rules, began_s = self._rules, _now_s()
        first, other = (self._second, self._direct) if road.way is self._second else (self._direct, self._second)
        answers: asyncio.Queue[tuple[Transport, RemoteTimeout | None]] = asyncio.Queue()

        async def ask(way: Transport, limit_s: float) -> None:
            answers.put_nowait((way, await _why_unreached(way, road.endpoint, limit_s)))

        async with owned_tasks() as tasks:
            _asking_first = tasks.start(ask(first, within_s))
            limit_s = within_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rules.head_start_s):
                    _, failure = await answers.get()
                if failure is None:
                    return first
                if isinstance(failure, RemoteGone):
                    if road.trusted(rules.trust_s):
                        raise failure
                    limit_s = rules.after_refusal_s
                answers.put_nowait((first, failure))
            _asking_other = tasks.start(ask(other, min(limit_s, max(0.0, began_s + within_s - _now_s()))))
            failures: list[RemoteTimeout] = []
            while len(failures) < 2:
                way, failure = await answers.get()
                if failure is None:
                    return way
                failures.append(failure)
        raise next((failure for failure in failures if isinstance(failure, RemoteGone)), failures[0])

    async def _keep_rechecking(self) -> None:
        """Go back to the direct way where it leads to the peer by now; forget peers that nobody speaks to any more."""
        while True:
            await asyncio.sleep(self._rules.recheck_s)
            for peer, road in list(self._roads.items()):
                if _now_s() - road.proven_s > self._rules.forget_s:
                    del self._roads[peer]
                elif (
                    road.way is self._second
                    and road.endpoint.address
                    and await _why_unreached(self._direct, road.endpoint, self._rules.reach_s) is None
                ):
                    road.prove(self._direct)
                    _LOG.info("reached directly by now: peer=%s", peer.short)


async def _why_unreached(way: Transport, to: Endpoint, within_s: float) -> RemoteTimeout | None:
    """Whether a way leads to an endpoint: None, or why not."""
    try:
        await way.call(to, _QUESTION, b"", timeout_s=within_s)
    except RemoteTimeout as error:
        return error
    except RemoteError:
        pass  # it refuses, or says something wrong: it is there
    return None


@contextlib.contextmanager
def _noting(road: _Road, way: Transport) -> Iterator[None]:
    """Remember of an operation whether the way has led to its end."""
    try:
        yield
    except RemoteError as error:
        if error.peer == road.endpoint.peer and isinstance(error, RemoteTimeout):
            road.doubted = True
        raise
    road.prove(way)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
