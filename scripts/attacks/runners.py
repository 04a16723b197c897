"""Defences by name. A new one is one more `Runner`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from protocols.aggregation import aggregator_named
from protocols.errors import ConfigError
from scripts.attacks.plain_swarm import CleanRuns, PlainRunner, Rules
from scripts.attacks.scenario import Runner
from scripts.attacks.verified_swarm import VerifiedRunner

_RULES: Mapping[str, Rules] = MappingProxyType(
    {
        "mean": lambda _: aggregator_named("mean"),
        "median": lambda _: aggregator_named("coordinate_median"),
        "geometric_median": lambda _: aggregator_named("geometric_median"),
        "krum": lambda attackers: aggregator_named("krum", byzantine=attackers, waived=True),
        "centered_clip": lambda _: aggregator_named("centered_clip"),
    }
)
"""Defences that verify nothing. Krum promises nothing against 7 of 16, so its condition is waived."""

VERIFIED = "verified"
DEFENCES = (*_RULES, VERIFIED)


def runner_named(defence: str, clean: CleanRuns) -> Runner:
    """The runner of a defence.

    Args:
        defence: one of `DEFENCES`.
        clean: who trains, and runs to compare with; may be shared by runners.

    Raises:
        ConfigError: there is none of that name.
    """
    if defence == VERIFIED:
        return VerifiedRunner(clean)
    if defence not in _RULES:
        raise ConfigError(f"there is no defence {defence!r}: choose one of {', '.join(DEFENCES)}")
    return PlainRunner(defence, _RULES[defence], clean)
