"""Defences by name. A new one is one more `Runner`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from protocols.aggregation import Aggregator, aggregator_named
from protocols.errors import ConfigError
from scripts.attacks.plain_swarm import PlainRunner
from scripts.attacks.scenario import Runner, Scenario

_RULES: Mapping[str, Callable[[Scenario], Aggregator]] = MappingProxyType(
    {
        "mean": lambda _: aggregator_named("mean"),
        "median": lambda _: aggregator_named("coordinate_median"),
        "geometric_median": lambda _: aggregator_named("geometric_median"),
        "krum": lambda scenario: aggregator_named("krum", faulty=scenario.attackers),
        "centered_clip": lambda _: aggregator_named("centered_clip"),
    }
)
"""Defences that verify nothing: what makes one vector of many."""

DEFENCES = tuple(_RULES)


def runner_named(defence: str, scenario: Scenario) -> Runner:
    """The runner of a defence.

    Raises:
        ConfigError: there is none of that name, or its rule cannot work with so many attackers.
    """
    if defence not in _RULES:
        raise ConfigError(f"there is no defence {defence!r}: choose one of {', '.join(DEFENCES)}")
    return PlainRunner(defence, _RULES[defence](scenario), aggregator_named("mean"), scenario)
