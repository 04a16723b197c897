"""The anchor beside the model: what all members hold alike, while each model goes its own way between two averages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from protocols.errors import ConfigError


class Anchor:
    """fp32 copies on the CPU of a model's parameters; the model keeps its own, on any device.

    Args:
        model: parameters that are shared under two names count once, under the first.
        optimizer: over some or all of its parameters; the others are frozen but still belong to the state.

    Raises:
        ConfigError: the optimizer holds a tensor that is not a parameter of the model, or holds nothing.
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.local: dict[str, torch.nn.Parameter] = dict(model.named_parameters())
        trained = {id(param) for group in optimizer.param_groups for param in group["params"]}
        if not trained or not trained <= {id(param) for param in self.local.values()}:
            raise ConfigError("the optimizer must be built over parameters of the model that is given with it")
        self._trained = tuple(name for name, param in self.local.items() if id(param) in trained)
        self._held = {name: _copy(param) for name, param in self.local.items()}

    @property
    def all(self) -> dict[str, torch.Tensor]:
        """Name -> anchor, for every parameter in the model's order."""
        return dict(self._held)

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """Name -> anchor, for the parameters that the optimizers update, in the model's order."""
        return {name: self._held[name] for name in self._trained}

    @property
    def local_trained(self) -> dict[str, torch.nn.Parameter]:
        """Name -> the model's own parameter, for the same ones."""
        return {name: self.local[name] for name in self._trained}

    @torch.no_grad()
    def write_back(self) -> None:
        """Bring the model back to the anchor."""
        for name, param in self.local.items():
            param.copy_(self._held[name])

    @contextmanager
    def computing(self) -> Iterator[None]:
        """While the context is open the model computes with the anchor; afterwards, whatever happens, with the very same as before."""
        own = {name: param.data for name, param in self.local.items()}
        try:
            for name, param in self.local.items():
                param.data = self._held[name].data.to(param.device, param.dtype)
            yield
        finally:
            for name, param in self.local.items():
                param.data = own[name]


def _copy(param: torch.nn.Parameter) -> torch.nn.Parameter:
    dtype = torch.float32 if param.is_floating_point() else param.dtype
    held = torch.empty(param.shape, dtype=dtype)
    held.copy_(param.detach())
    return torch.nn.Parameter(held, requires_grad=param.requires_grad)
