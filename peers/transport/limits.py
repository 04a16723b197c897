"""Sizes that no transport sends: breaking them is the sender's bug, so it is the sender who hears of it."""

from __future__ import annotations

from collections.abc import Sequence

from peers.interfaces import MAX_CALL_BYTES, MAX_MESSAGE_BYTES
from protocols.errors import LocalProtocolError
from protocols.ids import BytesLike


def check_call_size(payload: bytes, what: str) -> None:
    """Refuse to send a request or reply above `MAX_CALL_BYTES`.

    Raises:
        LocalProtocolError: it is too large.
    """
    if len(payload) > MAX_CALL_BYTES:
        raise LocalProtocolError(f"a {what} of {len(payload)} bytes is above the limit of {MAX_CALL_BYTES}; stream it instead")


def check_message_size(parts: Sequence[BytesLike]) -> int:
    """Refuse to send a stream message that is empty (on the wire that means "no more") or above `MAX_MESSAGE_BYTES`.

    Returns:
        Its size in bytes, all parts together.

    Raises:
        LocalProtocolError: it is empty or too large.
    """
    size_bytes = sum(memoryview(part).nbytes for part in parts)
    if not size_bytes:
        raise LocalProtocolError("a stream message has at least one byte")
    if size_bytes > MAX_MESSAGE_BYTES:
        raise LocalProtocolError(f"a stream message of {size_bytes} bytes is above the limit of {MAX_MESSAGE_BYTES}")
    return size_bytes


def joined(parts: Sequence[BytesLike]) -> bytes:
    """One message as `bytes`; copies nothing where it is that already."""
    only = parts[0] if len(parts) == 1 else None
    return only if isinstance(only, bytes) else b"".join(parts)
