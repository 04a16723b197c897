"""A thousand epochs of honest members, in which nobody may be accused: every codec with every aggregator, and all that can go wrong.

    python -m scripts.bench.honest --epochs 1000 --seed 1 --json

Small swarms verify their rounds on a simulated network that loses messages. Members bring gradients of all lengths, zeros, the same as
everybody else, with weights that differ a hundredfold; they come late, die in the middle and come back. Whoever replays a contribution
finds it a little different, as on other hardware. Exit code 1 if anybody was banned or found guilty of anything.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from peers.simulation import run_simulated
from protocols.aggregation import AGGREGATOR_NAMES
from protocols.codecs import CODEC_NAMES
from scripts.bench.honest_swarm import Case, Found, HonestSwarm
from scripts.simulate import few_garbage_collections

_SIZES = (1, 2, 3, 6, 6, 7, 8, 9, 10, 12, 14, 16)
_LONGEST_S = 1e7


def cases(epochs: int, seed: int) -> list[Case]:
    """One swarm for every codec with every aggregator; all of them together live so many epochs."""
    kinds = list(itertools.product(CODEC_NAMES, AGGREGATOR_NAMES))
    found = []
    for number, (codec, aggregator) in enumerate(kinds):
        share = epochs // len(kinds) + (number < epochs % len(kinds))
        dice = random.Random(f"{seed} {number}")
        members = _SIZES[(number + seed) % len(_SIZES)]
        max_group = 6 if members > 8 and dice.random() < 0.5 else 16  # a grid, or one group
        if share:
            found.append(Case(codec, aggregator, members, max_group, dice.choice((1, 1, 2)), share, dice.randrange(2**31)))
    return found


def measure(epochs: int, seed: int, console: Console) -> dict[str, Any]:
    """Let them all live.

    Returns:
        What `--json` prints.
    """
    began_s = time.perf_counter()
    torch.set_num_threads(1)  # tensors are small
    total = Found()
    by_codec: Counter[str] = Counter()
    by_aggregator: Counter[str] = Counter()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("honest epochs", total=epochs)
        for case in cases(epochs, seed):
            with few_garbage_collections():
                total += run_simulated(HonestSwarm(case, lambda: progress.advance(task)).run(), case.seed, limit_s=_LONGEST_S)
            by_codec[case.codec] += case.epochs
            by_aggregator[case.aggregator] += case.epochs
    about = {"codecs": dict(by_codec), "aggregators": dict(by_aggregator), "seed": seed}
    return {**total.summary(), **about, "wall_s": round(time.perf_counter() - began_s, 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and say in JSON; see `--help`.

    Returns:
        Process exit code: 0, 1 an honest member was found guilty, 2 wrong arguments.
    """
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.honest", description="Honest members for many epochs: nobody may be accused."
    )
    parser.add_argument("--epochs", type=int, default=1000, help="of all swarms together")
    parser.add_argument("--seed", type=int, default=1, help="of everything random")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    if options.epochs < 1 or options.seed < 0:
        parser.error("--epochs needs at least 1, --seed at least 0.")
    console = Console(stderr=True)
    found = measure(options.epochs, options.seed, console)
    console.print(
        f"{found['epochs']} epochs, {found['member_epochs']} of members: {found['bans']} bans, {found['judgements']} judgements, "
        f"{found['crashed']} died, {found['late']} were late, {found['wall_s']} s"
    )
    if options.json:
        print(json.dumps(found))
    return 1 if found["bans"] or found["judgements"] else 0


if __name__ == "__main__":
    sys.exit(main())
