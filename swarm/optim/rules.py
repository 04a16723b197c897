"""Which sync rule settings ask for."""

from __future__ import annotations

import torch

from protocols.errors import ConfigError
from swarm.optim.feedback import ErrorFeedback
from swarm.optim.gradient_rule import GradientRule
from swarm.optim.master import MasterParams
from swarm.optim.outer_rule import OuterRule
from swarm.optim.rule import SyncRule
from swarm.optim.settings import GradientSettings, OuterSettings


def make_rule(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, settings: GradientSettings, feedback: ErrorFeedback | None
) -> SyncRule:
    """The rule of these settings.

    Args:
        model: on the device that computes.
        optimizer: over its parameters.
        settings: of the gradient rule, or `OuterSettings`.
        feedback: what keeps what few bytes leave out of its contributions, if anything does.

    Raises:
        ConfigError: an optimizer or settings that cannot be used.
    """
    if isinstance(settings, OuterSettings):
        return OuterRule(model, optimizer, settings, feedback)
    if settings.feedback is not None and settings.feedback.step_ahead:
        raise ConfigError("by the gradient rule all compute with the same parameters: step_ahead must be 0")
    return GradientRule(MasterParams(model, optimizer), optimizer, settings)
