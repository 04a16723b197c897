"""Deadlines that nobody has to guess: the median of past durations plus a multiple of their spread."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median


@dataclass(slots=True)
class AdaptiveDeadline:
    """How long to wait for something that has happened before.

    Args:
        floor_s: never wait less: a few fast rounds must not make the next hiccup fatal.
        ceiling_s: never wait longer; also the answer while fewer than `quorum` durations are known.
        spread_factor: multiples of the median absolute deviation on top of the median.
        quorum: durations needed before the history counts.
        window: how many durations are remembered.
    """

    floor_s: float
    ceiling_s: float
    spread_factor: float = 6.0
    quorum: int = 3
    window: int = 32
    _seen_s: deque[float] = field(default_factory=deque)

    def observe(self, duration_s: float) -> None:
        """Remember how long it took this time."""
        self._seen_s.append(duration_s)
        if len(self._seen_s) > self.window:
            self._seen_s.popleft()

    @property
    def known(self) -> bool:
        """Whether enough was seen for the history to count."""
        return len(self._seen_s) >= self.quorum

    def value_s(self) -> float:
        """Seconds to wait now."""
        if not self.known:
            return self.ceiling_s
        middle = median(self._seen_s)
        spread = median(abs(duration - middle) for duration in self._seen_s)
        return min(max(2 * middle + self.spread_factor * spread, self.floor_s), self.ceiling_s)
