"""The aggregators: errors under attack beside the published ones, and speed.

    python -m scripts.bench.aggregators --json

`scripts.bench.aggregator_errors` says what the table of errors is. Speed is GB of fp32 parts, however they are encoded, for each second
of CPU time with one thread: blocks of 2^20 standard normal numbers from sixteen senders, medians over rounds in which all rules take turns.
As in a peer, freed memory is kept (`peers.memory`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from peers.memory import keep_freed_memory
from protocols.aggregation import Aggregator, aggregator_named
from protocols.aggregation.bucketing import SEED_BYTES
from protocols.codecs import codec_named
from protocols.parts import Part
from scripts.bench import data
from scripts.bench.aggregator_errors import ATTACKS, COLUMNS, SENDERS, error_rows

WIDTH = 120
"""Of the tables, in characters."""
_BYZANTINE = 6
"""Most that Krum's guarantee allows among sixteen."""
_SEED = bytes(SEED_BYTES)
RULES: Mapping[str, Aggregator] = {
    "mean": aggregator_named("mean"),
    "centered_clip": aggregator_named("centered_clip"),
    "geometric_median": aggregator_named("geometric_median"),
    "krum": aggregator_named("krum", byzantine=_BYZANTINE),
    "multi_krum": aggregator_named("multi_krum", byzantine=_BYZANTINE, keep=SENDERS - _BYZANTINE - 2),
    "coordinate_median": aggregator_named("coordinate_median"),
    "trimmed_mean": aggregator_named("trimmed_mean", trim=_BYZANTINE),
    "bucketed centered_clip": aggregator_named("centered_clip", bucket=2, seed=_SEED),
    "bucketed coordinate_median": aggregator_named("coordinate_median", bucket=2, seed=_SEED),
}


def throughput_rows(elems: int, rounds: int, seed: int) -> list[dict[str, Any]]:
    """Every rule on the same blocks, plain and as int8."""
    plain: list[Part] = [torch.from_numpy(data.vector(seed, sender, elems)) for sender in range(SENDERS)]
    codec = codec_named("int8")
    encoded: list[Part] = [codec.open(codec.encode(part), elems) for part in plain if isinstance(part, torch.Tensor)]
    inputs = {"fp32": plain, "int8": encoded}
    out_E = torch.empty(elems)
    spent_s: dict[tuple[str, str], list[float]] = {(rule, kind): [] for kind in inputs for rule in RULES}
    for _ in range(rounds):
        for (rule, kind), times_s in spent_s.items():
            started_s = time.process_time()
            RULES[rule].aggregate(inputs[kind], [1.0] * SENDERS, out_E)
            times_s.append(time.process_time() - started_s)
    gb = 4 * SENDERS * elems / 1e9
    return [
        {"rule": rule, "parts": kind, "gb_s": round(gb / max(statistics.median(times_s), 1e-9), 3)}
        for (rule, kind), times_s in spent_s.items()
    ]


def show(rows: Sequence[dict[str, Any]], throughput: Sequence[dict[str, Any]], console: Console) -> None:
    """Both tables, for people."""
    shown = Table(title="Distance from the honest mean, as a part of its length: 7 of 16 attack; published (!: differs by more than noise)")
    for heading in ("rule", *ATTACKS):
        shown.add_column(heading, justify="left" if heading == "rule" else "right")
    for rule in COLUMNS:
        shown.add_row(rule, *(_cell(row) for row in rows if row["rule"] == rule))
    console.print(shown)
    shown = Table(title=f"GB/s of parts on one core, {SENDERS} senders")
    for heading in ("rule", "fp32", "int8"):
        shown.add_column(heading, justify="left" if heading == "rule" else "right")
    for rule in RULES:
        shown.add_row(rule, *(f"{row['gb_s']:.2f}" for row in throughput if row["rule"] == rule))
    console.print(shown)


def _cell(row: Mapping[str, Any]) -> str:
    published = "" if row["published"] is None else f" ({row['published']:.3g}{'' if row['within_noise'] else '!'})"
    return f"{row['error']:.3g}{published}"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.aggregators", description="Errors of aggregators under attack, and their speed."
    )
    parser.add_argument("--trials", type=int, default=20, help="trials of which each error is the mean")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--elems", type=int, default=2**20, help="elements of the blocks whose speed is measured")
    parser.add_argument("--rounds", type=int, default=7, help="rounds over all rules whose speed is measured")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    if min(options.trials, options.elems, options.rounds) < 1 or options.seed < 0:
        parser.error("--trials, --elems and --rounds need at least 1, --seed at least 0.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, and say in JSON; see `--help`.

    Returns:
        Process exit code: 0 measured, 2 wrong arguments.
    """
    options = parse_arguments(arguments)
    console = Console(stderr=True, width=WIDTH, highlight=False)
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = error_rows(options.trials, options.seed)
    throughput = throughput_rows(options.elems, options.rounds, options.seed)
    show(rows, throughput, console)
    odd = [f"{row['rule']} under {row['attack']}" for row in rows if row["within_noise"] is False]
    if odd:
        console.print(f"further from the published error than noise explains: {'; '.join(odd)}", markup=False)
    if options.json:
        settings = {name: getattr(options, name) for name in ("trials", "seed", "elems", "rounds")}
        about = {"torch": torch.__version__, "python": platform.python_version()}
        machine = {"cpus": os.cpu_count(), "simd": torch.backends.cpu.get_cpu_capability(), "system": platform.platform()}
        found = {"rows": rows, "throughput": throughput, "all_within_noise": not odd}
        print(json.dumps({**found, **settings, "about": about, "machine": machine}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
