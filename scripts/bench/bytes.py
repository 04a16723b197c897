"""Bits per parameter and round, up and down, and what they cost in loss: groups of 4, 16 and 64, the outer rule with few bytes beside fp32.

    python -m scripts.bench.bytes --json

Bits are those that real averagers send and receive on a simulated network, everything included, for a vector of two million elements.
Losses are those of swarms of whole nodes that really learn, on virtual time (`scripts/learning`), after equally many accepted samples: the
outer rule as DiLoCo has it, in fp32, beside the same with a sparse codec and step-ahead error feedback, which stands for momentum then.
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
from protocols.codecs import CODEC_NAMES
from protocols.planning.reasons import is_sparse, sparse_rate, steps_ahead
from scripts.learning.swarm import Learning, LearningSwarm, Learnt
from scripts.learning.task import OUTER, small_task
from scripts.learning.traffic import bytes_of_a_round
from scripts.simulate import few_garbage_collections
from swarm.optim import FeedbackSettings, OuterSettings

ELEMS = 2**21
BLOCK_ELEMS = 2**15
STEPS = 8
"""Inner steps of a member in an epoch."""

DECAY = 0.9
STEP_AHEAD = 0.4
"""Of error feedback."""

_LONGEST_S = 1e7

DENSE = replace(OUTER, outer_learning_rate=0.7, momentum=0.6)
"""At so few inner steps momentum 0.9 overshoots (peers that go the same way push several times)."""

SPARSE = replace(OUTER, momentum=0.0, optimizer="fedavgm")
"""Without momentum, which error feedback stands for. Measured: DECISIONS.md."""


def rule_of(codec: str, block_elems: int, members: int) -> OuterSettings:
    """The outer rule that goes with a codec and a group."""
    if not is_sparse(codec):
        return DENSE
    feedback = FeedbackSettings(codec, block_elems, DECAY, STEP_AHEAD if steps_ahead(codec) else 0.0)
    return replace(SPARSE, outer_learning_rate=sparse_rate(codec, members), feedback=feedback)


def task(members: int, codec: str, epochs: int, seed: int) -> Learning:
    """What one swarm learns."""
    target = members * STEPS * OUTER.inner_batch_samples
    learning = small_task(target_samples=target, until_samples=epochs * target, codec=codec)
    learning = replace(learning, seed=seed, max_group=max(members, 2))
    return replace(learning, rule=rule_of(codec, learning.block_elems, members))


def learn(learning: Learning, members: int, console: Console, what: str) -> Learnt:
    """One swarm, from the first sample to the last."""
    with Progress(console=console, transient=True) as progress, few_garbage_collections():
        task = progress.add_task(what, total=learning.until_samples)
        swarm = LearningSwarm(learning, members, progress=lambda samples: progress.update(task, completed=samples))
        return run_simulated(swarm.run(), learning.seed, limit_s=_LONGEST_S)


def row(members: int, codec: str, losses: Sequence[float], dense_losses: Sequence[float]) -> dict[str, Any]:
    """One line of the table."""
    up, down = run_simulated(bytes_of_a_round(members, codec, ELEMS, BLOCK_ELEMS), 0, limit_s=_LONGEST_S)
    ratios = [loss / dense for loss, dense in zip(losses, dense_losses, strict=True)]
    return {
        "group": members,
        "codec": codec,
        "up_bits": round(8 * up / ELEMS, 4),
        "down_bits": round(8 * down / ELEMS, 4),
        "loss": round(statistics.median(losses), 4),
        "loss_fp32": round(statistics.median(dense_losses), 4),
        "loss_ratio": round(statistics.median(ratios), 4),
    }


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All groups and codecs.

    Returns:
        What `--json` prints.
    """
    began_s = time.perf_counter()
    torch.set_num_threads(1)  # tensors are small
    rows: list[dict[str, Any]] = []
    seeds = range(options.seed, options.seed + options.seeds)
    for members in options.groups:
        dense: list[float] = []
        for codec in ("fp32", *options.codecs):
            found = [learn(task(members, codec, options.epochs, seed), members, console, f"{members} x {codec}") for seed in seeds]
            losses = [learnt.loss for learnt in found]
            dense = dense or losses
            rows.append(row(members, codec, losses, dense))
            console.print(_table(rows))
    about = {"elems": ELEMS, "epochs": options.epochs, "steps": STEPS, "seeds": list(seeds)}
    return {"rows": rows, **about, "wall_s": round(time.perf_counter() - began_s, 1)}


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("group", "codec", "bits up", "bits down", "held-out loss", "fp32", "ratio")
    for found in rows:
        table.add_row(*(str(value) for value in found.values()))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; see `--help`.

    Returns:
        Process exit code: 0, 2 wrong arguments.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.bytes", description="Bits per parameter and round, and what they cost.")
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--codecs", nargs="+", default=["topk32-152"], choices=CODEC_NAMES)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from --seed on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    if min(options.groups) < 2 or max(options.groups) > 64 or options.epochs < 1 or options.seeds < 1 or options.seed < 0:
        parser.error("--groups are 2 to 64 members, --epochs and --seeds at least 1, --seed at least 0.")
    logging.getLogger("swarm").setLevel(logging.ERROR)
    found = measure(options, Console(stderr=True))
    if options.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
