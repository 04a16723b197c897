"""One averaging round over links of stated speeds: how close to what the links can physically carry, ours beside hivemind's averager.

    python -m scripts.bench.links --mbit 100,100,100,100 --mib 64 --json
    python -m scripts.bench.links --mbit 100,100,20,20 --mib 16 --json

Every peer is a process in a network namespace of its own, whose link is shaped in both directions (`scripts.bench.netns`; needs root).
First plain TCP over every link is measured, then rounds of both systems take turns as in `scripts.bench.averaging`; each system's first
rounds, in which bandwidth is still being learnt, do not count. Ours is told no bandwidth; hivemind, whose users have to state it, is told
the truth.

The bound. Of a vector of S bytes averaged by n members, let member i reduce the share w_i. It must send its own contribution to the
others' shares, (1 - w_i) S, and its result to the n - 1 others, (n - 1) w_i S, together (1 + (n - 2) w_i) S; it receives as much. No round
is faster than the slowest of (1 + (n - 2) w_i) S / b_i, and the shares of `protocols.partition` make that as small as it can be:
max(xi, 1 / b_min) S, where xi is the slowest reducer's time per byte and b_min the slowest link, whose owner has to send and to receive at
least one whole vector. For n equal links this is 2 (n - 1) / n S / b. `b` is the stated rate of the link, frame headers included, of which
plain TCP reaches about 95 %.
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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from protocols.partition import least_time_s
from scripts.bench import data
from scripts.bench.averaging import ELEMS_PER_MIB, OURS, SEED, Figures, measure
from scripts.bench.fleet import BenchmarkError, RoundFigures, Setup
from scripts.bench.netns import Host, NamespaceError, shaped_hosts
from scripts.bench.tcp_probe import link_rates

HIVEMIND = "hivemind"
PROBE_S = 1.5
BYTES_PER_ELEM = 4


def report(figures: Figures, warm_up: int, bound: float) -> dict[str, Any]:
    """`round_s`, `share_of_bound` and what each peer measured of its link; hivemind's with its prefix."""
    summary: dict[str, Any] = {"bound_s": round(bound, 4)}
    for system, rounds in figures.items():
        prefix = "" if system == OURS else f"{system}_"
        counted = rounds[warm_up:]
        median_s = statistics.median(figure.seconds for figure in counted)
        summary[f"{prefix}round_s"] = round(median_s, 4)
        summary[f"{prefix}share_of_bound"] = round(bound / median_s, 4)
        summary[f"{prefix}rounds_s"] = [round(figure.seconds, 4) for figure in counted]
        summary[f"{prefix}warm_up_rounds_s"] = [round(figure.seconds, 4) for figure in rounds[:warm_up]]
        summary[f"{prefix}max_abs_error"] = max(figure.max_abs_error for figure in rounds)
        summary[f"{prefix}results_equal"] = all(figure.equal for figure in rounds)
    summary["peers_notes"] = list(figures[OURS][-1].notes)
    return summary


def table(figures: Figures, warm_up: int, bound: float, title: str) -> Table:
    """The same for people."""
    shown = Table(title=title)
    for heading in ("system", "median s", "fastest", "slowest", "share of bound", "CPU s", "same bytes"):
        shown.add_column(heading, justify="left" if heading == "system" else "right")
    shown.add_row("the links' bound", f"{bound:.3f}", "", "", "1.000", "", "")
    for system, rounds in figures.items():
        counted: list[RoundFigures] = rounds[warm_up:]
        seconds = [figure.seconds for figure in counted]
        median_s = statistics.median(seconds)
        shown.add_row(
            system,
            f"{median_s:.3f}",
            f"{min(seconds):.3f}",
            f"{max(seconds):.3f}",
            f"{bound / median_s:.3f}",
            f"{statistics.median(figure.cpu_s for figure in counted):.2f}",
            "yes" if all(figure.equal for figure in rounds) else "no",
        )
    return shown


def _speeds(text: str) -> list[float]:
    try:
        speeds = [float(word) for word in text.split(",")]
    except ValueError:
        speeds = []
    if len(speeds) < 2 or not all(0.1 <= speed <= 10_000 for speed in speeds):
        raise argparse.ArgumentTypeError("at least two speeds between 0.1 and 10000 Mbit/s, separated by commas")
    return speeds


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.links", description="One averaging round over links of stated speeds.")
    parser.add_argument("--mbit", type=_speeds, default=[100.0] * 4, help="speed of each peer's link, comma-separated, 10^6 bit/s")
    parser.add_argument("--mib", type=int, default=64, help="size of every peer's fp32 vector, MiB")
    parser.add_argument("--block-kib", type=int, default=512, help="size of our blocks, KiB")
    parser.add_argument("--without-hivemind", action="store_true", help="ours only")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each system that count")
    parser.add_argument("--warm-up", type=int, default=3, help="rounds of each system before those, in which bandwidths are learnt")
    parser.add_argument("--congestion", default="cubic", help="TCP congestion control of all hosts")
    parser.add_argument("--timeout-s", type=float, default=120.0, help="deadline of one round, seconds")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    if options.mib < 1 or options.rounds < 1 or options.warm_up < 0 or options.block_kib < 1:
        parser.error("--mib, --block-kib and --rounds need at least 1, --warm-up at least 0.")
    return options


def _setup(options: argparse.Namespace, directory: Path, hosts: tuple[Host, ...]) -> Setup:
    peers = len(hosts)
    return Setup(
        peers,
        options.mib * ELEMS_PER_MIB,
        SEED,
        "fp32",
        data.sample_weights(peers),
        directory,
        options.timeout_s,
        hosts,
        options.block_kib * 1024 // BYTES_PER_ELEM,
    )


def _run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    systems = [OURS] if options.without_hivemind else [OURS, HIVEMIND]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="links-benchmark-")))
        hosts = stack.enter_context(shaped_hosts(options.mbit, options.congestion))
        rates = link_rates(hosts, PROBE_S)
        tcp_shares = [round(rate / (host.link_bytes_per_s or rate), 4) for rate, host in zip(rates, hosts, strict=True)]
        console.print(f"plain TCP carries {', '.join(f'{share:.3f}' for share in tcp_shares)} of the links' rates")
        figures, about = measure(systems, _setup(options, directory, hosts), options.warm_up + options.rounds, console)
    bound = least_time_s(options.mib * 2**20, [round(mbit * 1e6 / 8) for mbit in options.mbit])
    title = f"One averaging round of {options.mib} MiB a peer, links of {', '.join(f'{mbit:g}' for mbit in options.mbit)} Mbit/s"
    console.print(table(figures, options.warm_up, bound, title))
    settings = {"mbit": options.mbit, "mib": options.mib, "block_kib": options.block_kib, "congestion": options.congestion}
    return {**report(figures, options.warm_up, bound), "tcp_share_of_rate": tcp_shares, **settings, "about": about}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        Process exit code: 0 measured, 1 a worker failed or no namespaces, 2 wrong arguments, 130 interrupted.
    """
    options = parse_arguments(arguments)
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        summary = _run(options, console)
    except (BenchmarkError, NamespaceError) as error:
        console.print(f"links benchmark: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("links benchmark: interrupted; every process and namespace it had started has ended.")
        return 130
    if options.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        sys.stdout.write(json.dumps({**summary, "machine": machine}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
