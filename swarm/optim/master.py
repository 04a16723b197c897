"""The fp32 copy of the parameters on the CPU that the optimizer works on: the anchor, the same bytes on every member."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from protocols.errors import ConfigError


class MasterParams:
    """Joins a model's parameters with their fp32 masters on the CPU.

    A parameter that is fp32 on the CPU is its own master. For any other (CUDA, bf16) a master is made, and the optimizer's groups and
    state are pointed at it.

    Args:
        model: the model; parameters that are shared under two names count once, under the first.
        optimizer: over some or all of its parameters; the others are frozen but still belong to the state.

    Raises:
        ConfigError: the optimizer holds a tensor that is not a parameter of the model, or holds nothing.
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        params = dict(model.named_parameters())
        self._pairs = {name: (param, _master_of(param)) for name, param in params.items()}
        masters = dict(self._pairs.values())
        trained = [param for group in optimizer.param_groups for param in group["params"]]
        if not trained or any(param not in masters for param in trained):
            raise ConfigError("the optimizer must be built over parameters of the model that is given with it")
        trained_ids = {id(param) for param in trained}
        self._trained = tuple(name for name, param in params.items() if id(param) in trained_ids)
        _repoint(optimizer, masters)

    @property
    def all(self) -> dict[str, torch.Tensor]:
        """Name -> master, for every parameter in the model's order."""
        return {name: master for name, (_, master) in self._pairs.items()}

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """Name -> master, for the parameters that the optimizer updates, in the model's order."""
        return {name: self._pairs[name][1] for name in self._trained}

    def gradients(self) -> dict[str, torch.Tensor | None]:
        """Name -> gradient on the model's own parameter, where `backward` left one."""
        return {name: self._pairs[name][0].grad for name in self._trained}

    def clear_gradients(self) -> None:
        """Drop the gradients of model and masters."""
        for param, master in self._pairs.values():
            param.grad = None
            master.grad = None

    def set_gradients(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """Put gradients on the masters for the optimizer to use."""
        for name in self._trained:
            self._pairs[name][1].grad = gradients[name]

    @torch.no_grad()
    def copy_trained(self, into: Mapping[str, torch.Tensor] | None = None) -> Mapping[str, torch.Tensor]:
        """The masters that the optimizer updates, as they are now.

        Args:
            into: an earlier copy, to be overwritten instead of making a new one.
        """
        if into is None:
            return {name: master.detach().clone() for name, master in self.trained.items()}
        for name, master in self.trained.items():
            into[name].copy_(master)
        return into

    @contextmanager
    def replaced_by(self, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """While the context is open the model computes with other parameters; afterwards, whatever happens, with the very same as before.

        In between nobody may step the optimizer or copy the state. Masters that are no parameters of the model stay what they are.

        Args:
            values: as `copy_trained` gave them; neither copied where the model computes in fp32 on the CPU, nor changed.
        """
        own = {name: param.data for name, (param, master) in self._pairs.items() if param is master}
        try:
            for name in self._trained:
                param = self._pairs[name][0]
                if name in own:
                    param.data = values[name]
                else:
                    param.data.copy_(values[name])
            yield
        finally:
            for name in self._trained:
                param, master = self._pairs[name]
                if name in own:
                    param.data = own[name]
                else:
                    param.data.copy_(master.data)

    def computing(self) -> AbstractContextManager[None]:
        """The model computes with them all the time."""
        return nullcontext()

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the masters to the model."""
        for param, master in self._pairs.values():
            if param is not master:
                param.copy_(master)


def _master_of(param: torch.nn.Parameter) -> torch.Tensor:
    dtype = torch.float32 if param.is_floating_point() else param.dtype
    if param.device.type == "cpu" and param.dtype == dtype and param.is_contiguous():
        return param
    copy = torch.empty(param.shape, dtype=dtype)
    copy.copy_(param.detach())
    return torch.nn.Parameter(copy, requires_grad=param.requires_grad)


def _repoint(optimizer: torch.optim.Optimizer, masters: Mapping[torch.nn.Parameter, torch.Tensor]) -> None:
    for group in optimizer.param_groups:
        group["params"] = [masters[param] for param in group["params"]]
    for param in list(optimizer.state):
        master = masters.get(param)  # type: ignore[call-overload]
        if master is not None and master is not param:
            kept = optimizer.state.pop(param)
            optimizer.state[master] = {key: _on_cpu(value) for key, value in kept.items()}


def _on_cpu(value: object) -> object:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype)
