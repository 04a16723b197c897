"""Aggregators: blocks of several senders -> one block. Read `base.py` (the seam), `mean.py`, `clipping.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from protocols.aggregation.base import Aggregated, Aggregator, NonFinitePart, capped_weights, clip_factor
from protocols.aggregation.clipping import CenteredClip, GeometricMedian
from protocols.aggregation.mean import Mean
from protocols.errors import ConfigError

_RULES: Mapping[str, Callable[..., Aggregator]] = {rule.name: rule for rule in (Mean, CenteredClip, GeometricMedian)}

AGGREGATOR_NAMES = tuple(_RULES)


def aggregator_named(name: str, **settings: float | None) -> Aggregator:
    """The rule of that name.

    Args:
        name: one of `AGGREGATOR_NAMES`.
        settings: the rule's own, see its class; those left out have their defaults.

    Raises:
        ConfigError: unknown name or setting, or a value the rule cannot work with.
    """
    if name not in _RULES:
        raise ConfigError(f"There is no aggregator {name!r}: choose from {', '.join(AGGREGATOR_NAMES)}.")
    known = [] if name == Mean.name else list(inspect.signature(_RULES[name]).parameters)
    if unknown := [setting for setting in settings if setting not in known]:
        raise ConfigError(f"The aggregator {name} has no setting {unknown[0]}: it knows {', '.join(known) or 'none'}.")
    return _RULES[name](**settings)


__all__ = ["AGGREGATOR_NAMES", "Aggregated", "Aggregator", "NonFinitePart", "aggregator_named", "capped_weights", "clip_factor"]
