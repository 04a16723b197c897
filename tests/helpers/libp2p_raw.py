"""What comes on a raw libp2p stream, for tests that say anything on it."""

from __future__ import annotations

import asyncio

from peers.transport.libp2p_frames import Kind, decode_refusal
from protocols.errors import RemoteProtocolError
from protocols.ids import BytesLike

PATIENCE_S = 60.0
"""A deadline that only a hanging test meets."""


class Frames:
    """Takes what comes on a raw stream."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()

    def admit(self, kind: int, size_bytes: int) -> None:
        pass

    def frame(self, kind: int, payload: BytesLike) -> None:
        self.queue.put_nowait((kind, bytes(payload)))

    def misbehaved(self, error: RemoteProtocolError) -> None:
        raise AssertionError(error)

    def writable(self) -> None:
        pass

    def ended(self) -> None:
        self.queue.put_nowait(None)

    async def refusal(self) -> str:
        """The code of the next refusal; "" if the stream ends without one."""
        async with asyncio.timeout(PATIENCE_S):
            while (got := await self.queue.get()) is not None:
                if got[0] == Kind.REFUSED:
                    return decode_refusal(got[1]).code
        return ""
