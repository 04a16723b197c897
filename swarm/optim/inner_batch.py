"""The inner steps of one member: gradients of micro-batches become batches, and each batch one step of the inner optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from protocols.errors import ConfigError
from protocols.ids import Epoch
from swarm.optim.offload import OffloadedOptimizer
from swarm.optim.settings import OuterSettings


class InnerBatch:
    """Gathers gradients where the optimizer has its states, on the device of the model or in main memory, and steps.

    Args:
        params: name -> the model's own parameters that are trained.
        optimizer: over them.
        settings: size of a batch, rate, and limit of a step's gradient. Groups keep their ratio to the first group.

    Raises:
        ConfigError: an optimizer that cannot be stepped so.
    """

    def __init__(self, params: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, settings: OuterSettings) -> None:
        if isinstance(optimizer, torch.optim.LBFGS) or any("lr" not in group for group in optimizer.param_groups):
            raise ConfigError("the inner optimizer must have a learning rate and step on one gradient at a time")
        self._params = params
        self._optimizer = optimizer
        self._size_samples = settings.inner_batch_samples
        self._learning_rate = settings.learning_rate
        self._clip_norm = settings.grad_clip_norm
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._sums: dict[str, torch.Tensor] = {}
        self._offloaded = optimizer if isinstance(optimizer, OffloadedOptimizer) else None
        self._samples = 0
        self.steps = 0
        """Made since the beginning."""

    @property
    def missing(self) -> int:
        """Samples until the batch is full; 0: it is."""
        return max(self._size_samples - self._samples, 0)

    @property
    def pending(self) -> int:
        """Samples in the batch."""
        return self._samples

    @property
    def rates(self) -> tuple[float, ...]:
        """Of the optimizer's groups as they were given."""
        return tuple(self._rates)

    def add(self, samples: int, *, summed: bool) -> bool:
        """Take the gradients from the model into the batch.

        Args:
            samples: they are the mean over so many.
            summed: they are the sum instead.

        Returns:
            False if one is not finite; then none is taken.
        """
        found = {name: param.grad.detach() for name, param in self._params.items() if param.grad is not None}
        self.clear_gradients()
        if found and not math.isfinite(_norm(found.values())):
            return False
        for name, gradient in found.items():
            part = gradient if summed else gradient * samples
            if self._offloaded is not None:
                part = part.cpu()
            if name in self._sums:
                self._sums[name].add_(part)
            else:
                self._sums[name] = part
        self._samples += samples
        return True

    def step(self, epoch: Epoch) -> None:
        """Step on what there is, if anything. A batch that is not full steps by as much of the rate as there is of the batch.

        Args:
            epoch: of the learning rate.
        """
        if not self._samples:
            return
        for total in self._sums.values():
            total.div_(self._samples)  # in place: a device has no room for it twice
        self._clip()
        share = min(self._samples / self._size_samples, 1.0)
        for group, own in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = self._rate(epoch, own) * share
        if self._offloaded is not None:
            self._offloaded.step_by({self._params[name]: mean for name, mean in self._sums.items()})
        else:
            for name, mean in self._sums.items():
                self._params[name].grad = mean
            self._optimizer.step()
        self.steps += 1
        self.forget()

    def forget(self) -> None:
        """Drop what was gathered."""
        self.clear_gradients()
        self._sums = {}
        self._samples = 0

    def clear_gradients(self) -> None:
        """Drop what `backward` left on the model."""
        for param in self._params.values():
            param.grad = None

    def _rate(self, epoch: Epoch, own: float) -> float:
        if self._learning_rate is None or not self._rates[0]:
            return own
        return self._learning_rate(epoch) * (own / self._rates[0])

    def _clip(self) -> None:
        if self._clip_norm is None:
            return
        norm = _norm(self._sums.values())
        if norm > self._clip_norm:
            for mean in self._sums.values():
                mean.mul_(self._clip_norm / norm)


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
