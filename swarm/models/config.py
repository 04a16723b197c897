"""What a run file says about its model, made into one complete Hugging Face configuration that every member builds from.

Two forms: `{"preset": "tiny"}` and `{"config": {...}}`, the content of a `config.json`.
A run file comes from somebody else, so whatever could make `transformers` fetch or run code is refused.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from protocols.errors import ConfigError
from swarm.models.presets import PRESETS
from swarm.models.vocabulary import BYTES

_REFUSED_KEYS = (
    "auto_map",
    "custom_pipelines",
    "quantization_config",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
)
"""Keys that load code, kernels or quantised weights."""

_DROPPED_KEYS = ("dtype", "torch_dtype", "_name_or_path", "transformers_version", "architectures")
"""Keys that say nothing about the mathematics: members always build in fp32 from their own installation."""

MAX_CONFIG_BYTES = 2**20
"""Largest `config.json` that is read."""


def resolve_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """The Hugging Face configuration that a run's model section means.

    Args:
        model: `{"preset": name}` or `{"config": {...}}`; entries that are None count as missing, so a `ModelSection` can be dumped into it.

    Raises:
        ConfigError: unknown key or preset, refused content, or a vocabulary too small for bytes.
    """
    given = {key: value for key, value in model.items() if value is not None}
    if len(given) != 1 or not given.keys() <= {"preset", "config"}:
        raise ConfigError("The model section needs either a preset or a Hugging Face config, and nothing else.")
    config = _from_preset(given["preset"]) if "preset" in given else _from_dict(given["config"])
    _check_vocabulary(config)
    return config


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a Hugging Face `config.json`, to be put into a run file as `config`.

    Raises:
        ConfigError: the file cannot be read, is too large, or is not a JSON object.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"The model configuration {path} cannot be read ({error.strerror}): check the path.") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"The model configuration {path} is larger than {MAX_CONFIG_BYTES} bytes: give a Hugging Face config.json.")
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError):
        raise ConfigError(f"The model configuration {path} is not valid JSON: give a Hugging Face config.json.") from None
    if not isinstance(config, dict):
        raise ConfigError(f"The model configuration {path} is not a JSON object: give a Hugging Face config.json.")
    return cast("dict[str, Any]", config)


def _from_preset(name: object) -> dict[str, Any]:
    if not isinstance(name, str) or name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"There is no model preset {name!r}: {hint}Choose one of {', '.join(PRESETS)}.")
    return PRESETS[name].huggingface()


def _from_dict(config: object) -> dict[str, Any]:
    if not isinstance(config, Mapping) or not isinstance(config.get("model_type"), str):
        raise ConfigError("The model's config must be a table with a model_type, as in a Hugging Face config.json.")
    _refuse(config, depth=0)
    return {str(key): value for key, value in config.items() if key not in _DROPPED_KEYS}


def _refuse(config: Mapping[str, Any], depth: int) -> None:
    if depth > 8:
        raise ConfigError("The model's config is nested too deeply: give a Hugging Face config.json.")
    for key, value in config.items():
        if key in _REFUSED_KEYS and value is not None:
            raise ConfigError(f"The model's config sets {key!r}, which would load code or weights from elsewhere: remove it.")
        if isinstance(value, Mapping):
            _refuse(value, depth + 1)


def _check_vocabulary(config: Mapping[str, Any]) -> None:
    size = config.get("vocab_size")
    if size is None:
        return  # the architecture's default; checked again on the built configuration
    if not isinstance(size, int) or isinstance(size, bool) or size < BYTES:
        raise ConfigError(f"The model's vocab_size is {size!r}, but byte-level data needs at least {BYTES}: raise it.")
