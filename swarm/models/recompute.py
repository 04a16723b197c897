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
    # Nothing in a run is random, so there is no state of a generator to keep.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": False})
