"""Fetch a training state from several members at once, piece by piece, each piece verified by its hash.

`StateSnapshot` is a whole state, `PartialState` one that is being collected and survives a cut, `fetch_state` the transfer. The serving
side is `peers.state_server`. Every donor is a stranger: one that lies or stalls is dropped and named, and its pieces go to the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from peers.interfaces import Endpoint, Stream, Transport
from peers.state_snapshot import PartialState, StateSnapshot
from protocols.errors import RemoteError, RemoteProtocolError, RemoteTimeout, RoundError, SwarmError
from protocols.ids import PeerId
from protocols.manifest import Manifest
from protocols.messages_state import CHUNK_BYTES, MANIFEST_CALL, PIECES_STREAM, ManifestRequest, PieceChunk, PiecesRequest

__all__ = ["FetchPolicy", "PartialState", "StateSnapshot", "fetch_state"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """Limits of one transfer.

    Args:
        stall_s: a donor that makes no progress for so long is dropped; progress is one chunk (`CHUNK_BYTES`).
        manifest_timeout_s: for a donor's reply to the first question; it may have to ask its trainer for a snapshot first.
        total_timeout_s: for the whole transfer from one donor.
        max_state_bytes: a larger state is refused.
        pieces_in_flight: pieces asked of one donor ahead of those received.
    """

    stall_s: float = 3.0
    manifest_timeout_s: float = 15.0
    total_timeout_s: float = 6 * 3600.0
    max_state_bytes: int = 64 * 2**30
    pieces_in_flight: int = 4


async def fetch_state(
    transport: Transport,
    donors: Sequence[Endpoint],
    state_hash: bytes | None,
    partial: PartialState | None = None,
    *,
    own: StateSnapshot | None = None,
    policy: FetchPolicy | None = None,
    on_drop: Callable[[RemoteError], None] | None = None,
) -> StateSnapshot:
    """Fetch one state.

    Args:
        transport: how to reach the donors.
        donors: members that may hold the state.
        state_hash: root of the manifest wanted (32 bytes); None takes the one that most donors call their newest.
        partial: where pieces are collected; pass the same object (or one on the same directory) again after a cut to go on.
        own: a state held already; pieces that it shares with the wanted one are not downloaded.
        policy: limits.
        on_drop: told of each donor that was dropped and why; a `RemoteProtocolError` is a lie, the rest carry no blame.

    Returns:
        The whole state; every piece matches a manifest whose root is `state_hash`.

    Raises:
        RoundError: no donor could give it; names each and its reason.
        StateDirError: the files of `partial` cannot be written.

    Cancellation: pieces already verified stay in `partial`.
    """
    policy = policy or FetchPolicy()
    if not donors:
        raise RoundError("cannot fetch the state: no member to fetch it from")
    if state_hash is None:
        state_hash = await _newest_hash(transport, donors, policy)
    fetch = _Fetch(transport, state_hash, partial or PartialState(), own, policy, on_drop)
    return await fetch.run(donors)


async def _newest_hash(transport: Transport, donors: Sequence[Endpoint], policy: FetchPolicy) -> bytes:
    """State hash that most donors call their newest; the first in donor order wins a tie. Never the highest epoch anyone claims.

    Raises:
        RoundError: no donor answered.
    """
    roots: dict[PeerId, bytes] = {}
    failures: list[RemoteError] = []

    async def ask(donor: Endpoint) -> None:
        try:
            roots[donor.peer] = (await _get_manifest(transport, donor, b"", policy)).root
        except RemoteError as error:
            failures.append(error)

    async with asyncio.TaskGroup() as tasks:
        for donor in donors:
            tasks.create_task(ask(donor))
    if not roots:
        raise RoundError(f"cannot fetch the state: {_reasons(failures)}")
    votes = Counter(roots[donor.peer] for donor in donors if donor.peer in roots)
    return votes.most_common(1)[0][0]


async def _get_manifest(transport: Transport, donor: Endpoint, state_hash: bytes, policy: FetchPolicy) -> Manifest:
    reply = await transport.call(donor, MANIFEST_CALL, ManifestRequest(state_hash).encode(), timeout_s=policy.manifest_timeout_s)
    manifest = Manifest.decode(reply, donor.peer)
    if state_hash and manifest.root != state_hash:
        raise RemoteProtocolError(donor.peer, "sent the manifest of another state than the one asked for")
    if manifest.size_bytes > policy.max_state_bytes:
        raise RemoteProtocolError(donor.peer, f"offers a state of {manifest.size_bytes} bytes, more than {policy.max_state_bytes}")
    return manifest


def _reasons(failures: Sequence[RemoteError]) -> str:
    return "; ".join(str(error) for error in failures)


class _Board:
    """Which pieces are missing, and who has been asked for which. Only the event loop touches it."""

    def __init__(self, missing: Sequence[int]) -> None:
        self._missing = deque(missing)
        self._asked: dict[int, list[tuple[PeerId, float]]] = {}
        self._changed = asyncio.Event()

    @property
    def complete(self) -> bool:
        return not self._missing and not self._asked

    def take(self, peer: PeerId, now_s: float, patience_s: float) -> int | None:
        """Next piece to ask `peer` for. When none is left, one that another donor has owed for `patience_s`, but from two at most."""
        if self._missing:
            index = self._missing.popleft()
        else:
            owed = (i for i, a in self._asked.items() if len(a) == 1 and a[0][0] != peer and now_s - a[0][1] >= patience_s)
            found = next(owed, None)
            if found is None:
                return None
            index = found
        self._asked.setdefault(index, []).append((peer, now_s))
        return index

    def done(self, index: int) -> bool:
        """Mark a piece as held; False if it was held already."""
        first = self._asked.pop(index, None) is not None
        if self.complete:
            self._notify()
        return first

    def release(self, peer: PeerId) -> None:
        """Take back everything asked of a donor that has gone."""
        for index, askers in list(self._asked.items()):
            askers[:] = [asker for asker in askers if asker[0] != peer]
            if not askers:
                del self._asked[index]
                self._missing.append(index)
        self._notify()

    async def changed(self, timeout_s: float) -> None:
        """Wait until pieces came back or all is done, at most `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _Fetch:
    """One transfer: a worker for each donor, all drawing pieces from one board."""

    def __init__(
        self,
        transport: Transport,
        state_hash: bytes,
        partial: PartialState,
        own: StateSnapshot | None,
        policy: FetchPolicy,
        on_drop: Callable[[RemoteError], None] | None,
    ) -> None:
        self._transport = transport
        self._state_hash = state_hash
        self._partial = partial
        self._own = own
        self._policy = policy
        self._on_drop = on_drop
        self._board: _Board | None = None
        self._failures: list[RemoteError] = []
        self._fatal: SwarmError | None = None
        self._workers = 0
        self._over = asyncio.Event()

    async def run(self, donors: Sequence[Endpoint]) -> StateSnapshot:
        self._workers = len(donors)
        async with asyncio.TaskGroup() as tasks:
            workers = [tasks.create_task(self._donor(donor)) for donor in donors]
            await self._over.wait()
            for worker in workers:
                worker.cancel()
        if self._fatal is not None:
            raise self._fatal
        if self._board is None or not self._board.complete:
            raise RoundError(f"cannot fetch state {self._state_hash.hex()[:12]}: {_reasons(self._failures)}")
        return self._partial.snapshot()

    async def _donor(self, donor: Endpoint) -> None:
        """Take from one donor whatever it gives, until the state is whole or the donor fails."""
        try:
            manifest = await _get_manifest(self._transport, donor, self._state_hash, self._policy)
            if self._board is None:
                self._board = _Board(self._partial.begin(manifest, self._own))
            if not self._board.complete:
                await self._pieces(donor, manifest, self._board)
        except RemoteError as error:
            level = logging.WARNING if isinstance(error, RemoteProtocolError) else logging.INFO
            log.log(level, "donor dropped: peer=%s reason=%s", donor.peer.short, error.reason)
            self._failures.append(error)
            if self._on_drop:
                self._on_drop(error)
        except SwarmError as error:  # our own trouble, such as a full disk: no other donor would help
            self._fatal = error
            self._over.set()
        finally:
            self._workers -= 1
            if self._board is not None:
                self._board.release(donor.peer)
            if self._workers == 0 or (self._board is not None and self._board.complete):
                self._over.set()

    async def _pieces(self, donor: Endpoint, manifest: Manifest, board: _Board) -> None:
        now_s = asyncio.get_running_loop().time
        patience_s = self._policy.stall_s / 3
        asked: deque[int] = deque()
        async with self._stream(donor) as stream:
            while not board.complete:
                wanted: list[int] = []
                while len(asked) + len(wanted) < self._policy.pieces_in_flight:
                    index = board.take(donor.peer, now_s(), patience_s)
                    if index is None:
                        break
                    wanted.append(index)
                if wanted:
                    await _send(stream, PiecesRequest(self._state_hash, tuple(wanted)).encode(), self._policy.stall_s)
                    asked.extend(wanted)
                if not asked:
                    await board.changed(patience_s)
                    continue
                index = asked.popleft()
                piece = await _receive_piece(stream, manifest, index, self._policy.stall_s)
                if board.done(index):
                    self._partial.store(index, piece)

    @asynccontextmanager
    async def _stream(self, donor: Endpoint) -> AsyncIterator[Stream]:
        """Open the stream of pieces; opening alone has the deadline of a call."""
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._policy.manifest_timeout_s):
                    opening = self._transport.stream(donor, PIECES_STREAM, timeout_s=self._policy.total_timeout_s)
                    stream = await stack.enter_async_context(opening)
            except TimeoutError as error:
                raise RemoteTimeout(donor.peer, "did not accept a stream for state") from error
            yield stream


async def _send(stream: Stream, message: bytes, stall_s: float) -> None:
    try:
        async with asyncio.timeout(stall_s):
            await stream.send(message)
    except TimeoutError as error:
        raise RemoteTimeout(stream.peer, f"took no request for {stall_s:g} s") from error


async def _receive_piece(stream: Stream, manifest: Manifest, index: int, stall_s: float) -> bytearray:
    """Receive and verify the piece that is next in order.

    Chunks must be full but for the last, so a donor cannot stay "alive" by sending single bytes.
    """
    start, stop = manifest.piece_span(index)
    piece = bytearray(stop - start)
    filled = 0
    while filled < len(piece):
        try:
            async with asyncio.timeout(stall_s):
                message = await stream.receive()
        except TimeoutError as error:
            raise RemoteTimeout(stream.peer, f"sent no state for {stall_s:g} s") from error
        if message is None:
            raise RemoteTimeout(stream.peer, "ended the stream before the state was whole")
        chunk = PieceChunk.decode(message, stream.peer)
        expected = (index, filled, min(CHUNK_BYTES, len(piece) - filled))
        if (chunk.piece, chunk.offset_bytes, len(chunk.data)) != expected:
            raise RemoteProtocolError(stream.peer, f"sent another part of the state than was asked for (piece {index})")
        piece[filled : filled + len(chunk.data)] = chunk.data
        filled += len(chunk.data)
    if not manifest.verify_piece(index, piece):
        raise RemoteProtocolError(stream.peer, f"sent bytes that do not match the hash of piece {index}")
    return piece
