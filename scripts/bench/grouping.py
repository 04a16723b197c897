"""How quickly groups form, and how exact the mean is that they make: real processes on loopback, hivemind's averager beside them.

    python -m scripts.bench.grouping --peers 16 --max-group 4 --epochs 50 --json

Every peer is a member as a volunteer has it (libp2p daemon, DHT, mutual TLS), with a made-up trainer: `scripts.bench.member`. In every
epoch all of them are ready at the same moment and average 1 MiB in the rounds of the grid, two on a grid of 4 x 4.

`formed`: share of all rounds of all members that had a full group. `rel_error`: the worst result of any member in any epoch, as the
distance from the exact fp64 weighted mean in units of its norm; every epoch has other vectors. `plan_s`: from the moment at which all
members of a group were ready until one of them holds the plan; `own_plan_s`: from the moment at which that member itself was ready, others'
previous round included.

hivemind runs after our processes have ended: the same number of peers, `target_group_size` and `initial_group_bits` of the same grid, all
starting each round together. Its groups are its own choice, its weights are equal (a second round could not carry others).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.bench import data, processes
from scripts.bench.crew import Crew, made_up_run
from scripts.bench.fleet import CLOSE_TIMEOUT_S, OPEN_TIMEOUT_S, BenchmarkError, Worker

ELEMS_PER_MIB = 2**20 // 4
SEED = 21
MEET_TIMEOUT_S = 90.0
LEAD_S = 0.2
BLOCK_ELEMS = 2**16


@dataclass(frozen=True, slots=True)
class RoundSeen:
    """One round as one member saw it; times on the monotonic clock that all processes share.

    Args:
        epoch, index: which round.
        peer: who says so.
        members: its group, itself included.
        ready_at_s: when it began to look for its group: at the start of the epoch, or when its round before was done.
        planned_at_s: when it held the plan.
    """

    epoch: int
    index: int
    peer: str
    members: tuple[str, ...]
    ready_at_s: float
    planned_at_s: float


def plan_seconds(rounds: Sequence[RoundSeen]) -> list[float]:
    """For each round of each member: from when its whole group was ready until it held the plan.

    A member may hold the plan before a later one is ready, which then is not in it; readiness of the plan's own members counts.
    """
    ready_at_s = {(seen.epoch, seen.index, seen.peer): seen.ready_at_s for seen in rounds}
    return [
        seen.planned_at_s - max(ready_at_s.get((seen.epoch, seen.index, peer), seen.ready_at_s) for peer in seen.members) for seen in rounds
    ]


def share_formed(rounds: Sequence[RoundSeen], expected: int, max_group: int) -> float:
    """Share of `expected` rounds that ended in a group of `max_group` whose members all saw the same group."""
    groups: dict[tuple[int, int, tuple[str, ...]], set[str]] = defaultdict(set)
    for seen in rounds:
        groups[seen.epoch, seen.index, tuple(sorted(seen.members))].add(seen.peer)
    whole = sum(len(peers) for (_, _, members), peers in groups.items() if len(members) == max_group and peers == set(members))
    return whole / expected


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least this percentage of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Ours:
    """What our members did.

    Args:
        rounds: as each member saw them.
        errors: relative error of each member in each epoch.
        epoch_s: from the common start to the last member's result, one an epoch.
        failures: what members said that got no result.
        about: versions.
    """

    rounds: list[RoundSeen]
    errors: list[float]
    epoch_s: list[float]
    failures: list[str]
    about: dict[str, Any]


def run_ours(options: argparse.Namespace, directory: Path, console: Console) -> Ours:
    """All epochs of our members.

    Raises:
        BenchmarkError: a process failed.
    """
    weights, elems = data.sample_weights(options.peers), options.mib * ELEMS_PER_MIB
    expected = directory / "ours.f64"
    data.write_expected(expected, SEED, elems, weights)
    crew = Crew(directory, made_up_run("grouping", {"block_elems": BLOCK_ELEMS, "max_group": options.max_group}), elems, SEED)
    try:
        console.print(f"starting {options.peers} members")
        ours = Ours([], [], [], [], crew.found(weights, expected))
        crew.meet(MEET_TIMEOUT_S)
        for epoch in range(options.epochs):
            crew.ask("load", "loaded", OPEN_TIMEOUT_S, epoch=epoch)
            start_at_s = time.monotonic() + LEAD_S
            answers = crew.ask("average", "averaged", options.timeout_s, epoch=epoch, start_at_s=start_at_s)
            _note_epoch(ours, epoch, start_at_s, crew, answers)
            console.print(f"epoch {epoch + 1}/{options.epochs} {ours.epoch_s[-1]:6.3f} s, worst error so far {max(ours.errors):.1e}")
        return ours
    finally:
        crew.close()


def _note_epoch(ours: Ours, epoch: int, start_at_s: float, crew: Crew, answers: Mapping[int, dict[str, Any]]) -> None:
    ours.epoch_s.append(max(answer["finished_at_s"] for answer in answers.values()) - start_at_s)
    for rank, answer in answers.items():
        peer = crew.members[rank].peer
        ours.errors.append(answer["rel_error"])
        if answer["status"] != "applied":
            ours.failures.append(f"epoch {epoch}, member {rank}: {answer['status']} {answer['reason']}")
        ready_at_s = answer["ready_at_s"]
        for seen in answer["rounds"]:
            if seen["included"]:
                ours.rounds.append(RoundSeen(epoch, seen["index"], peer, tuple(seen["members"]), ready_at_s, seen["planned_at_s"]))
            ready_at_s = seen["done_at_s"]


@dataclass(frozen=True, slots=True)
class Hivemind:
    """What hivemind's averagers did: seconds, group sizes and errors, one list a round with one number a peer."""

    seconds: list[list[float]]
    groups: list[list[int]]
    errors: list[list[float]]
    failures: list[str]
    about: dict[str, Any]


