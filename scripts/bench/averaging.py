"""One averaging round: ours (mutual TLS on) beside hivemind's averager and torch's gloo all-reduce, in one run on one machine.

    python -m scripts.bench.averaging --peers 4 --mib 64 --codec fp32 --against hivemind,gloo --json

Every peer of every system is a process of its own on loopback, started once and idle while it is another system's turn. Rounds are
interleaved, and the order rotates, so that whatever else the machine does falls on all of them alike. A round lasts from a common start
on the monotonic clock until the last peer holds the result. All peers have different vectors and different weights; every result is
compared with the exact fp64 weighted mean, and ours must be as close to it as the codec promises.
CPU seconds include everything a peer has started (hivemind's daemon, for one).

The orchestrator speaks with its workers in JSON lines, orders on their standard input, events on their standard output:

    {"op": "open", "rank", "peers", "elems", "seed", "codec", "weights", "directory", "timeout_s", "bootstrap", "address",
     "link_bytes_per_s", "block_elems"}
        -> {"event": "bootstrap", "value": {...}}        rank 0 only, as soon as the others can join; its value is their "bootstrap"
        -> {"event": "ready", "about": {...}}            versions and settings for the report
    {"op": "load", "round": k}                           -> {"event": "loaded"}
    {"op": "average", "round": k, "start_at_s": t}       -> {"event": "averaged", "finished_at_s": t, "contributors": n}
    {"op": "check", "round": k}                          -> {"event": "checked", "max_abs_error": e, "digest": "hex", "notes": {}}
    {"op": "close"} or end of file                       -> {"event": "closed"}, and the worker ends

`scripts.bench.worker` has the workers' side of it; a system adds `open`, `load`, `average`, `result` and `close` in its own module
`scripts.bench.averaging_<system>`. A worker that fails just ends: its standard error is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from protocols.codecs import CODEC_NAMES, codec_named
from scripts.bench import data
from scripts.bench.fleet import BenchmarkError, Fleet, RoundFigures, Setup
from scripts.bench.worker import EXPECTED_FILE

OURS = "ours"
OTHERS = ("hivemind", "gloo")
MOST_TIMEOUT_S = 3600.0
ELEMS_PER_MIB = 2**20 // 4
SEED = 20

Figures = dict[str, list[RoundFigures]]


def measure(systems: Sequence[str], setup: Setup, rounds: int, console: Console) -> tuple[Figures, dict[str, Any]]:
    """Open all systems, run their rounds interleaved, end every process.

    Returns:
        Figures by system, in the order of the rounds, and what each system says about itself.

    Raises:
        BenchmarkError: a worker failed.
    """
    data.write_expected(setup.directory / EXPECTED_FILE, setup.seed, setup.elems, setup.weights)
    fleets: list[Fleet] = []
    figures: Figures = {system: [] for system in systems}
    try:
        for system in systems:
            fleets.append(Fleet(system, setup))
            console.print(f"starting {setup.peers} peers of {system}")
            fleets[-1].open()
        for number in range(rounds):
            first = number % len(fleets)
            for fleet in fleets[first:] + fleets[:first]:
                figure = fleet.run_round(number)
                figures[fleet.system].append(figure)
                console.print(f"round {number + 1}/{rounds} {fleet.system:>9} {figure.seconds:7.3f} s {figure.cpu_s:7.2f} CPU s")
    finally:
        # A second Ctrl-C must not stop the first one from ending the processes.
        for caught in (signal.SIGINT, signal.SIGTERM):
            signal.signal(caught, signal.SIG_IGN)
        for fleet in fleets:
            fleet.close()
    return figures, {fleet.system: fleet.about for fleet in fleets}


def report(figures: Figures) -> dict[str, Any]:
    """Medians and ratios: `<system>_s`, `vs_hivemind` = hivemind / ours, `vs_gloo` = ours / gloo, errors, CPU seconds of a round."""
    summary: dict[str, Any] = {}
    for system, rounds in figures.items():
        prefix = "" if system == OURS else f"{system}_"
        summary[f"{system}_s"] = round(statistics.median(figure.seconds for figure in rounds), 4)
        summary[f"{system}_rounds_s"] = [round(figure.seconds, 4) for figure in rounds]
        summary[f"{prefix}cpu_s"] = round(statistics.median(figure.cpu_s for figure in rounds), 3)
        summary[f"{prefix}max_abs_error"] = max(figure.max_abs_error for figure in rounds)
        summary[f"{prefix}results_equal"] = all(figure.equal for figure in rounds)
    if OURS in figures and "hivemind" in figures:
        summary["vs_hivemind"] = round(summary["hivemind_s"] / summary["ours_s"], 3)
    if OURS in figures and "gloo" in figures:
        summary["vs_gloo"] = round(summary["ours_s"] / summary["gloo_s"], 3)
    return summary


def table(figures: Figures, mib: int, codec: str) -> Table:
    """The same for people."""
    shown = Table(title=f"One averaging round of {mib} MiB a peer, {codec}")
    for heading in ("system", "median s", "fastest", "slowest", "CPU s", "max abs error", "same bytes"):
        shown.add_column(heading, justify="left" if heading == "system" else "right")
    for system, rounds in figures.items():
        seconds = [figure.seconds for figure in rounds]
        shown.add_row(
            system,
            f"{statistics.median(seconds):.3f}",
            f"{min(seconds):.3f}",
            f"{max(seconds):.3f}",
            f"{statistics.median(figure.cpu_s for figure in rounds):.2f}",
            f"{max(figure.max_abs_error for figure in rounds):.1e}",
            "yes" if all(figure.equal for figure in rounds) else "no",
        )
    return shown


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.averaging", description="One averaging round, ours beside others.")
    parser.add_argument("--peers", type=int, default=4, help="peers that average together, each its own process")
    parser.add_argument("--mib", type=int, default=64, help="size of every peer's fp32 vector, MiB")
    parser.add_argument("--codec", choices=CODEC_NAMES, default="fp32", help="how vectors travel (gloo: always fp32)")
    parser.add_argument("--against", default=",".join(OTHERS), help="comma-separated: hivemind, gloo; empty for none")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each system")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="deadline of one round, seconds")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    options.against = [name for name in options.against.split(",") if name]
    if unknown := [name for name in options.against if name not in OTHERS]:
        parser.error(f"--against {','.join(unknown)} is unknown; choose from {', '.join(OTHERS)}.")
    if options.peers < 2 or options.mib < 1 or options.rounds < 1 or not 1 <= options.timeout_s <= MOST_TIMEOUT_S:
        parser.error(f"--peers needs at least 2, --mib and --rounds at least 1, --timeout-s 1 to {MOST_TIMEOUT_S:.0f}.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        Process exit code: 0 measured, 1 a worker failed or our mean is further off than the codec allows, 2 wrong arguments, 130
        interrupted.
    """
    options = parse_arguments(arguments)
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    weights = data.sample_weights(options.peers)
    try:
        with tempfile.TemporaryDirectory(prefix="averaging-benchmark-") as name:
            elems = options.mib * ELEMS_PER_MIB
            setup = Setup(options.peers, elems, SEED, options.codec, weights, Path(name), options.timeout_s)
            figures, about = measure([OURS, *options.against], setup, options.rounds, console)
    except BenchmarkError as error:
        console.print(f"averaging benchmark: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("averaging benchmark: interrupted; every process it had started has ended.")
        return 130
    console.print(table(figures, options.mib, options.codec))
    summary = report(figures)
    bound = data.error_bound(codec_named(options.codec), SEED, elems, weights, setup.block_elems)
    judged = {"error_bound": bound, "within_bound": summary["max_abs_error"] <= bound}
    if options.json:
        settings = {"peers": options.peers, "mib": options.mib, "codec": options.codec, "rounds": options.rounds, "weights": weights}
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        sys.stdout.write(json.dumps({**summary, **judged, **settings, "about": about, "machine": machine}) + "\n")
    if not judged["within_bound"]:
        console.print(f"averaging benchmark: our mean is off by {summary['max_abs_error']:.3g}, and {options.codec} allows {bound:.3g}.")
    return 0 if judged["within_bound"] else 1


if __name__ == "__main__":
    sys.exit(main())
