"""Configuration and seed -> module. The same bytes on every machine with the same torch, and the caller's random state untouched."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from protocols.errors import ConfigError, ExitCode, UserError
from swarm.models.config import resolve_config
from swarm.models.imports import paused_garbage_collection
from swarm.models.memory import available_memory_bytes
from swarm.models.vocabulary import BYTES

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig

_log = logging.getLogger(__name__)

FP32_BYTES = 4
_DROPOUT_WORDS = ("dropout", "pdrop", "layerdrop")


def build_model(model: Mapping[str, Any], seed: int) -> nn.Module:
    """Build a run's model on the CPU in fp32, initialised from `seed` alone.

    Args:
        model: a run's model section; see `swarm.models.config.resolve_config`.
        seed: 0 to 2**63 - 1.

    Returns:
        A causal language model of `transformers` in training mode. Every dropout is 0: a contribution must be recomputable.

    Raises:
        ConfigError: the section or the configuration makes no model, or the seed is out of range.
        UserError: with ExitCode.DEVICE when the parameters alone do not fit this machine's memory.
    """
    if not 0 <= seed < 2**63:
        raise ConfigError(f"The seed {seed} is out of range: choose one from 0 to 2**63 - 1.")
    config = _configuration(model)
    needed_bytes = sum(_sizes(config)) * FP32_BYTES
    available_bytes = available_memory_bytes()
    if needed_bytes > available_bytes:
        raise UserError(
            f"The model's parameters need {needed_bytes / 2**30:.1f} GiB and this machine has {available_bytes / 2**30:.1f} GiB free:"
            " choose a smaller preset or a larger machine.",
            ExitCode.DEVICE,
        )
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that reseeds the GPUs too
        module = _construct(config)
    _log.info("model built parameters=%d model_type=%s", needed_bytes // FP32_BYTES, config.model_type)
    return module.train()


def count_parameters(model: Mapping[str, Any]) -> int:
    """Number of parameters (tied ones once) of a run's model section, without allocating them.

    Raises:
        ConfigError: as `build_model`.
    """
    return sum(parameter_sizes(model))


def parameter_sizes(model: Mapping[str, Any]) -> list[int]:
    """Elements of each parameter of a run's model section, tied ones once, without allocating them.

    Raises:
        ConfigError: as `build_model`.
    """
    return _sizes(_configuration(model))


def meta_parameters(model: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Names and shapes of the parameters (tied ones once) of a run's model section, without allocating them.

    Raises:
        ConfigError: as `build_model`.
    """
    return dict(_on_meta(_configuration(model)).named_parameters())


def configuration(model: Mapping[str, Any]) -> dict[str, Any]:
    """The complete configuration of a run's model section, defaults filled in, as `config.json` would hold it.

    Raises:
        ConfigError: as `build_model`.
    """
    full: dict[str, Any] = _configuration(model).to_dict()
    return full


def _configuration(model: Mapping[str, Any]) -> PretrainedConfig:
    values = resolve_config(model)
    model_type = values.pop("model_type")
    try:
        config = _config_class(model_type).from_dict(values)
    except _complaints() as error:
        raise ConfigError(f"The model's config is not valid for {model_type}: {_one_line(error)}.") from None
    for key, value in config.to_dict().items():
        if isinstance(value, int | float) and not isinstance(value, bool) and any(word in key for word in _DROPOUT_WORDS):
            setattr(config, key, 0.0)
    if config.vocab_size < BYTES:
        raise ConfigError(f"The model's vocab_size is {config.vocab_size}, but byte-level data needs at least {BYTES}: raise it.")
    return config


def _config_class(model_type: str) -> type[PretrainedConfig]:
    with paused_garbage_collection():
        if model_type == "bloom":  # by its own path: the automatic classes import more than a volunteer's first step needs
            from transformers.models.bloom.configuration_bloom import BloomConfig

            return BloomConfig
        from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

        if model_type not in CONFIG_MAPPING:
            raise ConfigError(f"This version of transformers knows no model type {model_type!r}: check the config or update transformers.")
        found: type[PretrainedConfig] = CONFIG_MAPPING[model_type]
        if found not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ConfigError(f"The model type {model_type!r} is no causal language model: choose one that is.")
        return found


def _construct(config: PretrainedConfig) -> nn.Module:
    import torch

    try:
        with paused_garbage_collection():
            if config.model_type == "bloom":
                from transformers.models.bloom.modeling_bloom import BloomForCausalLM

                module: nn.Module = BloomForCausalLM(config)  # type: ignore[arg-type]
            else:
                from transformers import AutoModelForCausalLM

                module = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                    config, trust_remote_code=False, dtype=torch.float32
                )
    except _complaints() as error:
        raise ConfigError(f"The model's config makes no model: {_one_line(error)}.") from None
    return module


def _sizes(config: PretrainedConfig) -> list[int]:
    return [parameter.numel() for parameter in _on_meta(config).parameters()]


def _on_meta(config: PretrainedConfig) -> nn.Module:
    import torch

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return _construct(config)


def _complaints() -> tuple[type[Exception], ...]:
    """What `transformers` and torch raise, anywhere inside, for a configuration that makes no sense."""
    from huggingface_hub.errors import StrictDataclassError

    return (StrictDataclassError, ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