def run_hivemind(options: argparse.Namespace, directory: Path, console: Console) -> Hivemind:
    """All rounds of hivemind's averagers.

    Raises:
        BenchmarkError: a process failed.
    """
    elems, expected = options.mib * ELEMS_PER_MIB, directory / "hivemind.f64"
    data.write_expected(expected, SEED, elems, [1.0] * options.peers)
    workers: list[Worker] = []
    try:
        console.print(f"starting {options.peers} averagers of hivemind")
        bootstrap: dict[str, Any] | None = None
        for rank in range(options.peers):
            worker = Worker("scripts.bench.grouping_hivemind", rank, directory / f"hivemind-{rank}.log", [])
            workers.append(worker)
            task = {"rank": rank, "peers": options.peers, "max_group": options.max_group, "elems": elems, "seed": SEED}
            worker.send("open", **task, expected=str(expected), timeout_s=options.hivemind_timeout_s, bootstrap=bootstrap)
            if rank == 0:
                bootstrap = worker.expect("bootstrap", OPEN_TIMEOUT_S)["value"]
        abouts = [worker.expect("ready", 2 * OPEN_TIMEOUT_S)["about"] for worker in workers]
        found = Hivemind([], [], [], [], abouts[0])
        for number in range(options.hivemind_rounds):
            start_at_s = time.monotonic() + LEAD_S
            for worker in workers:
                worker.send("average", round=number, start_at_s=start_at_s)
            answers = [worker.expect("averaged", 2 * options.hivemind_timeout_s + 10) for worker in workers]
            found.seconds.append([answer["seconds"] for answer in answers])
            found.groups.append([answer["group"] for answer in answers])
            found.errors.append([answer["rel_error"] for answer in answers])
            found.failures.extend(answer["failure"] for answer in answers if answer["failure"])
            full = sum(group == options.max_group for group in found.groups[-1])
            text = f"{full}/{options.peers} in full groups, worst error {max(found.errors[-1]):.1e}"
            console.print(f"hivemind round {number + 1}/{options.hivemind_rounds} {max(found.seconds[-1]):6.3f} s, {text}")
        return found
    finally:
        _end(workers)


def _end(workers: Sequence[Worker]) -> None:
    sessions = {worker.session for worker in workers}
    sockets = processes.socket_files(sessions)
    for worker in workers:
        worker.hang_up()
    processes.end(sessions, grace_s=CLOSE_TIMEOUT_S)
    for worker in workers:
        worker.reap()
    for file in sockets:
        file.unlink(missing_ok=True)


def report_ours(ours: Ours, max_group: int, rounds_an_epoch: int) -> dict[str, Any]:
    """The keys of ours; times are absent if no round was seen."""
    expected = len(ours.errors) * rounds_an_epoch
    summary: dict[str, Any] = {
        "formed": round(share_formed(ours.rounds, expected, max_group), 6),
        "rel_error": max(ours.errors),
        "epoch_s_p50": round(statistics.median(ours.epoch_s), 4),
        "failures": ours.failures,
    }
    if ours.rounds:
        plan_s, own_s = plan_seconds(ours.rounds), [seen.planned_at_s - seen.ready_at_s for seen in ours.rounds]
        for name, values in (("plan_s", plan_s), ("own_plan_s", own_s)):
            summary |= {f"{name}_p50": round(percentile(values, 50), 4), f"{name}_p99": round(percentile(values, 99), 4)}
        summary["plan_s_max"] = round(max(plan_s), 4)
    return summary


