"""An optimizer whose states stay in main memory, while the parameters and their gradients are on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from protocols.errors import ConfigError

_SLOTS = 2


class _Slot:
    """Host memory for one parameter and its gradient, pinned where the device copies faster for it."""

    def __init__(self, elems: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._param_E = torch.empty(elems, pin_memory=cuda)
        self._grad_E = torch.empty(elems, pin_memory=cuda)
        self._arrived = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]

    def fetch(self, param: torch.nn.Parameter) -> None:
        """Begin to copy from the device. Copies of one stream are made in order: what still leaves this slot has left before."""
        for into_E, tensor in ((self._param_E, param.detach()), (self._grad_E, param.grad)):
            if tensor is not None:
                into_E[: tensor.numel()].view(tensor.shape).copy_(tensor, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(param.device))

    def wait(self, shape: torch.Size) -> torch.nn.Parameter:
        """The copy of a parameter, with its gradient."""
        if self._arrived is not None:
            self._arrived.synchronize()
        staged = torch.nn.Parameter(self._param_E[: shape.numel()].view(shape))
        staged.grad = self._grad_E[: shape.numel()].view(shape)
        return staged


class OffloadedOptimizer(torch.optim.Optimizer):
    """Steps on the CPU, one parameter after another, by another optimizer; the next one is copied meanwhile.

    It gives what that optimizer would give on the CPU, to the last bit. `state` maps the device's parameters to states in main memory.

    Args:
        params: fp32, all on one device, which may be the CPU too.
        make: the optimizer of given parameters. It must be elementwise: it sees one parameter at a time.

    Raises:
        ConfigError: a parameter that is not fp32.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]) -> None:
        self.stepper = make([torch.nn.Parameter(torch.empty(0))])
        super().__init__(params, dict(self.stepper.defaults))
        held = [param for group in self.param_groups for param in group["params"]]
        if any(param.dtype != torch.float32 for param in held):
            raise ConfigError("an optimizer can be kept in main memory for fp32 parameters only")
        largest_elems = max(param.numel() for param in held)
        self._slots = [_Slot(largest_elems, held[0].device) for _ in range(_SLOTS)]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, param, staged in self._staged():
            self._step_one(group, param, staged)
            param.copy_(staged, non_blocking=True)
        return loss

    def _staged(self) -> Iterator[tuple[dict[str, Any], torch.nn.Parameter, torch.nn.Parameter]]:
        """Each group and parameter with its copy, while the next is on its way."""
        due = [(group, param) for group in self.param_groups for param in group["params"] if param.grad is not None]
        for number, (group, param) in enumerate(due):
            if number == 0:
                self._slots[0].fetch(param)
            if number + 1 < len(due):
                self._slots[(number + 1) % _SLOTS].fetch(due[number + 1][1])
            yield group, param, self._slots[number % _SLOTS].wait(param.shape)

    def _step_one(self, group: dict[str, Any], param: torch.nn.Parameter, staged: torch.nn.Parameter) -> None:
        self.stepper.param_groups[:] = [{**group, "params": [staged]}]
        self.stepper.state[staged] = self.state[param]
        self.stepper.step()
        self.state[param] = self.stepper.state.pop(staged)
        self.stepper.param_groups[0]["params"] = []
