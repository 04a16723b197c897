"""One replay: a contribution of somebody else, computed again a few micro-batches at a time.

`swarm.optim.gradient_replay` and `swarm.optim.outer_replay` follow the two sync rules; `swarm.optim.replaying` decides when one goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from peers.training_peer import Replayed, ReplayRequest

ReplayBatch = Callable[[ReplayRequest, int], int | None]
"""Compute some of a request's samples on the model as it is now.

Receives the request and how many of its samples are done. Adds the *sum* of the next samples' gradients to every `.grad` and returns how
many they were, at least 1 and no more than the request still has; None if they cannot be computed. A rule may ask for fewer than the
whole: then the request that the hook sees ends earlier."""


@dataclass(slots=True)
class ReplayParams:
    """Trained parameters that a replay goes by, by name. Whoever changes any of them puts a copy here first.

    Args:
        held: what all members held when the contribution was made.
        before: what they held one epoch earlier; None where that is not known any more.
    """

    held: Mapping[str, torch.Tensor]
    before: Mapping[str, torch.Tensor] | None = None


class Replay(Protocol):
    """See the module. The model is somebody else's while `computing` is open, and the very same as before afterwards."""

    @property
    def request(self) -> ReplayRequest:
        """What is computed."""

    @property
    def finished(self) -> bool:
        """Whether all samples are done."""

    @property
    def moves(self) -> bool:
        """Whether what comes next is computed elsewhere than what came last: `computing` is to be opened anew."""

    def computing(self) -> AbstractContextManager[None]:
        """While the context is open the model computes where the contributor computed, and `advance` may be called."""

    def advance(self, compute: ReplayBatch) -> bool:
        """One micro-batch. False if it cannot be computed or is not finite, as on other hardware it may have been: nobody is accused."""

    def result(self) -> Replayed:
        """What all samples came to."""