def report_hivemind(found: Hivemind, max_group: int) -> dict[str, Any]:
    """The same of hivemind; a round's seconds are those of every peer, failed ones included."""
    every = [value for row in found.seconds for value in row]
    groups = [value for row in found.groups for value in row]
    return {
        "hivemind_round_s_p50": round(percentile(every, 50), 4),
        "hivemind_round_s_p99": round(percentile(every, 99), 4),
        "hivemind_formed": round(sum(group == max_group for group in groups) / len(groups), 4),
        "hivemind_no_round": sum(group == 0 for group in groups),
        "hivemind_rel_error": max(found.errors[-1]),
        "hivemind_rel_error_by_round": [max(row) for row in found.errors],
        "hivemind_rounds": len(found.seconds),
        "hivemind_failures": sorted(set(found.failures)),
    }


def table(summary: Mapping[str, Any]) -> Table:
    """For people."""
    shown = Table(title="Groups")
    for heading in ("", "ours", "hivemind"):
        shown.add_column(heading, justify="left" if not heading else "right")
    hivemind = "hivemind_rel_error" in summary
    shown.add_row("rounds in a full group", f"{summary['formed']:.1%}", f"{summary['hivemind_formed']:.1%}" if hivemind else "-")
    shown.add_row("plan p50 / p99, s", f"{summary.get('plan_s_p50', '-')} / {summary.get('plan_s_p99', '-')}", "-")
    median_s = f"{summary['hivemind_round_s_p50']:.2f} (a round)" if hivemind else "-"
    shown.add_row("seconds, median", f"{summary['epoch_s_p50']:.2f} (an epoch)", median_s)
    after = f"{summary['hivemind_rel_error']:.1e} after {summary['hivemind_rounds']} rounds" if hivemind else "-"
    shown.add_row("worst relative error", f"{summary['rel_error']:.1e} after every epoch", after)
    return shown


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line of the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.grouping", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=int, default=16, help="members, each its own process")
    parser.add_argument("--max-group", type=int, default=4, help="most members in one group")
    parser.add_argument("--epochs", type=int, default=50, help="epochs of ours")
    parser.add_argument("--mib", type=int, default=1, help="size of every peer's fp32 vector, MiB")
    parser.add_argument("--hivemind-rounds", type=int, default=6, help="rounds of hivemind; 0: without it")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="deadline of one epoch of ours, seconds")
    parser.add_argument("--hivemind-timeout-s", type=float, default=30.0, help="after that many seconds a round of hivemind has failed")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    if options.peers < 2 or options.max_group < 2 or options.epochs < 1 or options.mib < 1 or options.hivemind_rounds < 0:
        parser.error("--peers and --max-group need at least 2, --epochs and --mib at least 1.")
    return options


def rounds_of_grid(peers: int, max_group: int) -> int:
    """Dimensions of the smallest grid with sides of at most `max_group` that holds all peers."""
    rounds = 1
    while max_group**rounds < peers:
        rounds += 1
    return rounds


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        Process exit code: 0 measured, 1 a worker failed, 2 wrong arguments, 130 interrupted.
    """
    options = parse_arguments(arguments)
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    summary: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="grouping-benchmark-", ignore_cleanup_errors=True) as name:
            ours = run_ours(options, Path(name), console)
            summary = report_ours(ours, options.max_group, rounds_of_grid(options.peers, options.max_group))
            about = {"ours": ours.about}
            if options.hivemind_rounds:
                found = run_hivemind(options, Path(name), console)
                summary |= report_hivemind(found, options.max_group)
                about["hivemind"] = found.about
    except BenchmarkError as error:
        console.print(f"grouping benchmark: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("grouping benchmark: interrupted; every process it had started has ended.")
        return 130
    console.print(table(summary))
    for failure in summary["failures"][:20]:
        console.print(failure, markup=False)
    if options.json:
        settings = {"peers": options.peers, "max_group": options.max_group, "epochs": options.epochs, "mib": options.mib}
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        sys.stdout.write(json.dumps({**summary, **settings, "about": about, "machine": machine}) + "\n")
    return 0


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())
