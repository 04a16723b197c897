"""How fast a member really computes, while it does: taken from steps that count, so that measuring costs nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

WARM_UP_TURNS = 2
"""The first passes allocate memory and load kernels."""


@dataclass(frozen=True, slots=True)
class Computed:
    """What was computed so far.

    Args:
        samples: that counted.
        seconds: they took: forward, backward, and by the outer rule inner steps.
        turns: micro-batches.
    """

    samples: int = 0
    seconds: float = 0.0
    turns: int = 0

    @property
    def samples_per_s(self) -> float | None:
        """None before anything was computed."""
        return self.samples / self.seconds if self.samples and self.seconds > 0 else None


class Pace:
    """Adds up micro-batches; written by the thread that trains, read by any (its value is replaced as a whole).

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left_out = 0
        self.computed = Computed()

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """One micro-batch; it counts if `Turn.samples` was set at its end."""
        turn, began_s = Turn(), self._clock()
        yield turn
        if not turn.samples:
            return
        if self._left_out < WARM_UP_TURNS:
            self._left_out += 1
            return
        before = self.computed
        self.computed = Computed(before.samples + turn.samples, before.seconds + self._clock() - began_s, before.turns + 1)


@dataclass(slots=True)
class Turn:
    """What came of a micro-batch; 0 samples: something else happened in it, and its time says nothing."""

    samples: int = 0
