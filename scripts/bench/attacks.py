"""Attacks against defences: a real model trained by members of whom some lie, one run for each cell of a table.

    python -m scripts.bench.attacks --json
    python -m scripts.bench.attacks --attack alie --attack ipm_0.6 --defence mean --defence centered_clip --seed 0 --seed 1
    python -m scripts.bench.attacks --peers 8 --attackers 3 --epochs 60 --attack sign_flip

Every member computes gradients of a small transformer on the sources of Python's standard library (`scripts.attacks.workload`); attackers
send something else from epoch `--attack-from` on. A row says the loss at the end on held-out text, beside that of the same run without an
attack and with the plain mean. Defences: mean, median, geometric_median, krum and centered_clip verify nothing, so that attackers stay for
ever. Attacks that only a verified swarm knows have no row there. `verified` runs the real averaging code with audits and bans. Under
`poison_donor` a newcomer fetches the state in each epoch, from donors of which some serve poison; if one ends with other bytes than honest
members hold, the run fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from peers.attacks.omniscient import alie_z
from scripts.attacks import report
from scripts.attacks.crew import Cell, run_cells
from scripts.attacks.plain_swarm import CleanRuns
from scripts.attacks.runners import DEFENCES, runner_named
from scripts.attacks.scenario import ATTACKS, NO_ATTACK, Row, Runner, Scenario
from scripts.bench.fleet import BenchmarkError

MOST_PEERS = 256
WIDTH = 120
"""Of the table where nobody looks at it in a terminal, in characters."""


def cells_of(options: argparse.Namespace, runners: dict[str, Runner]) -> list[Cell]:
    """All cells that mean something, attack by attack."""
    return [
        Cell(attack, defence, seed, options.auditors)
        for seed in options.seed
        for attack in options.attack
        for defence, runner in runners.items()
        if runner.plays(attack)
    ]


def measure(cells: Sequence[Cell], scenario: Scenario, runners: dict[str, Runner], workers: int, console: Console) -> list[Row]:
    """Run all cells, with a progress bar.

    Raises:
        BenchmarkError: a worker failed.
    """
    bar = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    total = sum(runners[cell.defence].epochs(cell.attack) for cell in cells)
    with (
        tempfile.TemporaryDirectory(prefix="attacks-benchmark-", ignore_cleanup_errors=True) as directory,
        Progress(*bar, console=console, transient=True) as progress,
    ):
        task = progress.add_task("epochs", total=total)
        return run_cells(cells, scenario, workers, Path(directory), lambda epochs: progress.advance(task, epochs))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.attacks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"attacks: {', '.join(ATTACKS)}; {NO_ATTACK} for runs without any",
    )
    parser.add_argument("--peers", type=int, default=16, help="members")
    parser.add_argument("--attackers", type=int, default=7, help="how many of them attack, fewer than half")
    parser.add_argument("--attack", action="append", choices=(*ATTACKS, NO_ATTACK), metavar="A", help="one attack, again for more; all")
    parser.add_argument("--defence", action="append", choices=DEFENCES, metavar="D", help="one defence, again for more; all")
    parser.add_argument("--seed", type=int, action="append", metavar="S", help="of everything random, again for more runs; 0")
    parser.add_argument("--auditors", type=int, default=1, choices=(1, 2), help="audits in each epoch, where anybody verifies")
    parser.add_argument("--epochs", type=int, default=240, help="length of a run")
    parser.add_argument("--attack-from", type=int, default=10, help="first epoch in which attackers attack")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="cells at once, each in a process of its own")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    options.attack = list(dict.fromkeys(options.attack or ATTACKS))
    options.defence = list(dict.fromkeys(options.defence or DEFENCES))
    options.seed = list(dict.fromkeys(options.seed or [0]))
    if not 4 <= options.peers <= MOST_PEERS:
        parser.error(f"--peers needs 4 to {MOST_PEERS} members.")
    if not 1 <= options.attackers < options.peers / 2:
        parser.error("--attackers needs at least 1 and fewer than half of --peers: nothing helps a minority.")
    if options.epochs < 1 or options.workers < 1 or options.attack_from < 0 or min(options.seed) < 0:
        parser.error("--epochs and --workers need at least 1, --attack-from and --seed at least 0.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, and say in JSON; see `--help`.

    Returns:
        Process exit code: 0 measured, 1 a worker failed, 2 wrong arguments, 130 interrupted.
    """
    options = parse_arguments(arguments)
    console = Console(stderr=True, highlight=False) if sys.stderr.isatty() else Console(stderr=True, highlight=False, width=WIDTH)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    scenario = Scenario(options.peers, options.attackers, options.epochs, options.attack_from)
    clean = CleanRuns(scenario)
    runners = {defence: runner_named(defence, clean) for defence in options.defence}
    cells = cells_of(options, runners)
    if not cells:
        console.print(f"{', '.join(options.attack)} means nothing with {', '.join(options.defence)}: choose another defence.", markup=False)
        return 2
    began_s = time.perf_counter()
    try:
        rows = measure(cells, scenario, runners, options.workers, console)
    except BenchmarkError as error:
        console.print(f"attacks benchmark: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("attacks benchmark: interrupted; every process it had started has ended.")
        return 130
    wall_s = time.perf_counter() - began_s
    console.print(report.table(rows, f"{options.attackers} attackers among {options.peers} members, {options.epochs} epochs"))
    console.print(f"{len(cells)} cells in {wall_s:.1f} s on {min(options.workers, len(cells))} workers")
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        about = {"settings": settings, "machine": {"cpus": os.cpu_count(), "python": platform.python_version()}}
        found = {"cells": len(cells), "wall_s": round(wall_s, 1), "alie_z": round(alie_z(options.peers, options.attackers), 3)}
        print(json.dumps({"rows": [row.as_json() for row in rows], "summary": {**found, "defences": report.summary(rows), **about}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
