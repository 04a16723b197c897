"""An optimizer whose states stay in main memory, while the parameters are on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from protocols.errors import ConfigError

SLOTS = 2
"""Parameters that are in main memory at a time."""


class _Slot:
    """Main memory for one parameter and its gradient, pinned where the device copies faster for it.

    Args:
        elems: of the largest parameter that it takes.
        device: of the parameters.
    """

    def __init__(self, elems: int, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._param_E = torch.empty(elems, pin_memory=self._pinned)
        self._grad_E: torch.Tensor | None = None
        self._grad: torch.Tensor | None = None
        self._arrived = torch.cuda.Event() if self._pinned else None  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, object]) -> _Slot:
        """Copies of an optimizer are stepped in turn, and share what they copy through."""
        return self

    def fetch(self, param: torch.nn.Parameter, gradient: torch.Tensor) -> None:
        """Begin to copy from the device. Copies of one stream are made in order: what still leaves this slot has left before."""
        _part(self._param_E, param.shape).copy_(param.detach(), non_blocking=True)
        self._grad = gradient
        if gradient.device.type != "cpu":
            if self._grad_E is None:
                self._grad_E = torch.empty(len(self._param_E), pin_memory=self._pinned)
            self._grad = _part(self._grad_E, param.shape)
            self._grad.copy_(gradient, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(param.device))

    def wait(self, shape: torch.Size) -> torch.nn.Parameter:
        """The copy of a parameter, with its gradient."""
        if self._arrived is not None:
            self._arrived.synchronize()
        staged = torch.nn.Parameter(_part(self._param_E, shape))
        staged.grad, self._grad = self._grad, None
        return staged


def _part(buffer_E: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return buffer_E[: shape.numel()].view(shape)


class OffloadedOptimizer(torch.optim.Optimizer):
    """Steps on the CPU, one parameter after another, by another optimizer; the next one is copied meanwhile.

    It gives what that optimizer would give on the CPU, to the last bit. `state` maps the device's parameters to states in main memory.

    Args:
        params: fp32, all on one device, which may be the CPU too.
        make: the optimizer of given parameters. It sees one parameter at a time, which must be enough for it.

    Raises:
        ConfigError: a parameter that is not fp32.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]) -> None:
        self.stepper = make([torch.nn.Parameter(torch.empty(0))])
        super().__init__(params, dict(self.stepper.defaults))
        held = [param for group in self.param_groups for param in group["params"]]
        if any(param.dtype != torch.float32 for param in held):
            raise ConfigError("an optimizer can be kept in main memory for fp32 parameters only")
        slots = [_Slot(elems, held[0].device) for elems in slot_elems([param.numel() for param in held])]
        self._slots = {param: slots[number % SLOTS] for number, param in enumerate(held)}

    def __getstate__(self) -> dict[str, Any]:
        """For copies: torch's own has no more than `state` and groups."""
        return {**super().__getstate__(), "stepper": self.stepper, "_slots": self._slots}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = (param for group in self.param_groups for param in group["params"])
        self.step_by({param: param.grad for param in params if param.grad is not None})
        return loss

    @torch.no_grad()
    def step_by(self, gradients: Mapping[torch.nn.Parameter, torch.Tensor]) -> None:
        """One step by these gradients, wherever they are; they may be overwritten."""
        due = [(group, param) for group in self.param_groups for param in group["params"] if param in gradients]
        for group, param, staged in self._staged(due, gradients):
            self.stepper.param_groups[:] = [{**group, "params": [staged]}]
            self.stepper.state[staged] = self.state[param]
            self.stepper.step()
            self.state[param] = self.stepper.state.pop(staged)
            param.copy_(staged, non_blocking=True)
        self.stepper.param_groups[0]["params"] = []

    def _staged(
        self, due: list[tuple[dict[str, Any], torch.nn.Parameter]], gradients: Mapping[torch.nn.Parameter, torch.Tensor]
    ) -> Iterator[tuple[dict[str, Any], torch.nn.Parameter, torch.nn.Parameter]]:
        """Each group and parameter with its copy, while the next is on its way, if it has another slot."""
        ahead = False
        for number, (group, param) in enumerate(due):
            slot = self._slots[param]
            if not ahead:
                slot.fetch(param, gradients[param])
            following = due[number + 1][1] if number + 1 < len(due) else None
            ahead = following is not None and self._slots[following] is not slot
            if following is not None and ahead:
                self._slots[following].fetch(following, gradients[following])
            yield group, param, slot.wait(param.shape)


def slot_elems(sizes_elems: list[int]) -> list[int]:
    """Elements of each slot: parameters take turns, so that a single large one needs its memory once."""
    return [max(sizes_elems[number::SLOTS], default=0) for number in range(SLOTS)]
