"""What a member finds out about its own link when it joins, and how a rate is read off a transfer. Pure: times are arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_BYTES = 2**18
"""A transfer that moved less says nothing about a link: it fits into buffers."""

_STARTING = 1 / 4
"""This part of a transfer is not counted: TCP is still finding out how fast it may send."""


_ROOM = 9 / 8
"""How much faster the rest may have been than the whole."""


@dataclass(frozen=True, slots=True)
class LinkFigures:
    """What is known of a member's link.

    Args:
        up_bytes_per_s, down_bytes_per_s: of payload; None: not measured.
        rtt_s: least round trip to any of the members asked; None: not measured.
        members: how many others took part.
        moved_bytes: extra bytes that measuring took, both ways.
        note: one sentence on what is missing and why, or where a figure comes from; empty if there is nothing to say.
    """

    up_bytes_per_s: float | None = None
    down_bytes_per_s: float | None = None
    rtt_s: float | None = None
    members: int = 0
    moved_bytes: int = 0
    note: str = ""

    @property
    def slower_bytes_per_s(self) -> float | None:
        """Of the direction that rounds wait for; None unless both are known."""
        if self.up_bytes_per_s is None or self.down_bytes_per_s is None:
            return None
        return min(self.up_bytes_per_s, self.down_bytes_per_s)


def steady_rate(times_s: Sequence[float], totals_bytes: Sequence[int]) -> float | None:
    """Bytes per second of a transfer, without its first quarter, but little more than all of it had on average: on a busy machine what
    arrives is seen late and then all at once.

    Args:
        times_s: when the transfer began, and when something had arrived, ascending.
        totals_bytes: how much by then, ascending; as many.

    Returns:
        None if too little arrived, or all of it at once.
    """
    if len(times_s) < 2 or totals_bytes[-1] - totals_bytes[0] < LEAST_BYTES:
        return None
    counted_bytes = totals_bytes[0] + _STARTING * (totals_bytes[-1] - totals_bytes[0])
    first = next(index for index, total in enumerate(totals_bytes) if total >= counted_bytes)
    took_s = times_s[-1] - times_s[first]
    if took_s <= 0:
        return None
    average = (totals_bytes[-1] - totals_bytes[0]) / (times_s[-1] - times_s[0])
    return min((totals_bytes[-1] - totals_bytes[first]) / took_s, _ROOM * average)
