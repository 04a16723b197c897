"""Which sync rule settings ask for."""

from __future__ import annotations

import torch

from swarm.optim.gradient_rule import GradientRule
from swarm.optim.master import MasterParams
from swarm.optim.outer_rule import OuterRule
from swarm.optim.rule import SyncRule
from swarm.optim.settings import GradientSettings, OuterSettings


def make_rule(model: torch.nn.Module, optimizer: torch.optim.Optimizer, settings: GradientSettings) -> SyncRule:
    """The rule of these settings.

    Args:
        model: on the device that computes.
        optimizer: over its parameters.
        settings: of the gradient rule, or `OuterSettings`.

    Raises:
        ConfigError: an optimizer or settings that cannot be used.
    """
    if isinstance(settings, OuterSettings):
        return OuterRule(model, optimizer, settings)
    return GradientRule(MasterParams(model, optimizer), optimizer, settings)
