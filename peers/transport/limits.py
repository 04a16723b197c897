"""Sizes that no transport sends: breaking them is the sender's bug, so it is the sender who hears of it."""

from __future__ import annotations

from peers.interfaces import MAX_CALL_BYTES, MAX_MESSAGE_BYTES
from protocols.errors import LocalProtocolError


def check_call_size(payload: bytes, what: str) -> None:
    """Refuse to send a request or reply above `MAX_CALL_BYTES`.

    Raises:
        LocalProtocolError: it is too large.
    """
    if len(payload) > MAX_CALL_BYTES:
        raise LocalProtocolError(f"a {what} of {len(payload)} bytes is above the limit of {MAX_CALL_BYTES}; stream it instead")


def check_message_size(message: bytes) -> None:
    """Refuse to send a stream message that is empty (on the wire that means "no more") or above `MAX_MESSAGE_BYTES`.

    Raises:
        LocalProtocolError: it is empty or too large.
    """
    if not message:
        raise LocalProtocolError("a stream message has at least one byte")
    if len(message) > MAX_MESSAGE_BYTES:
        raise LocalProtocolError(f"a stream message of {len(message)} bytes is above the limit of {MAX_MESSAGE_BYTES}")
