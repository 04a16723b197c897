"""What becomes of a member that is banned: it learns why, says so in one sentence, and ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from peers.averaging.liveness import ALIVE
from peers.interfaces import Endpoint, Handlers, Stream, Traffic, Transport
from peers.transport.handling import BANNED
from protocols.errors import ExitCode, RemoteError, RemoteRefusal, UserError
from protocols.ids import PeerId
from protocols.trust.ledger import Ban, Ledger

_ADVICE = (
    "A ban cannot be lifted. A changed program, faulty memory or an unstable device can be the cause: mend it and join with a new "
    "--state-dir, or ask whoever runs it."
)


class Expelled(UserError):
    """We are banned; the message says why and what can be done."""

    exit_code = ExitCode.REFUSED


def ban_sentence(ban: Ban) -> str:
    """For the person whose peer is banned."""
    return f"This peer is banned from the run since epoch {ban.epoch}: {ban.offence.sentence}. {_ADVICE}"


def refused_sentence(refusing: int, known: int) -> str:
    """The same where nobody has shown us the proof.

    Args:
        refusing: members that say so.
        known: members that could be asked.
    """
    return f"{refusing} of {known} members of the run refuse this peer because it is banned, without a proof. {_ADVICE}"


class RefusalWatch:
    """A `Transport` that notes who refuses us as banned.

    Args:
        transport: carries everything.
        ledger: who is banned: what they say of us does not count.
    """

    def __init__(self, transport: Transport, ledger: Ledger) -> None:
        self._transport = transport
        self._ledger = ledger
        self._refusing: set[PeerId] = set()

    @property
    def refusing(self) -> frozenset[PeerId]:
        """Members whose last word to us was that we are banned."""
        return frozenset(peer for peer in self._refusing if peer not in self._ledger)

    @property
    def traffic(self) -> Traffic:
        """See `Transport.traffic`."""
        return self._transport.traffic

    @asynccontextmanager
    async def serve(self, handlers: Handlers) -> AsyncIterator[str]:
        """See `Transport.serve`."""
        async with self._transport.serve(handlers) as address:
            yield address

    async def call(self, to: Endpoint, method: str, request: bytes, *, timeout_s: float) -> bytes:
        """See `Transport.call`."""
        try:
            reply = await self._transport.call(to, method, request, timeout_s=timeout_s)
        except RemoteRefusal as error:
            self._note(to.peer, error)
            raise
        self._refusing.discard(to.peer)
        return reply

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: str, *, timeout_s: float) -> AsyncIterator[Stream]:
        """See `Transport.stream`."""
        try:
            async with self._transport.stream(to, method, timeout_s=timeout_s) as stream:
                yield stream
        except RemoteRefusal as error:
            self._note(to.peer, error)
            raise

    async def close(self) -> None:
        """See `Transport.close`."""
        await self._transport.close()

    async def refused_by_most(self, known: Sequence[Endpoint], timeout_s: float) -> str | None:
        """As soon as one member refuses us as banned, ask all of these; why we end if most of them do, for the person whose peer it is."""
        if not self.refusing:
            return None
        await asyncio.gather(*(self._knock(endpoint, timeout_s) for endpoint in known))
        refusing = sum(endpoint.peer in self.refusing for endpoint in known)
        return refused_sentence(refusing, len(known)) if 2 * refusing > len(known) else None

    async def _knock(self, endpoint: Endpoint, timeout_s: float) -> None:
        with contextlib.suppress(RemoteError):
            await self.call(endpoint, ALIVE, b"", timeout_s=timeout_s)

    def _note(self, peer: PeerId, error: RemoteRefusal) -> None:
        if error.peer == peer and error.code == BANNED:
            self._refusing.add(peer)
        elif error.peer == peer:
            self._refusing.discard(peer)
