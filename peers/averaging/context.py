"""What the parts of a round share: who we are, how we reach others, and where heavy work runs."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from peers.averaging.trust_rules import TrustRules
from peers.bandwidth import Bandwidth
from peers.conduct import HONEST, Conduct
from peers.inner_shelf import InnerShelf
from peers.interfaces import Endpoint, Transport
from peers.memory import KeptMemory
from protocols.codecs import Codec
from protocols.ids import Epoch, PeerId, RunId
from protocols.layout import Blocks
from protocols.trust.ledger import Ledger

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
        codec: encoding of blocks; see `part_codec` and `result_codec`.
        max_group: most members in one group.
        join_timeout_s: longest wait of a leader for the others; what rounds really take makes it shorter.
        stall_timeout_s: silence (not even a heartbeat) after which a member is taken for gone.
        round_timeout_s: longest time that a reducer waits for others' blocks; what rounds really take makes it shorter.
        trust: how rounds are verified; None: everybody is believed.
    """

    run: RunId
    block_elems: int
    codec: Codec
    max_group: int
    join_timeout_s: float = 10.0
    stall_timeout_s: float = 3.0
    round_timeout_s: float = 3600.0
    trust: TrustRules | None = None

    def part_codec(self, round_index: int) -> Codec:
        """Encoding of what members bring to a round: those after an epoch's first bring results."""
        return self.codec.results if round_index else self.codec

    @property
    def result_codec(self) -> Codec:
        """Encoding of what reducers return."""
        return self.codec.results

    @property
    def audited(self) -> bool:
        """Whether members compute again what others contributed."""
        return self.trust is not None and self.trust.auditors > 0

    @property
    def heartbeat_s(self) -> float:
        """How often an idle stream says that it is alive: three may be late before anyone is given up."""
        return self.stall_timeout_s / 4

    @property
    def stream_timeout_s(self) -> float:
        """Longest life of a stream: longer than any of our own deadlines, which say more about what was missing."""
        return 2 * self.round_timeout_s + 2 * self.stall_timeout_s


class Notary(Protocol):
    """Signs our messages and checks those of others (`peers.notary`)."""

    def seal(self, kind: str, payload: bytes) -> bytes:
        """Sign a payload for this run."""

    def open(self, kind: str, sealed: bytes) -> tuple[PeerId, bytes]:
        """Check a signed payload of a member.

        Raises:
            RemoteProtocolError: bad signature, other run, other kind, expired, not a member.
        """

    def open_old(self, kind: str, sealed: bytes) -> tuple[PeerId, bytes]:
        """As `open` for a statement that may have expired by now: whether its signer was a member when it was made.

        Raises:
            RemoteProtocolError: as `open`.
        """


class Directory(Protocol):
    """Who is there (`peers.roster`)."""

    def placed(self, epoch: Epoch) -> tuple[frozenset[PeerId], frozenset[PeerId]]:
        """Members that have a place in this epoch's grid: those that can be dialled and those that cannot, without ourselves.

        From announcements alone: whom only we suspect keeps its place, or our grid would be another than the others'.
        """

    def live(self, epoch: Epoch) -> frozenset[PeerId]:
        """Those of them that are worth waiting for: not known to be gone."""

    def endpoint(self, peer: PeerId) -> Endpoint | None:
        """Where to dial a member; None while it has announced nothing."""

    def reachable(self, peer: PeerId) -> Endpoint | None:
        """As `endpoint`, also for members that nobody can dial directly: good enough for states."""

    def age_s(self, peer: PeerId) -> float | None:
        """Seconds since a member's process began, as it says; None while it has announced nothing."""

    async def refresh(self) -> None:
        """Look up members again, now: somebody was named whom we do not know."""

    def suspect(self, peer: PeerId) -> None:
        """It broke a connection or fell silent: do not count on it until it speaks again."""


@dataclass(frozen=True)
class MemberContext:
    """One member, as its rounds see it.

    Args:
        me: who we are.
        transport, directory, notary: how we reach others, know of them, and vouch for ourselves.
        rules: what all members agree on.
        tasks: owns what runs beside a round.
        pool: where numeric work runs.
        dialable: whether others can reach us.
        bandwidth: measured in our rounds; None where nobody wants to know.
        memory: for blocks and results.
        ledger: who is banned; grows while we live.
        conduct: how we behave.
        inner: inner states that others may ask for.
        random_bytes: gives as many random bytes as asked for; another one where everything is drawn from a seed.
    """

    me: PeerId
    transport: Transport
    directory: Directory
    notary: Notary
    rules: AveragingRules
    tasks: asyncio.TaskGroup
    pool: Executor | None = None
    dialable: bool = True
    bandwidth: Bandwidth | None = None
    memory: KeptMemory = field(default_factory=KeptMemory)
    ledger: Ledger = field(default_factory=Ledger)
    conduct: Conduct = HONEST
    inner: InnerShelf = field(default_factory=InnerShelf)
    random_bytes: Callable[[int], bytes] = secrets.token_bytes

    async def heavy(self, work: Callable[[], T]) -> T:
        """Run numeric work off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)

    def blocks_of(self, size_elems: int) -> Blocks:
        """How a vector of that many elements is cut."""
        return Blocks(size_elems, self.rules.block_elems)


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

    def pop(self, key: K) -> V | None:
        """Nobody needs it any more."""
        return self._known.pop(key, None)

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
