"""The *gradient* sync rule: contribute the mean gradient over this member's samples, take one optimizer step an epoch.

Weighted by samples, the average of the contributions is the gradient of one large batch, whoever is online (DeDLOC, Diskin et al. 2021,
section 3.1). Everything below is elementwise or summed in a fixed order, so members that apply the same bytes hold the same bytes after.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from peers.training_peer import Contribution, ReplayRequest
from protocols.errors import ConfigError
from protocols.ids import Epoch
from protocols.layout import FlatLayout
from swarm.optim.accumulator import GradientAccumulator
from swarm.optim.gradient_replay import GradientReplay
from swarm.optim.master import MasterParams
from swarm.optim.replay import ReplayParams
from swarm.optim.settings import GradientSettings
from swarm.optim.state import StateMismatch

_NORM_BLOCK_ELEMS = 2**20


class GradientRule:
    """Implements `swarm.optim.rule.SyncRule`: accumulates gradients and applies averages of them.

    Args:
        masters: parameters of the model.
        optimizer: steps them; its groups already point at the masters.
        settings: rate and limit of the step. Groups keep their ratio to the first group.

    Raises:
        ConfigError: the optimizer cannot be stepped deterministically.
    """

    name = "gradient"

    def __init__(self, masters: MasterParams, optimizer: torch.optim.Optimizer, settings: GradientSettings | None = None) -> None:
        settings = settings or GradientSettings()
        _make_deterministic(optimizer)
        self.shared = masters
        self.optimizer = optimizer
        self._learning_rate = settings.learning_rate
        self._clip_norm = settings.grad_clip_norm
        first = float(optimizer.param_groups[0]["lr"])
        self._lr_ratios = [float(group["lr"]) / first if first else 1.0 for group in optimizer.param_groups]
        self._layout = FlatLayout.of(masters.trained)
        self._accumulator = GradientAccumulator(self._layout)
        self._step_D = torch.zeros(self._layout.size_elems)
        self._late_samples = 0

    @property
    def own(self) -> None:
        """Nothing: what is accumulated is lost with the process."""
        return

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

    @property
    def batch_limit(self) -> int | None:
        """None: micro-batches may be of any size."""
        return None

    def turn(self, _epoch: Epoch) -> int:
        """0: always the whole gradient."""
        return 0

    def layout(self, _epoch: Epoch) -> FlatLayout:
        """The same in every epoch."""
        return self._layout

    def add(self, samples: int, *, summed: bool = False) -> bool:
        """See `SyncRule.add`, and `GradientAccumulator` for what is dropped with a micro-batch that is not finite."""
        accepted = self._accumulator.add(self.shared.gradients(), samples, summed=summed)
        if not accepted:
            self._late_samples = 0
        self.shared.clear_gradients()
        return accepted

    def drop(self, samples: int) -> None:
        """Leave out what `backward` left on the model, and with it what was accumulated: see `GradientAccumulator`."""
        self._accumulator.drop(samples)
        self._late_samples = 0
        self.shared.clear_gradients()

    def clear_gradients(self) -> None:
        """Drop what `backward` left on the model."""
        self.shared.clear_gradients()

    def contribution(self, epoch: Epoch, state_hash: bytes) -> Contribution:
        """What to bring to the round that closes `epoch`; a copy."""
        first_sample = self._accumulator.first_sample
        return Contribution(epoch, self._accumulator.mean(), float(self.samples), state_hash, first_sample, self._late_samples)

    def record(self) -> None:
        """See `SyncRule.record`: they always do."""

    @property
    def recording(self) -> bool:
        """See `SyncRule.recording`: there is nothing that could be taken up."""
        return False

    def replay(self, request: ReplayRequest, params: ReplayParams) -> GradientReplay:
        """See `SyncRule.replay`."""
        if request.traced.late_samples and params.before is None:
            raise StateMismatch("the parameters of the epoch before are not known any more")
        return GradientReplay(request, params, self.shared, self._layout)

    def begin_next(self) -> None:
        """See `SyncRule.begin_next`."""
        self._accumulator.reset()
        self._late_samples = 0

    def apply(self, average_D: torch.Tensor, epoch: Epoch) -> bool:
        """See `SyncRule.apply`."""
        self._late_samples = self._accumulator.samples
        norm = global_norm(average_D)
        if not math.isfinite(norm):
            return False
        self._step_D.copy_(average_D)
        if self._clip_norm is not None and norm > self._clip_norm:
            self._step_D.mul_(self._clip_norm / norm)
        if self._learning_rate is not None:
            for group, ratio in zip(self.optimizer.param_groups, self._lr_ratios, strict=True):
                group["lr"] = self._learning_rate(epoch) * ratio
        self.shared.set_gradients(self._layout.views(self._step_D))
        self.optimizer.step()
        self.shared.clear_gradients()
        self.shared.write_back()
        return True

    def left_out(self) -> None:
        """See `SyncRule.left_out`: nothing is gone on from."""

    def resume(self, _samples: int, _next_sample: int) -> None:
        """Never asked for, as nothing is kept."""

    def reset(self, _epoch: Epoch) -> None:
        """Forget what was accumulated."""
        self._accumulator.reset()
        self._late_samples = 0


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
