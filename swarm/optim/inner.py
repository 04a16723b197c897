"""The inner optimizer of one member: which one a run names, and where and how this member keeps its states.

By the outer rule the inner optimizer is a member's own, so it may save memory as it likes (`InnerMemory`): the swarm sees no more of it
than how far the member's model has moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from protocols.errors import ConfigError, ExitCode, UserError
from protocols.planning.memory import SMALL_ELEMS, Trained
from protocols.runspec import OptimizerSection, RunSpec
from swarm.optim.offload import OffloadedOptimizer, slot_elems

States = Literal["fp32", "8bit"]


@dataclass(frozen=True, slots=True)
class InnerMemory:
    """How a member keeps the states of its inner optimizer.

    Args:
        states: "8bit" in blocks of 256 (arXiv 2110.02861), by bitsandbytes; a quarter of the memory.
        offload: in main memory instead of on the device; steps are then the CPU's.
    """

    states: States = "fp32"
    offload: bool = False


PLAIN = InnerMemory()


@runtime_checkable
class OwnFormat(Protocol):
    """An optimizer whose states look different from its parameters."""

    def new_state(self, param: torch.nn.Parameter) -> dict[str, object]:
        """What the first step on a parameter begins with."""


def inner_optimizer(section: OptimizerSection, params: Iterable[torch.nn.Parameter], memory: InnerMemory = PLAIN) -> torch.optim.Optimizer:
    """The optimizer that a run names, over a model's parameters.

    Args:
        section: of the run.
        params: all on one device.
        memory: this member's choice.

    Raises:
        ConfigError: 8-bit states, and bitsandbytes is not installed or has no such optimizer.
        UserError: it is installed and does not work on the device.
    """
    params = list(params)
    kind, options = (_eight_bit if memory.states == "8bit" and _has_states(section) else _plain)(section)
    if memory.states == "8bit":
        _try_out(kind, options, torch.device("cpu") if memory.offload else params[0].device)
    if memory.offload:
        return OffloadedOptimizer(params, lambda staged: kind(staged, **options))
    optimizer: torch.optim.Optimizer = kind(params, **options)
    return optimizer


def trained_by(spec: RunSpec, sizes_elems: Sequence[int]) -> Trained:
    """How much there is to keep for a run's optimizers.

    Args:
        spec: of the run.
        sizes_elems: of each tensor.
    """
    section, outer = spec.optimizer, spec.outer
    adaptive = outer.optimizer not in ("nesterov", "fedavgm")
    return Trained(
        parameters=sum(sizes_elems),
        small_parameters=sum(elems for elems in sizes_elems if elems < SMALL_ELEMS),
        staged_elems=sum(slot_elems(list(sizes_elems))),
        moments=(1 if section.momentum else 0) if section.name == "sgd" else 2,
        outer_moments=2 if adaptive else 1 if outer.momentum else 0,
    )


def kind_of(optimizer: torch.optim.Optimizer) -> str:
    """Class that says what states mean, wherever they are."""
    return type(optimizer.stepper if isinstance(optimizer, OffloadedOptimizer) else optimizer).__name__


def home_of(optimizer: torch.optim.Optimizer, param: torch.nn.Parameter) -> torch.device:
    """Where the states of a parameter are kept."""
    return torch.device("cpu") if isinstance(optimizer, OffloadedOptimizer) else param.device


def new_state(optimizer: torch.optim.Optimizer, param: torch.nn.Parameter) -> dict[str, object] | None:
    """What the first step on a parameter begins with, where that has a format of its own; None where states look as the parameter does."""
    if isinstance(optimizer, OffloadedOptimizer):
        stepper, staged = optimizer.stepper, torch.nn.Parameter(torch.empty(param.shape))
        return stepper.new_state(staged) if isinstance(stepper, OwnFormat) else None
    return optimizer.new_state(param) if isinstance(optimizer, OwnFormat) else None


def _has_states(section: OptimizerSection) -> bool:
    return section.name != "sgd" or section.momentum > 0


def _plain(section: OptimizerSection) -> tuple[type[Any], dict[str, Any]]:
    rate, decay = section.learning_rate, section.weight_decay
    if section.name == "sgd":
        return torch.optim.SGD, {"lr": rate, "momentum": section.momentum, "weight_decay": decay}
    kind = torch.optim.AdamW if section.name == "adamw" else torch.optim.Adam
    return kind, {"lr": rate, "betas": section.betas, "eps": section.eps, "weight_decay": decay}


def _eight_bit(section: OptimizerSection) -> tuple[type[Any], dict[str, Any]]:
    if section.name == "adam" and section.weight_decay:
        raise ConfigError(
            "This run's optimizer is adam with weight decay, of which there is no 8-bit version: leave out --optimizer-states 8bit"
            " (--offload-optimizer saves as much of the device's memory)."
        )
    try:
        from swarm.optim.eight_bit import EightBitAdamW, EightBitSGD
    except ImportError as error:
        raise ConfigError(
            f"--optimizer-states 8bit needs bitsandbytes ({error}): install it with pip install bitsandbytes, or leave the option out."
        ) from None
    _, options = _plain(section)
    return (EightBitSGD if section.name == "sgd" else EightBitAdamW), options


def _try_out(kind: type[Any], options: dict[str, Any], device: torch.device) -> None:
    """One step, of nothing that matters: a build without this device's kernels is better known before the first epoch."""
    param = torch.nn.Parameter(torch.zeros(SMALL_ELEMS, device=device))
    param.grad = torch.ones_like(param)
    try:
        kind([param], **options).step()
        stepped = bool((param.detach() != 0).all())
    except (RuntimeError, NotImplementedError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"bitsandbytes does not work on {device} ({reason}): install a build of it for this device, or leave out"
            " --optimizer-states 8bit.",
            ExitCode.DEVICE,
        ) from None
    if not stepped:
        raise UserError(f"bitsandbytes does nothing on {device}: leave out --optimizer-states 8bit.", ExitCode.DEVICE)
