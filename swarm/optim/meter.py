"""Measures what this member does in an epoch: mean loss and samples a second of computing."""

from __future__ import annotations

from collections.abc import Callable

_SMOOTHING = 0.2
"""Weight of the newest micro-batch in the smoothed time per sample."""


class Meter:
    """Speed while computing, and the epoch's loss.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since_s = clock()
        self._s_per_sample: float | None = None
        self._first = False
        self._loss_sum = 0.0
        self._loss_samples = 0

    @property
    def samples_per_s(self) -> float:
        """Smoothed; 0 before the first micro-batch."""
        return 1 / self._s_per_sample if self._s_per_sample else 0.0

    @property
    def loss(self) -> float | None:
        """Mean over this epoch's samples so far; None before the first."""
        return self._loss_sum / self._loss_samples if self._loss_samples else None

    def add(self, samples: int, loss: float | None) -> None:
        """A micro-batch was computed since the last call of `add` or `resume`."""
        now_s = self._clock()
        newest = max(now_s - self._since_s, 1e-9) / samples
        old = self._s_per_sample
        if old is None or self._first:  # the first took all the time since this was made: the second replaces it
            self._first = old is None
            self._s_per_sample = newest
        else:
            self._s_per_sample = old + _SMOOTHING * (newest - old)
        self._since_s = now_s
        if loss is not None:
            self._loss_sum += loss * samples
            self._loss_samples += samples

    def resume(self) -> None:
        """Computing goes on now: what came before, such as averaging, does not count as computing."""
        self._since_s = self._clock()

    def new_epoch(self) -> None:
        """Start a new mean of the loss."""
        self._loss_sum, self._loss_samples = 0.0, 0
