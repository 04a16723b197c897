"""What verification costs: a round with it beside the same round without, real processes on loopback, in one run.

    python -m scripts.bench.trust_cost --peers 8 --mib 64 --json

Rounds are interleaved as in `scripts.bench.averaging`, whose workers these are. Audits are left out: they are the training of one member,
repeated by another, for `auditors` members of each group and epoch (`RunSpec.trust`); their rate is stated with the figures.

`verified` commits to parts, signs for reductions, draws a coin and checks every block; it takes the plain mean, as the round without
verification does, so that the difference is verification alone. `robust` takes CenteredClip instead, which costs something of its own.
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

from protocols.codecs import CODEC_NAMES
from scripts.bench import data
from scripts.bench.averaging import ELEMS_PER_MIB, MOST_TIMEOUT_S, SEED, Figures, measure
from scripts.bench.fleet import BenchmarkError, RoundFigures, Setup

OFF, ON, ROBUST = "ours", "verified", "robust"
NAMES = {OFF: "verification off", ON: "verification on", ROBUST: "on, CenteredClip"}


def sent_bytes(rounds: Sequence[RoundFigures]) -> float:
    """Bytes that all members together send in a round, median."""
    return float(statistics.median(sum(note["sent_bytes"] for note in figure.notes) for figure in rounds))


def paired(figures: Figures, system: str, value: str) -> float:
    """Median over rounds of a figure beside that of the round without verification that was next to it, less one."""
    pairs = zip(figures[system], figures[OFF], strict=True)
    return float(statistics.median(getattr(with_it, value) / getattr(without, value) for with_it, without in pairs)) - 1


def report(figures: Figures, peers: int) -> dict[str, Any]:
    """Extra bytes and time as fractions, and what they come from."""
    summary: dict[str, Any] = {}
    for system, prefix in ((ON, ""), (ROBUST, "robust_")):
        if system not in figures:
            continue
        summary[f"{prefix}extra_bytes"] = round(sent_bytes(figures[system]) / sent_bytes(figures[OFF]) - 1, 5)
        summary[f"{prefix}extra_time"] = round(paired(figures, system, "seconds"), 4)
        summary[f"{prefix}extra_cpu"] = round(paired(figures, system, "cpu_s"), 4)
    for system, rounds in figures.items():
        summary[f"{system}_s"] = round(statistics.median(figure.seconds for figure in rounds), 4)
        summary[f"{system}_rounds_s"] = [round(figure.seconds, 4) for figure in rounds]
        summary[f"{system}_cpu_s"] = round(statistics.median(figure.cpu_s for figure in rounds), 3)
        summary[f"{system}_results_equal"] = all(figure.equal for figure in rounds)
    return {**summary, "audit_compute_per_auditor": round(1 / peers, 4)}


def table(figures: Figures, mib: int, codec: str) -> Table:
    """The same for people."""
    shown = Table(title=f"One averaging round of {mib} MiB a peer, {codec}")
    for heading in ("", "median s", "fastest", "CPU s", "MB sent", "same bytes"):
        shown.add_column(heading, justify="right" if heading else "left")
    for system, rounds in figures.items():
        seconds = [figure.seconds for figure in rounds]
        shown.add_row(
            NAMES[system],
            f"{statistics.median(seconds):.3f}",
            f"{min(seconds):.3f}",
            f"{statistics.median(figure.cpu_s for figure in rounds):.2f}",
            f"{sent_bytes(rounds) / 1e6:.1f}",
            "yes" if all(figure.equal for figure in rounds) else "no",
        )
    return shown


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line of the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.trust_cost",
        description="What verification costs in bytes and time.",
        epilog="example: python -m scripts.bench.trust_cost --peers 8 --mib 64 --codec int8 --json",
    )
    parser.add_argument("--peers", type=int, default=8, help="peers that average together, each its own process")
    parser.add_argument("--mib", type=int, default=64, help="size of every peer's fp32 vector, MiB")
    parser.add_argument("--codec", choices=CODEC_NAMES, default="fp32", help="how vectors travel")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each kind")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="deadline of one round, seconds")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    if options.peers < 2 or options.mib < 1 or options.rounds < 1 or not 1 <= options.timeout_s <= MOST_TIMEOUT_S:
        parser.error(f"--peers needs at least 2, --mib and --rounds at least 1, --timeout-s 1 to {MOST_TIMEOUT_S:.0f}.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 measured, 1 a worker failed or results differ, 2 wrong arguments, 130 interrupted."""
    options = parse_arguments(arguments)
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        with tempfile.TemporaryDirectory(prefix="trust-benchmark-") as name:
            weights = data.sample_weights(options.peers)
            elems = options.mib * ELEMS_PER_MIB
            setup = Setup(options.peers, elems, SEED, options.codec, weights, Path(name), options.timeout_s)
            figures, _ = measure([OFF, ON, ROBUST], setup, options.rounds, console)
    except BenchmarkError as error:
        console.print(f"trust benchmark: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("trust benchmark: interrupted; every process it had started has ended.")
        return 130
    console.print(table(figures, options.mib, options.codec))
    summary = report(figures, options.peers)
    if options.json:
        settings = {"peers": options.peers, "mib": options.mib, "codec": options.codec, "rounds": options.rounds}
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        sys.stdout.write(json.dumps({**summary, **settings, "machine": machine}) + "\n")
    equal = all(summary[f"{system}_results_equal"] for system in figures)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
