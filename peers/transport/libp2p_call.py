"""One call over a libp2p pipe, at the side that asks and at the side that serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from peers.interfaces import MAX_CALL_BYTES
from peers.transport.libp2p_frames import Kind, decode_refusal, require_size
from peers.transport.membership import MembershipProof
from peers.transport.pipe import Pipe
from protocols.errors import RemoteError, RemoteProtocolError, RemoteTimeout
from protocols.ids import BytesLike, PeerId


class AskedCall:
    """The side that asks; implements `FrameSink`. Its pipe is closed when `reply` is known.

    Args:
        peer: whom.
        pipe: to it.
        proof: whom we take for a member.
    """

    def __init__(self, peer: PeerId, pipe: Pipe, proof: MembershipProof) -> None:
        self._peer = peer
        self._pipe = pipe
        self._proof = proof
        self._greeted = False
        self.reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def close(self, error: RemoteError | None = None) -> None:
        """Give up. Idempotent."""
        if not self.reply.done():
            self.reply.set_exception(error or RemoteTimeout(self._peer, "the call was dropped at this end"))
        self._pipe.close()

    def admit(self, kind: int, size_bytes: int) -> None:
        """See `FrameSink.admit`."""
        if kind == Kind.DATA and self._greeted:
            if size_bytes > MAX_CALL_BYTES:
                raise RemoteProtocolError(self._peer, f"a reply of {size_bytes} bytes is above the limit of {MAX_CALL_BYTES}")
        elif kind == Kind.REFUSED or (kind == Kind.HELLO and not self._greeted):
            require_size(kind, size_bytes, self._peer)
        else:
            raise RemoteProtocolError(self._peer, f"a frame of kind {kind} where none belongs")

    def frame(self, kind: int, payload: BytesLike) -> None:
        """See `FrameSink.frame`."""
        if kind == Kind.HELLO:
            self._proof.require_member(bytes(payload), self._peer)
            self._greeted = True
        elif kind == Kind.REFUSED:
            self.close(decode_refusal(payload).as_error(self._peer))
        else:
            if not self.reply.done():
                self.reply.set_result(bytes(payload))
            self._pipe.close()

    def misbehaved(self, error: RemoteProtocolError) -> None:
        """See `FrameSink.misbehaved`."""
        self.close(error)

    def writable(self) -> None:
        """Nobody waits for that: the request stays as it is until the reply is there."""

    def ended(self) -> None:
        """See `FrameSink.ended`."""
        self.close(RemoteTimeout(self._peer, "the connection broke"))


class ServedCall:
    """The side that serves, from after the opening; implements `FrameSink`.

    Args:
        peer: who asks, proved.
        on_request: called once with the request.
        on_error: called if it breaks the rules.
        on_gone: called when it has let go.
    """

    def __init__(
        self,
        peer: PeerId,
        on_request: Callable[[bytes], None],
        on_error: Callable[[RemoteProtocolError], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._peer = peer
        self._on_request = on_request
        self._on_error = on_error
        self._on_gone = on_gone
        self._asked = False

    def admit(self, kind: int, size_bytes: int) -> None:
        """See `FrameSink.admit`."""
        if kind != Kind.DATA or self._asked:
            raise RemoteProtocolError(self._peer, f"a frame of kind {kind} where none belongs")
        if size_bytes > MAX_CALL_BYTES:
            raise RemoteProtocolError(self._peer, f"a request of {size_bytes} bytes is above the limit of {MAX_CALL_BYTES}")

    def frame(self, kind: int, payload: BytesLike) -> None:
        """See `FrameSink.frame`."""
        self._asked = True
        self._on_request(bytes(payload))

    def misbehaved(self, error: RemoteProtocolError) -> None:
        """See `FrameSink.misbehaved`."""
        self._on_error(error)

    def writable(self) -> None:
        """Nobody waits for that."""

    def ended(self) -> None:
        """See `FrameSink.ended`."""
        self._on_gone()
