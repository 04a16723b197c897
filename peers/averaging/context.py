"""What the parts of a round share: who we are, how we reach others, and where heavy work runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from peers.interfaces import Endpoint, Transport
from protocols.codecs import Codec
from protocols.errors import RemoteError
from protocols.ids import Epoch, PeerId, RunId
from protocols.layout import Blocks

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


Blame = Callable[[PeerId, str], None]
"""Takes note of a member that broke the protocol, and how."""


@dataclass(frozen=True, slots=True)
class AveragingRules:
    """What all members of a run agree on for a round.

    Args:
        run: the run.
        block_elems: elements in a block.
        codec: encoding of blocks.
        max_group: most members in one group.
        join_timeout_s: longest wait of a leader for the others.
        stall_timeout_s: silence (not even a heartbeat) after which a member is taken for gone.
        round_timeout_s: longest time that a reducer waits for others' blocks.
    """

    run: RunId
    block_elems: int
    codec: Codec
    max_group: int
    join_timeout_s: float
    stall_timeout_s: float
    round_timeout_s: float

    @property
    def heartbeat_s(self) -> float:
        """How often an idle stream says that it is alive: three may be late before anyone is given up."""
        return self.stall_timeout_s / 4

    @property
    def stream_timeout_s(self) -> float:
        """Longest life of a stream: longer than any of our own deadlines, which say more about what was missing."""
        return 2 * self.round_timeout_s + 2 * self.stall_timeout_s

    @property
    def settle_timeout_s(self) -> float:
        """How long a settlement leader waits for reports: everyone else may first have to notice a silent member."""
        return 2 * self.stall_timeout_s + 1


class Notary(Protocol):
    """Signs our messages and checks those of others (`peers.notary`)."""

    def seal(self, kind: str, payload: bytes) -> bytes:
        """Sign a payload for this run."""

    def open(self, kind: str, sealed: bytes) -> tuple[PeerId, bytes]:
        """Check a signed payload of a member.

        Raises:
            RemoteProtocolError: bad signature, other run, other kind, expired, not a member.
        """


class Directory(Protocol):
    """Who is there (`peers.roster`)."""

    def live(self, epoch: Epoch) -> frozenset[PeerId]:
        """Members that seem alive and hold the state of this epoch, without ourselves."""

    def endpoint(self, peer: PeerId) -> Endpoint | None:
        """Where to dial a member; None while it has announced nothing."""

    async def refresh(self) -> None:
        """Look up members again, now: somebody was named whom we do not know."""

    def suspect(self, peer: PeerId) -> None:
        """It broke a connection or fell silent: do not count on it until it speaks again."""


@dataclass(frozen=True)
class MemberContext:
    """One member, as its rounds see it."""

    me: PeerId
    transport: Transport
    directory: Directory
    notary: Notary
    rules: AveragingRules
    tasks: asyncio.TaskGroup
    pool: Executor | None = None

    async def heavy(self, work: Callable[[], T]) -> T:
        """Run numeric work off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)

    def blocks_of(self, size_elems: int) -> Blocks:
        """How a vector of that many elements is cut."""
        return Blocks(size_elems, self.rules.block_elems)


@contextmanager
def plain_remote_errors() -> Iterator[None]:
    """Turn the exception group of a TaskGroup in which only RemoteErrors happened into the first of them."""
    try:
        yield
    except BaseExceptionGroup as group:
        remote, rest = group.split(RemoteError)
        if remote is None or rest is not None:
            raise
        error: BaseException = remote
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group


@dataclass
class Expected(Generic[K, V]):
    """Things that the other side may ask for before we have them: waits for them, within bounds.

    Only what we put in ourselves is remembered; what others ask for leaves nothing behind.

    Args:
        limit: how many are remembered; the oldest goes first.
    """

    limit: int
    _known: dict[K, V] = field(default_factory=dict)
    _added: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, key: K, value: V) -> None:
        """Now it is there."""
        self._known[key] = value
        while len(self._known) > self.limit:
            del self._known[next(iter(self._known))]
        self._added.set()
        self._added = asyncio.Event()

    def peek(self, key: K) -> V | None:
        """The value if it is there."""
        return self._known.get(key)

    async def get(self, key: K, timeout_s: float) -> V | None:
        """Wait for it; None if it did not come in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while key not in self._known:
                    await self._added.wait()
        return self._known.get(key)
