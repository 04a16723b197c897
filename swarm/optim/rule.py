"""The sync-rule seam: what a member contributes to an epoch, and what the swarm's average does to the model.

Two rules: `swarm.optim.gradient_rule` (mean gradients, one optimizer step an epoch) and `swarm.optim.outer_rule` (many steps of one's own,
then one step of an outer optimizer on how far they led). `tests/contracts/test_sync_rule.py` runs over both.

In every epoch, in order: `add` after each micro-batch; `contribution`; `begin_next`, from where on samples belong to the next epoch; and
`apply` with what the swarm made of the contributions. Micro-batches may be added between the last two: the result is then applied late.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from peers.training_peer import Contribution, ReplayRequest
from protocols.ids import Epoch
from protocols.layout import FlatLayout
from swarm.optim.replay import Replay, ReplayParams

LearningRate = Callable[[int], float]
"""Learning rate of an epoch's steps, by the number of that epoch, from 0."""


class SharedParams(Protocol):
    """The parameters that all members hold alike, fp32 on the CPU: the anchor."""

    @property
    def all(self) -> Mapping[str, torch.Tensor]:
        """Name -> tensor, for every parameter in the model's order."""

    @property
    def trained(self) -> Mapping[str, torch.Tensor]:
        """Those that are averaged."""

    def write_back(self) -> None:
        """Copy all of them to the model."""

    def computing(self) -> AbstractContextManager[None]:
        """While the context is open the model computes with them; afterwards with the very same as before."""


@dataclass(frozen=True, slots=True)
class OwnParams:
    """What a member has for itself: the model's own parameters by name, and the optimizer that steps them."""

    params: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer


class SyncRule(Protocol):
    """See the module. Not thread-safe."""

    @property
    def name(self) -> str:
        """As in `RunSpec.optimizer.rule`; it is part of the state."""

    @property
    def shared(self) -> SharedParams:
        """The anchor."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What steps the anchor; its state is part of the swarm's."""

    @property
    def own(self) -> OwnParams | None:
        """What this member alone has, to be kept over a restart; None if there is nothing."""

    @property
    def samples(self) -> int:
        """Samples that the next contribution stands for, as of now."""

    @property
    def next_sample(self) -> int:
        """Index in its epoch of the sample to compute next."""

    @property
    def dropped_batches(self) -> int:
        """Micro-batches left out since the beginning because they were not finite."""

    @property
    def batch_limit(self) -> int | None:
        """Most samples that the next micro-batch should have; None for any number."""

    def turn(self, epoch: Epoch) -> int:
        """Number of what is averaged to close an epoch, where several things take turns."""

    def layout(self, epoch: Epoch) -> FlatLayout:
        """Order and shapes of what is averaged to close an epoch."""

    def add(self, samples: int, *, summed: bool = False) -> bool:
        """Take in the gradients that `backward` left on the model and clear them.

        Args:
            samples: they are the mean over so many samples, at least 1.
            summed: they are the sum over the samples instead.

        Returns:
            False if they were not finite: they were dropped, and with them what had been computed in this epoch.
        """

    def drop(self, samples: int) -> None:
        """Leave out what `backward` left on the model, as `add` does with what is not finite."""

    def clear_gradients(self) -> None:
        """Drop what `backward` left on the model."""

    def record(self) -> None:
        """From now on contributions say all that an auditor needs to compute them again; called before the first sample."""

    @property
    def recording(self) -> bool:
        """Whether they do, and what is this member's own cannot be taken up again after a restart: nobody could vouch for it."""

    def replay(self, request: ReplayRequest, params: ReplayParams) -> Replay:
        """Begin to compute somebody else's contribution.

        Raises:
            StateMismatch: what it began with is not known here, or does not fit this model.
        """

    def contribution(self, epoch: Epoch, state_hash: bytes) -> Contribution:
        """What to bring to the round that closes `epoch`; a copy."""

    def begin_next(self) -> None:
        """The last contribution is on its way: what is added from now on belongs to the epoch after it."""

    def apply(self, average_D: torch.Tensor, epoch: Epoch) -> bool:
        """Take the step that closes `epoch`.

        Args:
            average_D: flat_D fp32 in `layout(epoch)`, the same bytes on every member; not written to.
            epoch: which one is closed.

        Returns:
            False if the average was not finite; then no step is taken, by any member.
        """

    def left_out(self) -> None:
        """The last contribution was not in the result that was applied: others may never have heard of it. Called after `apply`."""

    def resume(self, samples: int, next_sample: int) -> None:
        """The model has come back from disk as it was: it holds what so many samples did, which the next contribution stands for too.

        Args:
            samples: at least 0.
            next_sample: index in the epoch of the next one to compute.
        """

    def reset(self, epoch: Epoch) -> None:
        """The anchor has been replaced by that of `epoch`: forget what was computed from the old one."""
