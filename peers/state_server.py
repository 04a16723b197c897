"""Serve this member's state to others: the other end of `peers.state_transfer`.

The trainer copies its state only when somebody wants it: a question for a state that is not at hand sets `wanted`, waits for the trainer
to publish, and is refused when that takes too long or the trainer has moved on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from peers.inner_shelf import InnerShelf
from peers.interfaces import Handlers, Stream
from peers.state_snapshot import StateSnapshot
from protocols.errors import RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.ids import PeerId
from protocols.messages_state import CHUNK_BYTES, MANIFEST_CALL, PIECES_STREAM, ManifestRequest, PieceChunk, PiecesRequest

log = logging.getLogger(__name__)

UNKNOWN_STATE = "unknown-state"
"""Code of the refusal of whoever does not have what it is asked for."""

GIVING_TO_OTHERS = "busy"
"""Code of the refusal of whoever has as many streams open as it can serve."""

MAX_STREAMS = 16
KEPT_SNAPSHOTS = 2
"""The newest and the one before, which others may still be fetching."""


class StateServer:
    """Holds the newest snapshots and answers for them. Lives on the event loop.

    Args:
        ask_trainer: called when a snapshot of the current state is needed; the trainer answers through `publish`.
        publish_wait_s: how long a question waits for the trainer.
        idle_s: how long a stream may show no progress before it is dropped.
        inner: inner states that are served as well, by their roots.
    """

    def __init__(
        self, ask_trainer: Callable[[], None], *, publish_wait_s: float = 12.0, idle_s: float = 30.0, inner: InnerShelf | None = None
    ) -> None:
        self._ask_trainer = ask_trainer
        self._publish_wait_s = publish_wait_s
        self._idle_s = idle_s
        self._inner = inner or InnerShelf()
        self._snapshots: list[StateSnapshot] = []
        self._current_hash = b""
        self._changed = asyncio.Event()
        self._streams = 0

    @property
    def newest(self) -> StateSnapshot | None:
        """The snapshot published last, if any."""
        return self._snapshots[-1] if self._snapshots else None

    def announce(self, state_hash: bytes) -> None:
        """The trainer now holds this state (32 bytes; empty while it holds none)."""
        self._current_hash = state_hash
        self._notify()

    def publish(self, snapshot: StateSnapshot) -> None:
        """Serve this snapshot from now on; the oldest beyond `KEPT_SNAPSHOTS` is let go."""
        kept = [s for s in self._snapshots if s.state_hash != snapshot.state_hash]
        self._snapshots = [*kept, snapshot][-KEPT_SNAPSHOTS:]
        self._notify()

    def handlers(self) -> Handlers:
        """What to add to the peer's transport."""
        return Handlers(calls={MANIFEST_CALL: self._manifest}, streams={PIECES_STREAM: self._pieces})

    async def _manifest(self, caller: PeerId, request: bytes) -> bytes:
        wanted = ManifestRequest.decode(request, caller).state_hash
        snapshot = await self._find(wanted)
        if snapshot is None and wanted:
            raise RemoteRefusal(caller, UNKNOWN_STATE, "this member does not hold that state, or no longer")
        if snapshot is None:
            raise RemoteRefusal(caller, "no-state", "this member holds no state yet")
        return snapshot.manifest.encoded

    async def _find(self, wanted: bytes) -> StateSnapshot | None:
        """The snapshot of that state (empty: of the current one), made by the trainer if it is not at hand; None if it cannot be had."""
        before = self.newest
        try:
            async with asyncio.timeout(self._publish_wait_s):
                while (snapshot := self._held(wanted or self._current_hash)) is None:
                    if not wanted and self.newest is not before:
                        return self.newest  # published while we waited; the trainer has gone one epoch further since, which is fine
                    if not self._current_hash or wanted not in (b"", self._current_hash):
                        break
                    changed = self._changed
                    self._ask_trainer()
                    await changed.wait()
                else:
                    return snapshot
        except TimeoutError:
            log.info("trainer published no snapshot in time: waited_s=%g", self._publish_wait_s)
        return None if wanted else self.newest

    def _held(self, state_hash: bytes) -> StateSnapshot | None:
        return next((s for s in self._snapshots if s.state_hash == state_hash), None) or self._inner.find(state_hash)

    async def _pieces(self, stream: Stream) -> None:
        """Answer requests for pieces in order until the other side has finished."""
        if self._streams >= MAX_STREAMS:
            raise RemoteRefusal(stream.peer, GIVING_TO_OTHERS, "this member is giving its state to others; ask somebody else")
        self._streams += 1
        try:
            async with asyncio.timeout(self._idle_s) as deadline:
                await self._answer(stream, deadline)
        except TimeoutError as error:
            raise RemoteTimeout(stream.peer, f"no progress on a stream of state for {self._idle_s:g} s") from error
        finally:
            self._streams -= 1

    async def _answer(self, stream: Stream, deadline: asyncio.Timeout) -> None:
        snapshot: StateSnapshot | None = None  # kept for the life of the stream, even when newer ones push it out
        while (message := await stream.receive()) is not None:
            request = PiecesRequest.decode(message, stream.peer)
            if snapshot is None or snapshot.state_hash != request.state_hash:
                snapshot = self._held(request.state_hash)
            if snapshot is None:
                raise RemoteRefusal(stream.peer, UNKNOWN_STATE, "this member does not hold that state, or no longer")
            for index in request.pieces:
                if index >= len(snapshot.manifest.piece_hashes):
                    raise RemoteProtocolError(stream.peer, f"asked for piece {index} of {len(snapshot.manifest.piece_hashes)}")
                piece = snapshot.piece(index)
                for offset_bytes in range(0, len(piece), CHUNK_BYTES):
                    await stream.send(PieceChunk(index, offset_bytes, piece[offset_bytes : offset_bytes + CHUNK_BYTES]).encode())
                    deadline.reschedule(asyncio.get_running_loop().time() + self._idle_s)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
