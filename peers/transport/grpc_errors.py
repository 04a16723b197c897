"""How gRPC's ways to fail map to our error tree."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import grpc
import grpc.aio

from peers.transport.grpc_options import REFUSAL_CODE_KEY
from peers.transport.handling import Refusal, unknown_method
from protocols.errors import RemoteError, RemoteGone, RemoteProtocolError, RemoteTimeout
from protocols.ids import PeerId

_MAX_DETAILS_CHARS = 200

_SENTENCES = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "it took longer than the deadline",
    grpc.StatusCode.UNAVAILABLE: "it cannot be reached or the connection broke",
    grpc.StatusCode.CANCELLED: "it broke off",
}


def as_remote_error(error: grpc.aio.AioRpcError, peer: PeerId, method: str) -> RemoteError:
    """The error of our tree for a failed RPC.

    Args:
        error: as raised by gRPC.
        peer: who was called.
        method: for the sentence.

    Returns:
        RemoteRefusal if the handler refused or the method is unknown there, RemoteProtocolError for an oversized message, RemoteGone if
        nobody listens there, RemoteTimeout for everything else.
    """
    code, details = error.code(), error.details() or ""
    trailing: Any = error.trailing_metadata()  # the stub has another class
    refusal_code = trailing.get(REFUSAL_CODE_KEY) if trailing else None
    if refusal_code is not None:
        return Refusal(str(refusal_code), details).as_error(peer)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return unknown_method(method).as_error(peer)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return RemoteProtocolError(peer, f"an oversized message in {method!r}: {details[:_MAX_DETAILS_CHARS]}")
    if code is grpc.StatusCode.UNAVAILABLE and "Connection refused" in details:
        return RemoteGone(peer, f"nobody listens at its address, in {method!r}")
    sentence = _SENTENCES.get(code, f"the connection broke ({code.name.lower()})")
    return RemoteTimeout(peer, f"{sentence} in {method!r}: {details[:_MAX_DETAILS_CHARS]}")


async def refuse(context: grpc.aio.ServicerContext[bytes, bytes], refusal: Refusal) -> NoReturn:
    """End a served RPC with a refusal.

    Raises:
        grpc.aio.AbortError: always; let it pass.
    """
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal.sentence, ((REFUSAL_CODE_KEY, refusal.code),))


def being_cancelled() -> bool:
    """Whether a CancelledError just caught was meant for this task. gRPC raises one, too, when its own RPC was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
