"""Aggregators: blocks of several senders -> one block. Read `base.py` (the seam), `mean.py`, `spanning.py` with `clipping.py` and
`krum.py`, `coordinatewise.py`, and `bucketing.py`, which goes before any of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from protocols.aggregation.base import Aggregated, Aggregator, NonFinitePart, clip_factor
from protocols.aggregation.bucketing import Rule, bucketed
from protocols.aggregation.clipping import CenteredClip, GeometricMedian
from protocols.aggregation.coordinatewise import CoordinateMedian, TrimmedMean
from protocols.aggregation.krum import Krum, MultiKrum
from protocols.aggregation.mean import Mean
from protocols.errors import ConfigError

_RULES: Mapping[str, Callable[..., Rule]] = {
    rule.name: rule for rule in (Mean, CenteredClip, GeometricMedian, CoordinateMedian, TrimmedMean, Krum, MultiKrum)
}

AGGREGATOR_NAMES = tuple(_RULES)


def aggregator_named(name: str, *, bucket: int = 1, seed: bytes | None = None, **settings: Any) -> Aggregator:
    """The rule of that name.

    Args:
        name: one of `AGGREGATOR_NAMES`.
        bucket: parts averaged before the rule sees them, see `bucketed`; 1 for none.
        seed: 32 bytes that decide which; needed if `bucket` is above 1.
        settings: the rule's own, see its class. None, like one left out, stands for its default.

    Raises:
        ConfigError: an unknown name or setting, one that is missing, or a value the rule cannot work with.
    """
    if name not in _RULES:
        raise ConfigError(f"There is no aggregator {name!r}: choose from {', '.join(AGGREGATOR_NAMES)}.")
    known = {} if name == Mean.name else inspect.signature(_RULES[name]).parameters
    chosen = {setting: value for setting, value in settings.items() if value is not None}
    for setting in settings:
        if setting not in known:
            raise ConfigError(f"The aggregator {name} has no setting {setting}: it knows {', '.join(known) or 'none'}.")
    for setting, parameter in known.items():
        if setting not in chosen and parameter.default is parameter.empty:
            raise ConfigError(f"The aggregator {name} needs {setting}: say how many.")
        if not _fits(chosen.get(setting, parameter.default), str(parameter.annotation)):
            raise ConfigError(f"The aggregator {name} cannot have {setting} {chosen[setting]!r}: it takes {parameter.annotation}.")
    if not _fits(bucket, "int"):
        raise ConfigError(f"bucket cannot be {bucket!r}: it takes int.")
    rule = _RULES[name](**chosen)
    return rule if bucket == 1 else bucketed(rule, bucket, seed or b"")


def _fits(value: object, annotation: str) -> bool:
    """Whether a value, perhaps out of a file, is of the type; whole numbers are floats too, and truth values no numbers."""
    if isinstance(value, bool) or annotation == "bool":
        return isinstance(value, bool) and annotation == "bool"
    return value is None or isinstance(value, int) or (isinstance(value, float) and annotation.startswith("float"))


__all__ = ["AGGREGATOR_NAMES", "Aggregated", "Aggregator", "NonFinitePart", "aggregator_named", "clip_factor"]
