"""Curves of the training benchmark: when a loss is reached, what is compared with what, and the table for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from scripts.bench.training_plans import GROUPS, INCUMBENTS

Point = tuple[float, float]
"""Seconds since computing began, held-out loss in nats per byte."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What one system did.

    Args:
        name, group: of its plan.
        curve: points in order of time, the first at 0.
        samples: that all members computed.
        sent_bytes, received_bytes: of each member's interface, by rank, while computing.
        start_s: from the first process to the last member that was ready.
        cpu_s: of all members while computing, daemons with a session of their own excepted; the less of the machine's there is, the more
            of it others took, or the longer the links were waited for.
        about: its settings.
        notes: what its rank 0 says about itself.
    """

    name: str
    group: str
    curve: Sequence[Point]
    samples: int
    sent_bytes: Sequence[int]
    received_bytes: Sequence[int]
    start_s: float
    cpu_s: float
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best_loss(self) -> float:
        """The lowest loss it came to."""
        return min(loss for _, loss in self.curve)


def seconds_to(curve: Sequence[Point], target: float) -> float | None:
    """When a curve first is at or below a loss, by straight lines between its points; None if it never is."""
    before: Point | None = None
    for seconds, loss in curve:
        if loss <= target:
            if before is None:
                return seconds
            then_s, then_loss = before
            return then_s + (seconds - then_s) * (then_loss - target) / (then_loss - loss)
        before = (seconds, loss)
    return None


def loss_at(curve: Sequence[Point], seconds: float) -> float:
    """Loss at a time by straight lines between the points; before the first and after the last what is there."""
    before = curve[0]
    for point in curve:
        if point[0] >= seconds:
            span_s = point[0] - before[0]
            share = (seconds - before[0]) / span_s if span_s > 0 else 1.0
            return before[1] + max(share, 0.0) * (point[1] - before[1])
        before = point
    return before[1]


def best_of(results: Sequence[Trained], target: float | None) -> dict[str, Trained]:
    """The best of each group: first at the target, else with the lowest loss."""

    def rank(result: Trained) -> tuple[float, float]:
        reached_s = None if target is None else seconds_to(result.curve, target)
        return (float("inf") if reached_s is None else reached_s), result.best_loss

    return {group: min(mine, key=rank) for group in GROUPS if (mine := [result for result in results if result.group == group])}


def target_of(results: Sequence[Trained]) -> float | None:
    """The lowest loss that an incumbent came to; None without incumbents."""
    return min((result.best_loss for result in results if result.group in INCUMBENTS), default=None)


def summary(results: Sequence[Trained]) -> dict[str, Any]:
    """What `--json` prints, but for options: see docs/benchmarks.md for the keys."""
    target = target_of(results)
    best = best_of(results, target)
    reached: dict[str, float | None] = {
        group: seconds_to(best[group].curve, target) if group in best and target is not None else None for group in GROUPS
    }
    against = {result.name: _against(result, results) for result in results if result.group in INCUMBENTS}
    return {
        "target_loss": None if target is None else round(target, 4),
        "seconds_to_target": {group: None if seconds is None else round(seconds, 2) for group, seconds in reached.items()},
        # At what that incumbent itself came to: a slower one never is at the other's loss.
        **{f"vs_{group}": against[best[group].name]["ratio"] if group in best else None for group in INCUMBENTS},
        "against": against,
        "best": {group: result.name for group, result in best.items()},
        **_figures(results),
    }


def _figures(results: Sequence[Trained]) -> dict[str, Any]:
    return {
        "bytes": {r.name: {"sent": list(r.sent_bytes), "received": list(r.received_bytes)} for r in results},
        "samples": {result.name: result.samples for result in results},
        "final_loss": {result.name: round(result.curve[-1][1], 4) for result in results},
        "start_s": {result.name: round(result.start_s, 1) for result in results},
        "cpu_s": {result.name: round(result.cpu_s, 1) for result in results},
        "curves": {r.name: [[round(seconds, 2), round(loss, 4)] for seconds, loss in r.curve] for r in results},
        "about": {result.name: {**result.about, "notes": dict(result.notes)} for result in results},
    }


def _soonest(results: Sequence[Trained], target: float | None) -> float | None:
    """When the first of ours is at a loss."""
    if target is None:
        return None
    times_s = [seconds_to(result.curve, target) for result in results if result.group not in INCUMBENTS]
    return min((seconds for seconds in times_s if seconds is not None), default=None)


def _against(incumbent: Trained, results: Sequence[Trained]) -> dict[str, Any]:
    """An incumbent's own best loss, when it had it, when the first of ours had it, and how many times sooner that was."""
    theirs_s = seconds_to(incumbent.curve, incumbent.best_loss)
    ours_s = _soonest(results, incumbent.best_loss)
    return {
        "loss": round(incumbent.best_loss, 4),
        "seconds": None if theirs_s is None else round(theirs_s, 2),
        "ours_seconds": None if ours_s is None else round(ours_s, 2),
        "ratio": round(theirs_s / ours_s, 2) if theirs_s is not None and ours_s else None,
    }


def table(results: Sequence[Trained], title: str) -> Table:
    """The same for people."""
    target = target_of(results)
    shown = Table(title=title)
    for heading in ("system", "final loss", "s to target", "samples", "MB sent a member", "steps", "CPU s", "start s"):
        shown.add_column(heading, justify="left" if heading == "system" else "right")
    for result in results:
        reached_s = None if target is None else seconds_to(result.curve, target)
        shown.add_row(
            result.name,
            f"{result.curve[-1][1]:.3f}",
            "" if reached_s is None else f"{reached_s:.1f}",
            f"{result.samples}",
            f"{sum(result.sent_bytes) / len(result.sent_bytes) / 1e6:.1f}",
            f"{result.notes.get('epochs', result.notes.get('steps', ''))}",
            f"{result.cpu_s:.0f}",
            f"{result.start_s:.1f}",
        )
    return shown
