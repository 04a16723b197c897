"""Activation recomputation (gradient checkpointing): a layer keeps its input only, and computes the rest again in the backward pass."""

from __future__ import annotations

from typing import Any

from protocols.errors import ConfigError


def recompute_activations(model: Any) -> None:
    """Have a model of `transformers` do so while it trains. Gradients stay the same to the last bit where the device is deterministic.

    Raises:
        ConfigError: this kind of model cannot.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ConfigError(f"{type(model).__name__} cannot compute its activations again: leave out --recompute-activations.")
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable  # the newer name first
    enable({"use_reentrant": False, "preserve_rng_state": False})  # nothing in a run is random: there is no generator's state to keep
