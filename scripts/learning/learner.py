"""One member of a swarm that learns: a whole node, and a trainer that computes real gradients while virtual time passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from peers.bridge import PeerHandle
from peers.interfaces import Transport
from peers.node import Node
from peers.state_snapshot import StateSnapshot
from peers.training_peer import PeerStopped, ReplayRequest
from protocols.errors import RoundError
from protocols.ids import Epoch, PeerId
from swarm.data.assignment import window_offsets
from swarm.data.dataset import Dataset
from swarm.optim import CollaborativeOptimizer, StepOutcome, StepStatus
from swarm.training.gradients import accumulate_gradients

RETRY_S = 0.5
"""Pause before another try to fetch a state that nobody could give."""


class SimulatedHandle(PeerHandle):
    """A `PeerHandle` whose trainer runs on the loop itself: it must not block there, so its driver fetches states for it."""

    def fetch_state(self) -> StateSnapshot:
        """Not from here.

        Raises:
            RoundError: always; `Learner` then awaits the node.
        """
        raise RoundError("the driver fetches it")


@dataclass(frozen=True, slots=True)
class Pace:
    """How a member computes.

    Args:
        micro_batch_samples: at once.
        step_s: virtual seconds that they take.
        run_seed: decides which samples.
    """

    micro_batch_samples: int
    step_s: float
    run_seed: int


@dataclass(eq=False)
class Learner:
    """One member.

    Args:
        peer: who it is.
        node, handle: its two halves.
        transport: of the node.
        model, optimizer: its own.
        dataset: what all learn.
        pace: how it computes.
        on_outcome: called after every step that closed an epoch or took a state over.
    """

    peer: PeerId
    node: Node
    handle: SimulatedHandle
    transport: Transport
    model: nn.Module
    optimizer: CollaborativeOptimizer
    dataset: Dataset
    pace: Pace
    on_outcome: Callable[[Learner, StepOutcome], None]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    computed_samples: int = 0

    async def train(self) -> None:
        """What `swarm.training.trainer.Trainer` does, on virtual time."""
        try:
            while not self.handle.stopping():
                if not await self._up_to_date():
                    await asyncio.sleep(RETRY_S)
                    continue
                outcome = await self._step()
                if outcome.status.closed_epoch:
                    self.on_outcome(self, outcome)
        except PeerStopped:
            return

    async def _up_to_date(self) -> bool:
        if not self.handle.view().behind or self.optimizer.averaging:
            return True
        try:
            snapshot = await self.node.fetch_state()
        except RoundError:
            return False
        self.optimizer.take_over(snapshot)
        self.on_outcome(self, StepOutcome(StepStatus.CAUGHT_UP, self.optimizer.epoch, 0))
        return True

    async def _step(self) -> StepOutcome:
        optimizer, pace = self.optimizer, self.pace
        await asyncio.sleep(pace.step_s)
        if optimizer.synchronise() is not None:
            return StepOutcome(StepStatus.BEHIND, optimizer.epoch, 0)
        size = min(pace.micro_batch_samples, optimizer.batch_limit or pace.micro_batch_samples)
        first = optimizer.next_sample
        epoch: Epoch = optimizer.sampling_epoch
        offsets = window_offsets(pace.run_seed, epoch, self.peer.public_key, range(first, first + size), self.dataset.positions)
        loss = accumulate_gradients(self.model, self.dataset.sample(offsets))
        self.computed_samples += size
        return optimizer.step(samples=size, loss=loss.mean, summed=True)

    def replay(self, request: ReplayRequest, done: int) -> int | None:
        """The next samples of another member's contribution: a `swarm.optim.replay.ReplayBatch`; takes no virtual time."""
        first = request.first_sample + done
        size = min(self.pace.micro_batch_samples, request.samples - done)
        indices = range(first, first + size)
        offsets = window_offsets(self.pace.run_seed, request.epoch, request.peer.public_key, indices, self.dataset.positions)
        loss = accumulate_gradients(self.model, self.dataset.sample(offsets), bf16=request.bf16)
        return loss.samples if loss.is_finite else None

    def parameters(self) -> torch.Tensor:
        """A copy of what the swarm holds, as this member has it, flat."""
        with self.optimizer.shared_parameters():
            return torch.cat([param.detach().flatten() for param in self.model.parameters()]).clone()
