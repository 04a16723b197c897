"""A member that others fetch their state from, and that serves poison: what `peers.state_transfer` must stand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum

import torch

from peers.interfaces import Handlers, Stream
from peers.state_server import StateServer
from peers.state_snapshot import StateSnapshot
from protocols.ids import BytesLike, PeerId
from protocols.messages_state import MANIFEST_CALL, PIECES_STREAM, ManifestRequest, PieceChunk

POISON_DONOR = "poison_donor"
"""Name of the attack."""

_NAN = b"\x00\x00\xc0\x7f"  # fp32, little-endian


class Poison(StrEnum):
    """What a donor serves instead of its state.

    Attributes:
        CHANGED_BYTES: each chunk with one bit flipped.
        OTHER_MANIFEST: the manifest of another state, whichever is asked for.
        SHORT_ANSWER: the first half of each chunk.
        NAN_VALUES: NaN in place of all values.
        SILENCE: one chunk, and then nothing on an open stream.
        OLDER_STATE: the bytes of the state before; asked for its newest, that one's manifest too.
    """

    CHANGED_BYTES = "changed_bytes"
    OTHER_MANIFEST = "other_manifest"
    SHORT_ANSWER = "short_answer"
    NAN_VALUES = "nan_values"
    SILENCE = "silence"
    OLDER_STATE = "older_state"


class PoisonDonor(StateServer):
    """A `StateServer` that holds the right state and answers for it, with poison.

    Args:
        ask_trainer: see `StateServer`.
        poison: what it does to its answers; None is honest. May be changed at any time.
        publish_wait_s, idle_s: see `StateServer`.
    """

    def __init__(
        self, ask_trainer: Callable[[], None], poison: Poison | None = None, *, publish_wait_s: float = 12.0, idle_s: float = 30.0
    ) -> None:
        super().__init__(ask_trainer, publish_wait_s=publish_wait_s, idle_s=idle_s)
        self.poison = poison
        self._older: StateSnapshot | None = None

    def publish(self, snapshot: StateSnapshot) -> None:
        """See `StateServer.publish`; keeps the one before."""
        if self.newest is None or self.newest.state_hash != snapshot.state_hash:
            self._older = self.newest
        super().publish(snapshot)

    def handlers(self) -> Handlers:
        """The handlers of an honest member, with what they answer changed on its way out."""
        honest = super().handlers()

        async def manifest(caller: PeerId, request: bytes) -> bytes:
            return self._manifest_for(
                ManifestRequest.decode(request, caller).state_hash, await honest.calls[MANIFEST_CALL](caller, request)
            )

        async def pieces(stream: Stream) -> None:
            await honest.streams[PIECES_STREAM](_PoisonedStream(stream, self))

        return Handlers(calls={MANIFEST_CALL: manifest}, streams={PIECES_STREAM: pieces})

    def _manifest_for(self, wanted: bytes, encoded: bytes) -> bytes:
        if self.poison is Poison.OTHER_MANIFEST and self.newest is not None:
            return _of_zeros(self.newest).manifest.encoded
        if self.poison is Poison.OLDER_STATE and self._older is not None and not wanted:
            return self._older.manifest.encoded
        return encoded

    def poisoned(self, chunk: PieceChunk) -> PieceChunk:
        """What it sends in place of a chunk of its state."""
        data = bytes(chunk.data)
        if self.poison is Poison.CHANGED_BYTES:
            data = bytes([data[0] ^ 1]) + data[1:]
        elif self.poison is Poison.SHORT_ANSWER:
            data = data[: max(1, len(data) // 2)]
        elif self.poison is Poison.NAN_VALUES:
            data = (_NAN * (len(data) // len(_NAN) + 1))[: len(data)]
        elif self.poison is Poison.OLDER_STATE and self._older is not None and chunk.piece < len(self._older.manifest.piece_hashes):
            data = bytes(self._older.piece(chunk.piece)[chunk.offset_bytes :][: len(data)]) or data
        return PieceChunk(chunk.piece, chunk.offset_bytes, data)


class _PoisonedStream:
    """The stream that an honest handler answers on, with what it sends changed."""

    def __init__(self, inner: Stream, donor: PoisonDonor) -> None:
        self._inner = inner
        self._donor = donor
        self._sent = 0

    @property
    def peer(self) -> PeerId:
        return self._inner.peer

    async def send(self, *parts: BytesLike) -> None:
        if self._donor.poison is Poison.SILENCE and self._sent:
            await asyncio.Event().wait()  # until the handler's own deadline, or the other side goes
        self._sent += 1
        await self._inner.send(self._donor.poisoned(PieceChunk.decode(b"".join(parts), None)).encode())

    async def receive(self) -> bytes | memoryview | None:
        return await self._inner.receive()

    async def finish_sending(self) -> None:
        await self._inner.finish_sending()


def _of_zeros(state: StateSnapshot) -> StateSnapshot:
    """A state that looks like this one from outside, but for its name."""
    manifest = state.manifest
    zeros = [(name, torch.zeros_like(tensor)) for name, tensor in state.tensors()]
    return StateSnapshot.of(
        zeros,
        epoch=manifest.epoch,
        accepted_samples=manifest.accepted_samples + 1,
        meta=manifest.meta,
        piece_bytes=manifest.piece_bytes,
    )
