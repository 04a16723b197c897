"""The *gradient* sync rule: contribute the mean gradient over this member's samples, take one optimizer step an epoch.

Weighted by samples, the average of the contributions is the gradient of one large batch, whoever is online (DeDLOC, Diskin et al. 2021,
section 3.1). Everything below is elementwise or summed in a fixed order, so members that apply the same bytes hold the same bytes after.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from peers.training_peer import Contribution
from protocols.errors import ConfigError
from protocols.ids import Epoch
from protocols.layout import FlatLayout
from swarm.optim.accumulator import GradientAccumulator
from swarm.optim.master import MasterParams

_NORM_BLOCK_ELEMS = 2**20

LearningRate = Callable[[int], float]
"""Learning rate of the step that closes an epoch, by the number of that epoch, from 0."""


class GradientRule:
    """Accumulates gradients and applies averages of them.

    Args:
        masters: parameters of the model.
        optimizer: steps them; its groups already point at the masters.
        learning_rate: by epoch; None leaves the optimizer's own. Groups keep their ratio to the first group.
        grad_clip_norm: largest 2-norm of the averaged gradient; None for no limit.

    Raises:
        ConfigError: the optimizer cannot be stepped deterministically, or a limit that is not positive.
    """

    name = "gradient"

    def __init__(
        self,
        masters: MasterParams,
        optimizer: torch.optim.Optimizer,
        *,
        learning_rate: LearningRate | None = None,
        grad_clip_norm: float | None = None,
    ) -> None:
        if grad_clip_norm is not None and not 0 < grad_clip_norm < math.inf:
            raise ConfigError(f"grad_clip_norm must be positive, not {grad_clip_norm}")
        _make_deterministic(optimizer)
        self._masters = masters
        self._optimizer = optimizer
        self._learning_rate = learning_rate
        self._clip_norm = grad_clip_norm
        first = float(optimizer.param_groups[0]["lr"])
        self._lr_ratios = [float(group["lr"]) / first if first else 1.0 for group in optimizer.param_groups]
        self.layout = FlatLayout.of(masters.trained)
        self._accumulator = GradientAccumulator(self.layout)
        self._step_D = torch.zeros(self.layout.size_elems)

    @property
    def samples(self) -> int:
        """Samples accumulated in this epoch."""
        return self._accumulator.samples

    @property
    def next_sample(self) -> int:
        """Index of the sample that comes next in this epoch: those taken in and those left out before it."""
        return self._accumulator.first_sample + self._accumulator.samples

    @property
    def dropped_batches(self) -> int:
        """Micro-batches dropped since the beginning because they were not finite."""
        return self._accumulator.dropped_batches

    def add(self, samples: int, *, summed: bool = False) -> bool:
        """Take in the gradients that `backward` left on the model and clear them.

        Args:
            samples: they are the mean over so many samples, at least 1.
            summed: they are the sum over the samples instead.

        Returns:
            False if they were not finite and were dropped, and with them what was accumulated: see `GradientAccumulator`.
        """
        accepted = self._accumulator.add(self._masters.gradients(), samples, summed=summed)
        self._masters.clear_gradients()
        return accepted

    def drop(self, samples: int) -> None:
        """Leave out what `backward` left on the model, and with it what was accumulated: see `GradientAccumulator`."""
        self._accumulator.drop(samples)
        self._masters.clear_gradients()

    def contribution(self, epoch: Epoch, state_hash: bytes) -> Contribution:
        """What to bring to the round that closes `epoch`; a copy."""
        return Contribution(epoch, self._accumulator.mean(), float(self.samples), state_hash, self._accumulator.first_sample)

    def apply(self, average_D: torch.Tensor, epoch: Epoch) -> bool:
        """Take the step that closes `epoch` and forget what was accumulated.

        Args:
            average_D: flat_D fp32, the same bytes on every member; not written to.
            epoch: of the step, for the learning rate.

        Returns:
            False if the average was not finite; then no step is taken, by any member.
        """
        self._accumulator.reset()
        norm = global_norm(average_D)
        if not math.isfinite(norm):
            return False
        self._step_D.copy_(average_D)
        if self._clip_norm is not None and norm > self._clip_norm:
            self._step_D.mul_(self._clip_norm / norm)
        if self._learning_rate is not None:
            for group, ratio in zip(self._optimizer.param_groups, self._lr_ratios, strict=True):
                group["lr"] = self._learning_rate(epoch) * ratio
        self._masters.set_gradients(self.layout.views(self._step_D))
        self._optimizer.step()
        self._masters.clear_gradients()
        self._masters.write_back()
        return True

    def reset(self) -> None:
        """Forget what was accumulated."""
        self._accumulator.reset()


def global_norm(flat_D: torch.Tensor) -> float:
    """2-norm of a vector, the same bits on every member.

    torch splits long sums among threads, so its norm depends on their number. Here squares are exact (fp32 squared fits fp64) and added by
    numpy's pairwise sum, which uses one thread, block after block.
    """
    total = 0.0
    for start in range(0, flat_D.numel(), _NORM_BLOCK_ELEMS):
        block = flat_D[start : start + _NORM_BLOCK_ELEMS].numpy().astype(np.float64)
        total += float(np.add.reduce(np.square(block)))
    return math.sqrt(total)


def _make_deterministic(optimizer: torch.optim.Optimizer) -> None:
    """Choose the plain one-tensor-at-a-time arithmetic, whatever torch would choose on this machine."""
    for group in (optimizer.defaults, *optimizer.param_groups):
        if group.get("fused"):
            raise ConfigError("a fused optimizer rounds differently on every machine; build it without fused=True")
        if group.get("capturable") or group.get("differentiable"):
            raise ConfigError("the optimizer must be built without capturable=True and differentiable=True")
        for flag in ("fused", "foreach"):
            if flag in group:
                group[flag] = False
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError("LBFGS needs to evaluate the loss several times a step and cannot be used in a swarm")
    if any("lr" not in group for group in optimizer.param_groups):
        raise ConfigError("the optimizer has no learning rate")
