"""What DiLoCo claims of itself, on a small model: a long H beside a short one, half of all contributions lost, eight members beside one.

    python -m scripts.bench.outer_claims --json

Members are whole sync rules (`swarm.optim.outer_rule`) with models of their own, averaged in turn without a network: what is asked is what
the rule does to the loss. All runs make equally many inner steps. The paper (arXiv 2311.08105) has +2.9 % of perplexity for H = 1000 beside
50, of 88 000 steps, and +2.1 % for half of the contributions lost. What counts is the part of the training that H is; so with the default
2000 steps the long H is 20 and the short one 1, and contributions are lost at 20. The schedule is the paper's: warm-up, then cosine.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from protocols.aggregation.mean import weighted_mean
from protocols.ids import Epoch
from scripts.learning.task import MODEL, OUTER, small_task
from swarm.data.assignment import window_offsets
from swarm.models.build import build_model
from swarm.optim.outer_rule import OuterRule
from swarm.training.evaluation import held_out_loss
from swarm.training.gradients import accumulate_gradients

WARMUP = 0.05
PUBLISHED = {"long": 1.029, "dropped": 1.021}
WINDOWS = 512
NO_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class Case:
    """One run.

    Args:
        name: in tables.
        members: how many.
        h: inner steps between averages.
        dropped: probability that a contribution is lost on its way.
    """

    name: str
    members: int
    h: int
    dropped: float = 0.0


class Run:
    """A run's members, from the first step to the held-out loss.

    Args:
        case: which.
        steps: inner steps of each member.
        seed: of everything random.
    """

    def __init__(self, case: Case, steps: int, seed: int) -> None:
        self._case, self._steps, self._seed = case, steps, seed
        task = small_task(target_samples=1, until_samples=1)
        self._dataset, self._batch = task.dataset, OUTER.inner_batch_samples
        settings = replace(OUTER, overlap=False, learning_rate=self._rate)
        self._models = [build_model(MODEL, seed) for _ in range(case.members)]
        self._rules = [OuterRule(model, task.inner_optimizer(model), settings) for model in self._models]
        self._dice = random.Random(seed)  # the point is that it can be predicted
        self._samples = 0

    def _rate(self, epoch: int) -> float:
        """Linear warm-up, then a cosine to a tenth, by inner steps."""
        done = min(1.0, epoch * self._case.h / self._steps)
        peak = 4e-3
        return peak * min(1.0, (done + 1e-3) / WARMUP) * (0.55 + 0.45 * math.cos(math.pi * done))

    def run(self, progress: Progress, task: Any) -> float:
        """Train; returns the held-out loss of what all hold."""
        for epoch in range(self._steps // self._case.h):
            for member in range(self._case.members):
                for _ in range(self._case.h):
                    self._step(member, epoch)
                    progress.advance(task)
            self._average(Epoch(epoch))
        with self._rules[0].shared.computing():
            return held_out_loss(self._models[0], self._dataset, windows=WINDOWS)

    def _step(self, member: int, epoch: int) -> None:
        rule, key = self._rules[member], member.to_bytes(32, "big")
        indices = range(rule.next_sample, rule.next_sample + self._batch)
        offsets = window_offsets(self._seed, epoch, key, indices, self._dataset.positions)
        accumulate_gradients(self._models[member], self._dataset.sample(offsets))
        rule.add(self._batch, summed=True)

    def _average(self, epoch: Epoch) -> None:
        lost = [self._dice.random() < self._case.dropped for _ in self._rules]
        if all(lost):
            lost[self._dice.randrange(len(lost))] = False
        parts = [rule.contribution(epoch, NO_HASH) for rule in self._rules]
        arrived = [part for part, gone in zip(parts, lost, strict=True) if not gone]
        average = weighted_mean([part.vector for part in arrived], [part.weight for part in arrived])
        for rule in self._rules:
            rule.begin_next()
            rule.apply(average, epoch)


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All cases.

    Returns:
        What `--json` prints; ratios are of perplexities.
    """
    began_s = time.perf_counter()
    torch.set_num_threads(1)
    steps, seed = options.steps, options.seed
    long_h, short_h = options.long_h, options.short_h
    cases = [Case("short", 8, short_h), Case("long", 8, long_h), Case("dropped", 8, long_h, 0.5), Case("alone", 1, long_h)]
    rows: list[dict[str, Any]] = []
    with Progress(console=console, transient=True) as progress:
        for case in cases:
            task = progress.add_task(case.name, total=steps * case.members)
            loss = Run(case, steps, seed).run(progress, task)
            rows.append({"case": case.name, "members": case.members, "h": case.h, "loss": round(loss, 4)})
    losses = {row["case"]: row["loss"] for row in rows}
    beside = {"long": "short", "dropped": "long", "alone": "long"}
    ratios = {name: round(math.exp(losses[name] - losses[other]), 4) for name, other in beside.items()}
    about = {"steps": steps, "seed": seed, "wall_s": round(time.perf_counter() - began_s, 1)}
    return {"rows": rows, "perplexity_ratios": ratios, "published_ratios": PUBLISHED, **about}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; see `--help`.

    Returns:
        Process exit code: 0, 2 wrong arguments.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.outer_claims", description="DiLoCo's relative claims, on a small model.")
    parser.add_argument("--steps", type=int, default=2000, help="inner steps of each member")
    parser.add_argument("--long-h", type=int, default=20, help="the longer distance between averages")
    parser.add_argument("--short-h", type=int, default=1, help="the shorter one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    lengths = (options.long_h, options.short_h)
    if min(lengths) < 1 or options.steps < 1 or any(options.steps % length for length in lengths) or options.seed < 0:
        parser.error("--steps must be a multiple of --long-h and --short-h, --seed at least 0.")
    console = Console(stderr=True)
    found = measure(options, console)
    table = Table("case", "members", "H", "held-out loss", "perplexity ratio", "published")
    for row in found["rows"]:
        name = row["case"]
        ratio, published = found["perplexity_ratios"].get(name, ""), PUBLISHED.get(name, "")
        table.add_row(name, str(row["members"]), str(row["h"]), f"{row['loss']:.4f}", str(ratio), str(published))
    console.print(table)
    if options.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
