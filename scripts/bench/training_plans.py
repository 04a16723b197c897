"""What is compared in the training benchmark: systems, and the settings that suit each best. How they were found: docs/benchmarks.md.

A plan belongs to a group; of several plans in a group the best one counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

OUTER, GRADIENT, HIVEMIND, GLOO = "outer", "gradient", "hivemind", "gloo"
GROUPS = (OUTER, GRADIENT, HIVEMIND, GLOO)
INCUMBENTS = (HIVEMIND, GLOO)

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.01
BLOCK_ELEMS = 2**16
NEVER_ENDS = 10**8


@dataclass(frozen=True, slots=True)
class Common:
    """What all systems are given alike.

    Args:
        peers: how many train together.
        seed: of model and samples.
        model: a run's model section.
        sequence_length: tokens predicted in a window.
        micro_batch_samples: windows in one pass.
    """

    peers: int
    seed: int
    model: Mapping[str, Any]
    sequence_length: int
    micro_batch_samples: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One system with its settings.

    Args:
        name: in tables.
        group: of `GROUPS`.
        module: the worker is `scripts.bench.training_<module>`.
        settings: what the module understands; nested for ours, as in a run file.
    """

    name: str
    group: str
    module: str
    settings: Mapping[str, Any]

    def changed(self, path: str, value: Any) -> Plan:
        """The same with another value for one setting, given by its dotted path."""
        *sections, key = path.split(".")
        settings: dict[str, Any] = json.loads(json.dumps(self.settings))
        place = settings
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
        return replace(self, settings=settings)

    def with_learning_rate(self, rate: float) -> Plan:
        """The same with another learning rate."""
        return self.changed("optimizer.learning_rate" if self.module == "ours" else "learning_rate", rate)


def _ours(name: str, group: str, rate: float, optimizer: Mapping[str, Any], **sections: Any) -> Plan:
    settings = {
        "schedule": {"kind": "constant", "total_epochs": NEVER_ENDS},
        "trust": {"verify": False},  # as the others, who believe everybody
        **sections,
        "optimizer": {"learning_rate": rate, "betas": BETAS, "weight_decay": WEIGHT_DECAY, **optimizer},
    }
    return Plan(name, group, "ours", settings)


def _averaging(codec: str, *, overlap: bool = True) -> dict[str, Any]:
    return {"codec": codec, "overlap": overlap, "block_elems": BLOCK_ELEMS}


def _hivemind(name: str, rate: float, **settings: Any) -> Plan:
    usual = {
        "learning_rate": rate,
        "betas": BETAS,
        "weight_decay": WEIGHT_DECAY,
        "grad_codec": "int8",
        "state_codec": "fp16",
        "matchmaking_time": 2.0,
        "averaging_timeout": 30.0,
        "next_chunk_timeout": 15.0,  # else it is the matchmaking time, which a chunk on a full link may well take
        "tracker_opts": {"min_refresh_period": 0.2, "default_refresh_period": 0.5, "max_refresh_period": 2.0},
    }
    return Plan(name, HIVEMIND, "hivemind", {**usual, **settings})


def _outer(name: str, codec: str, **changes: Any) -> Plan:
    outer = {"inner_batch_samples": 4, "learning_rate": 1.0, "momentum": 0.0, **changes}
    return _ours(name, OUTER, 2e-3, {"rule": "outer", "target_batch_samples": 128}, outer=outer, averaging=_averaging(codec))


_GLOO_SETTINGS = {"learning_rate": 2e-3, "betas": BETAS, "weight_decay": WEIGHT_DECAY, "target_batch_samples": 64}

PLANS: Mapping[str, Plan] = {
    plan.name: plan
    for plan in (
        _outer("outer-int4", "int4"),
        _outer("outer-fp16", "fp16"),
        _outer("outer-fragments", "int8", fragments=4),
        _outer("outer-verified", "int4").changed("trust.verify", value=True),
        _ours("gradient", GRADIENT, 2e-3, {"target_batch_samples": 64}, averaging=_averaging("int8")),
        _ours("gradient-waiting", GRADIENT, 2e-3, {"target_batch_samples": 64}, averaging=_averaging("int8", overlap=False)),
        _hivemind(
            "hivemind-delayed", 2e-3, target_batch_size=256, delay_grad_averaging=True, delay_optimizer_step=True, average_state_every=5
        ),
        _hivemind("hivemind-synchronous", 2e-3, target_batch_size=64, average_state_every=4),
        _hivemind("hivemind-local", 2e-3, target_batch_size=512, use_local_updates=True),
        Plan("gloo", GLOO, "gloo", _GLOO_SETTINGS),
    )
}
DEFAULT_PLANS = ("outer-int4", "gradient", "gradient-waiting", "hivemind-delayed", "hivemind-synchronous", "hivemind-local", "gloo")


def chosen(words: Sequence[str]) -> list[Plan]:
    """Plans by their names, or by the names of groups.

    Raises:
        KeyError: no such plan or group.
    """
    plans: dict[str, Plan] = {}
    for word in words:
        named = [PLANS[word]] if word in PLANS else [PLANS[name] for name in DEFAULT_PLANS if PLANS[name].group == word]
        if not named:
            raise KeyError(word)
        plans.update({plan.name: plan for plan in named})
    return list(plans.values())


def member_settings(plan: Plan, common: Common) -> dict[str, Any]:
    """What a worker gets as its settings: for ours a whole run file."""
    if plan.module != "ours":
        return dict(plan.settings)
    shared = {
        "run": {"name": "training-benchmark", "seed": common.seed},
        "model": dict(common.model),
        "data": {"sequence_length": common.sequence_length},
    }
    return {**shared, **plan.settings}
