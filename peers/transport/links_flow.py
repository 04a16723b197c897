"""How much one side of a stream may have sent that the other has not read yet."""

from __future__ import annotations

from peers.transport.links_wire import WINDOW_BYTES

CREDIT_BYTES = 2**16
"""Credit is given back in portions of at least this size, so less than this may have been read already."""


class Outgoing:
    """What was sent on one stream and not yet read at the other end. It bounds memory there; what a link has room for is TCP's business."""

    def __init__(self) -> None:
        self._unread_bytes = 0

    def may_send(self, size_bytes: int) -> bool:
        """Whether a message of that size may go now."""
        return self._unread_bytes < CREDIT_BYTES or self._unread_bytes + size_bytes <= WINDOW_BYTES

    def sent(self, size_bytes: int) -> None:
        """It goes."""
        self._unread_bytes += size_bytes

    def credited(self, size_bytes: int) -> bool:
        """The other end has read that much.

        Returns:
            Whether that can be: no more than was sent, and not nothing.
        """
        if not 0 < size_bytes <= self._unread_bytes:
            return False
        self._unread_bytes -= size_bytes
        return True
