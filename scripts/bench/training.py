"""Training over slow links: our two sync rules beside `hivemind.Optimizer` and gloo's data parallelism, by held-out loss over time.

    python -m scripts.bench.training --peers 4 --mbit 20 --seconds 180 --json --picture docs/training-20mbit.svg

Every member is a process on one thread in a network namespace of its own, whose link is shaped in both directions
(`scripts.bench.netns`; needs root). The systems take turns, so each has all links and cores to itself. All train the same model from the
same weights, on the same text, with micro-batches of the same size, and are measured on the same held-out windows. Each has the settings
that suit it best (`scripts.bench.training_plans`).

Time begins when all members of a system compute; start-up is reported apart. Rank 0 writes the shared parameters down as they change;
their losses are measured when the system has ended. Bytes are those of each member's network interface, frame headers included.

`target_loss` is the lowest loss that an incumbent comes to in the given time, and `seconds_to_target` when the best system of each group
is there. `vs_<incumbent>` is how many times sooner the first of ours has the lowest loss that this incumbent comes to itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts.bench.fleet import BenchmarkError
from scripts.bench.line_chart import Panel, svg
from scripts.bench.netns import NamespaceError, shaped_hosts
from scripts.bench.training_fleet import Judge, TrainingFleet
from scripts.bench.training_plans import DEFAULT_PLANS, Common, Plan, chosen
from scripts.bench.training_report import Trained, loss_at, summary, table

CHART_POINTS = 60


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.training", description="Training over slow links, ours beside others.")
    parser.add_argument("--peers", type=int, default=4, help="members that train together, each its own process and host")
    parser.add_argument("--mbit", type=float, default=20.0, help="speed of each member's link, both directions, 10^6 bit/s")
    parser.add_argument("--seconds", type=float, default=180.0, help="how long each system trains")
    parser.add_argument("--preset", default="mini", help="model, a preset of swarm.models")
    parser.add_argument("--sequence-length", type=int, default=64, help="bytes predicted in a sample")
    parser.add_argument("--micro-batch", type=int, default=4, help="samples in one pass")
    parser.add_argument("--seed", type=int, default=1, help="of model and samples")
    parser.add_argument("--lr", type=float, help="learning rate of all chosen systems; each its own otherwise")
    parser.add_argument("--only", default=",".join(DEFAULT_PLANS), help="systems or groups of them, comma-separated")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="change a setting of all chosen systems, dotted")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    parser.add_argument("--picture", type=Path, help="SVG file to draw the losses in")
    options = parser.parse_args(arguments)
    if options.peers < 2 or options.seconds < 1 or options.mbit <= 0 or options.micro_batch < 1:
        parser.error("--peers needs at least 2, --seconds and --micro-batch at least 1, --mbit more than 0.")
    try:
        plans = chosen([word for word in options.only.split(",") if word])
        options.plans = [_adjusted(plan, options) for plan in plans]
    except KeyError as error:
        parser.error(f"--only {error.args[0]} is unknown.")
    except ValueError as error:
        parser.error(f"--set needs name=value with a JSON value: {error}.")
    return options


def _adjusted(plan: Plan, options: argparse.Namespace) -> Plan:
    if options.lr is not None:
        plan = plan.with_learning_rate(options.lr)
    for assignment in options.set:
        name, _, value = assignment.partition("=")
        plan = plan.changed(name, json.loads(value))
    return plan


def measure(options: argparse.Namespace, judge: Judge, common: Common, console: Console) -> list[Trained]:
    """All systems, one after the other.

    Raises:
        BenchmarkError: a member failed.
        NamespaceError: no namespaces can be had.
    """
    results = []
    for plan in options.plans:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="training-benchmark-")))
            hosts = stack.enter_context(shaped_hosts([options.mbit] * options.peers))
            console.print(f"{plan.name}: {options.seconds:.0f} s of training at {options.mbit:g} Mbit/s")
            results.append(TrainingFleet(plan, common, hosts, directory / plan.name).run(options.seconds, judge))
            console.print(f"{plan.name}: loss {results[-1].curve[-1][1]:.4f}, {results[-1].samples} samples, {dict(results[-1].notes)}")
    return results


def picture(results: Sequence[Trained], title: str, seconds: float) -> str:
    """The losses as a document."""
    spacing_s = seconds / CHART_POINTS
    lines = {result.name: [loss_at(result.curve, number * spacing_s) for number in range(CHART_POINTS + 1)] for result in results}
    return svg([Panel(title, lines)], "seconds", "held-out loss, nats per byte", spacing=spacing_s, linear=True)


def _run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    common = Common(options.peers, options.seed, {"preset": options.preset}, options.sequence_length, options.micro_batch)
    judge = Judge(common)
    results = measure(options, judge, common, console)
    title = f"{options.peers} members, {options.mbit:g} Mbit/s each"
    console.print(table(results, f"{title}, {judge.parameters / 1e6:.2f} million parameters, {options.seconds:.0f} s"))
    if options.picture:
        options.picture.write_text(picture(results, title, options.seconds), encoding="utf-8")
    settings = {name: getattr(options, name) for name in ("peers", "mbit", "seconds", "preset", "sequence_length", "micro_batch", "seed")}
    return {**summary(results), "parameters": judge.parameters, "options": settings}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        Process exit code: 0 measured, 1 a member failed or no namespaces, 2 wrong arguments, 130 interrupted.
    """
    options = parse_arguments(arguments)
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        found = _run(options, console)
    except (BenchmarkError, NamespaceError) as error:
        console.print(f"training benchmark: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("training benchmark: interrupted; every process and namespace it had started has ended.")
        return 130
    if options.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        sys.stdout.write(json.dumps({**found, "machine": machine}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
