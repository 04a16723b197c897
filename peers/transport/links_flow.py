"""How much of a stream may be on its way: enough to fill the link, not so much that what is sent next comes seconds late."""

from __future__ import annotations

from collections import deque

from peers.transport.links_wire import WINDOW_BYTES

START_BYTES = 2**17
"""What may be on its way before anything is known about the link, and the least at any time."""

CREDIT_BYTES = 2**16
"""Credit is given back in portions of at least this size, so less than this may have been read already."""

TARGET_S = 0.5
"""How old a message shall be at most when it is read. A round trip may take that long without slowing the stream down."""


class Outgoing:
    """What was sent on one stream and not yet read at the other end.

    The time from sending a message to hearing that it was read tells the speed of the link (what was on its way, over that time) and so how
    much fits into `TARGET_S`. Without that, a window and the kernel's buffers take megabytes at once from whoever sends into a slow uplink,
    heartbeats wait behind them, and nothing that looks at how long `send` takes notices.

    Args:
        limit_bytes: to begin with: what the link carried last.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._unread_bytes = 0
        self._sent: deque[tuple[float, int, int]] = deque()  # when, size, unread then
        self._credit_bytes = 0  # part of a message

    def may_send(self, size_bytes: int) -> bool:
        """Whether a message of that size may go now."""
        return self._unread_bytes < CREDIT_BYTES or self._unread_bytes + size_bytes <= self.limit_bytes

    def sent(self, size_bytes: int, now_s: float) -> None:
        """It goes."""
        self._unread_bytes += size_bytes
        self._sent.append((now_s, size_bytes, self._unread_bytes))

    def credited(self, size_bytes: int, now_s: float) -> bool:
        """The other end has read that much.

        Returns:
            Whether that can be: no more than was sent, and not nothing.
        """
        if not 0 < size_bytes <= self._unread_bytes:
            return False
        self._unread_bytes -= size_bytes
        self._credit_bytes += size_bytes
        while self._sent and self._credit_bytes >= self._sent[0][1]:
            sent_s, message_bytes, unread_bytes = self._sent.popleft()
            self._credit_bytes -= message_bytes
            self._learn(unread_bytes, now_s - sent_s)
        return True

    def _learn(self, unread_bytes: int, took_s: float) -> None:
        fits = int(unread_bytes * TARGET_S / took_s) if took_s > 0 else WINDOW_BYTES
        if fits > self.limit_bytes and unread_bytes < self.limit_bytes // 2:
            return  # the link was not asked for more, so nothing is known about more
        self.limit_bytes = max(START_BYTES, min(fits, 2 * self.limit_bytes, WINDOW_BYTES))
