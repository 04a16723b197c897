"""What a run file says of the update rule is what the optimizer is told."""

from __future__ import annotations

from typing import Any

from protocols.runspec import OuterSection, RunSpec
from swarm.optim import FeedbackSettings, GradientSettings, OuterSettings
from swarm.runtime import rule_settings

CHANGED: dict[str, Any] = {
    "inner_batch_samples": 7,
    "optimizer": "fedyogi",
    "learning_rate": 0.3,
    "momentum": 0.4,
    "beta2": 0.5,
    "eps": 0.6,
    "fragments": 2,
    "mixing": 0.25,
}


def spec(rule: str, **averaging: Any) -> RunSpec:
    return RunSpec.from_settings(
        {
            "run": {"name": "a"},
            "model": {"preset": "tiny"},
            "optimizer": {"rule": rule, "learning_rate": 0.5, "grad_clip_norm": 2.0},
            "schedule": {"kind": "linear", "total_epochs": 10, "final_fraction": 0.0},
            "outer": CHANGED,
            "averaging": averaging,
        }
    )


def stepping_ahead() -> RunSpec:
    averaging = {"block_elems": 32, "error_feedback": 0.75, "step_ahead": 0.5}
    return RunSpec.from_settings(spec("outer").model_dump() | {"outer": {}, "averaging": averaging})


def test_every_key_of_the_outer_rule_reaches_it() -> None:
    found = rule_settings(spec("outer", overlap=True, codec="int4", block_elems=32, error_feedback=0.75))
    assert rule_settings(stepping_ahead()).feedback == FeedbackSettings("fp32", 32, 0.75, 0.5)
    assert isinstance(found, OuterSettings)
    assert CHANGED.keys() == OuterSection.model_fields.keys()
    renamed = {"learning_rate": "outer_learning_rate"}
    assert {name: getattr(found, renamed.get(name, name)) for name in CHANGED} == CHANGED
    assert (found.overlap, found.grad_clip_norm, found.feedback) == (True, 2.0, FeedbackSettings("int4", 32, 0.75))
    assert found.learning_rate is not None
    assert [found.learning_rate(epoch) for epoch in (0, 5, 10)] == [0.5, 0.25, 0.0]


def test_the_gradient_rule_takes_what_concerns_it() -> None:
    found = rule_settings(spec("gradient", overlap=True))
    assert type(found) is GradientSettings
    assert (found.overlap, found.grad_clip_norm, found.feedback) == (True, 2.0, None)
