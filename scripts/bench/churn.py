"""Half of the swarm replaced every two epochs, and what that costs: real nodes and real gradients, on virtual time.

    python -m scripts.bench.churn --half-life 2 --json

The same swarm learns twice, once undisturbed and once with members that come and go; whoever goes is replaced at once by a newcomer, which
has to fetch the state first. Every second one crashes, in the middle of whatever it does, and is missed only when it stays silent; the
others say goodbye. Both learn from equally many accepted samples. A stall is the longest time between two epochs, in epochs of the swarm
at rest.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from peers.simulation import run_simulated
from scripts.learning.swarm import Learning, LearningSwarm, Learnt
from scripts.learning.task import small_task
from scripts.simulate import few_garbage_collections

_LONGEST_S = 1e7
EPOCH_SAMPLES = 512
EVALUATE_EVERY = 8


def learn(learning: Learning, members: int, half_life: float | None, console: Console, what: str) -> Learnt:
    """One swarm, from the first sample to the last."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(what, total=learning.until_samples)
        swarm = LearningSwarm(learning, members, half_life, EVALUATE_EVERY, lambda samples: progress.update(task, completed=samples))
        with few_garbage_collections():
            return run_simulated(swarm.run(), learning.seed, limit_s=_LONGEST_S)


def measure(members: int, half_life: float, samples: int, seeds: Sequence[int], console: Console) -> dict[str, Any]:
    """Both swarms for every seed.

    Returns:
        What `--json` prints: medians over the seeds, of stalls the longest.
    """
    began_s = time.perf_counter()
    torch.set_num_threads(1)  # tensors are small
    rows = []
    for seed in seeds:
        learning = replace(small_task(target_samples=EPOCH_SAMPLES, until_samples=samples), seed=seed)
        calm = learn(learning, members, None, console, f"no churn, seed {seed}")
        churned = learn(learning, members, half_life, console, f"half-life {half_life:g}, seed {seed}")
        rows.append(_compared(seed, calm, churned))
        console.print(_table(rows))
    return {
        "loss": statistics.median(row["loss"] for row in rows),
        "loss_no_churn": statistics.median(row["loss_no_churn"] for row in rows),
        "loss_ratio": statistics.median(row["loss"] / row["loss_no_churn"] for row in rows),
        "longest_stall_rounds": max(row["stall_rounds"] for row in rows),
        "members": members,
        "half_life": half_life,
        "samples": samples,
        "rows": rows,
        "wall_s": round(time.perf_counter() - began_s, 1),
    }


def _compared(seed: int, calm: Learnt, churned: Learnt) -> dict[str, Any]:
    normal_s = statistics.median(calm.gaps_s)
    return {
        "seed": seed,
        "loss": round(churned.loss, 4),
        "loss_no_churn": round(calm.loss, 4),
        "stall_rounds": round(max(churned.gaps_s) / normal_s, 2),
        "epoch_s": round(statistics.median(churned.gaps_s), 2),
        "epoch_s_no_churn": round(normal_s, 2),
        "epochs": churned.epochs,
        "crashed": churned.crashed,
        "left": churned.left,
        "joined": churned.joined,
        "computed_samples": churned.computed_samples,
        "computed_samples_no_churn": calm.computed_samples,
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        "seed", "held-out loss", "without churn", "longest stall, rounds", "epoch, s", "without churn", "crashed", "left", "joined"
    )
    for row in rows:
        names = ("seed", "loss", "loss_no_churn", "stall_rounds", "epoch_s", "epoch_s_no_churn", "crashed", "left", "joined")
        table.add_row(*(str(row[name]) for name in names))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; see `--help`.

    Returns:
        Process exit code: 0, 2 wrong arguments.
    """
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.churn", description="A swarm whose members come and go, beside one at rest."
    )
    parser.add_argument("--half-life", type=float, default=2.0, help="epochs in which half of the members are replaced")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--samples", type=int, default=16_000, help="accepted samples that both learn from")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from --seed on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    if options.half_life <= 0 or options.members < 2 or options.samples < 1 or options.seeds < 1 or options.seed < 0:
        parser.error("--half-life, --samples and --seeds must be positive, --members at least 2, --seed at least 0.")
    logging.getLogger("swarm").setLevel(logging.ERROR)  # rounds that fail are what this is about
    console = Console(stderr=True)
    seeds = range(options.seed, options.seed + options.seeds)
    found = measure(options.members, options.half_life, options.samples, seeds, console)
    if options.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
