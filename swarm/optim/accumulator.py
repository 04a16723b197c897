"""Sums gradients over micro-batches into one flat fp32 vector.

Shapes: flat_D is one fp32 vector of all D trained elements, in the order of a `protocols.layout.FlatLayout`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from protocols.layout import FlatLayout

_LARGEST = 1e30
"""An element to be added beyond this counts as not finite, so that no sum can overflow fp32 (3.4e38)."""


class GradientAccumulator:
    """Sum over micro-batches of samples x mean gradient. A micro-batch with a NaN, an infinity or an absurd value leaves no trace in it.

    What is summed is always one contiguous range of this member's samples, so that anybody can compute it again from three numbers. Hence a
    micro-batch that is left out ends the range: the sum begins anew after it.

    Args:
        layout: order and shapes of the gradients.
    """

    def __init__(self, layout: FlatLayout) -> None:
        self._layout = layout
        self._sum_D = torch.zeros(layout.size_elems)
        self._batch_D = torch.zeros(layout.size_elems)
        self._first_sample = 0
        self._samples = 0
        self._dropped_batches = 0

    @property
    def samples(self) -> int:
        """Samples in the sum."""
        return self._samples

    @property
    def first_sample(self) -> int:
        """Index of the first sample in the sum, counted since the last `reset`."""
        return self._first_sample

    @property
    def dropped_batches(self) -> int:
        """Micro-batches left out since the beginning because they were not finite."""
        return self._dropped_batches

    def add(self, gradients: Mapping[str, torch.Tensor | None], samples: int, *, summed: bool = False) -> bool:
        """Add one micro-batch.

        Args:
            gradients: name -> gradient, any device and dtype; None where a parameter was not used.
            samples: of the micro-batch, at least 1.
            summed: the gradients are sums over the samples, not means.

        Returns:
            False if it was dropped, as by `drop`, because it was not finite.

        Raises:
            ValueError: a gradient is missing or has the wrong shape, or `samples` is below 1.
        """
        if samples < 1:
            raise ValueError(f"a micro-batch has at least one sample, not {samples}")
        zero = torch.zeros(())
        shapes = {slot.name: slot.shape for slot in self._layout.slots}
        present = {n: (zero.expand(shapes[n]) if g is None else g) for n, g in gradients.items() if n in shapes}
        self._layout.flatten_into(present, self._batch_D)
        scale = 1 if summed else samples
        if not _moderate(self._batch_D, scale):
            self.drop(samples)
            return False
        self._sum_D.add_(self._batch_D, alpha=scale)
        self._samples += samples
        return True

    def drop(self, samples: int) -> None:
        """Leave out a micro-batch of so many samples, and with it what was summed before."""
        self._dropped_batches += 1
        self._first_sample += self._samples + samples
        self._sum_D.zero_()
        self._samples = 0

    def mean(self) -> torch.Tensor:
        """A new flat_D: mean gradient over all samples; zeros if there are none."""
        return self._sum_D / max(self._samples, 1)

    def reset(self) -> None:
        """Forget the sum; the next sample has index 0."""
        self._sum_D.zero_()
        self._first_sample = 0
        self._samples = 0


def _moderate(batch_D: torch.Tensor, scale: int) -> bool:
    if batch_D.numel() == 0:
        return True
    low, high = (float(bound) for bound in torch.aminmax(batch_D))  # NaN comes through; no temporary of size D
    return math.isfinite(low) and math.isfinite(high) and max(-low, high) * scale <= _LARGEST
