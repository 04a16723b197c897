"""What the planner predicts from a member's own probe, beside what then happens: time and bytes of epochs, and the share of computing.

    python -m scripts.bench.planning --json

Four members are processes in network namespaces with shaped links (`scripts.bench.netns`; needs root), as in the training benchmark. The
last one probes its machine and its link while all begin to train, as `swarm-peer join` does. What it is told to expect (`measured.json`)
stands beside what all members did from the first epoch after that on. Ratios are predicted by measured.

A machine with other work computes at one speed while it is probed and at another later. `at_speed` is the prediction with the speed at
which members computed after the probe: what it differs by is the planner's own error.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from protocols.runspec import RunSpec
from scripts.bench.fleet import BenchmarkError
from scripts.bench.netns import NamespaceError, shaped_hosts
from scripts.bench.training_fleet import Judge, TrainingFleet
from scripts.bench.training_plans import PLANS, Common, Plan, member_settings
from scripts.bench.training_report import Point
from swarm.monitoring.survey import Expected, Survey, read_survey
from swarm.surveying import expected_of

FEWEST_EPOCHS = 3
BITS = 8e-6


@dataclass(frozen=True, slots=True)
class Case:
    """One row.

    Args:
        name: on the command line.
        plan: how members train.
        mbit: of every link.
    """

    name: str
    plan: Plan
    mbit: float


def _gradient(target_samples: int, *, verify: bool = False) -> Plan:
    plan = PLANS["gradient-waiting"].changed("optimizer.target_batch_samples", target_samples)
    return plan.changed("trust.verify", verify)


CASES = (
    Case("gradient-100", _gradient(96), 100.0),
    Case("gradient-20", _gradient(96), 20.0),
    Case("verified-20", _gradient(96, verify=True), 20.0),
    Case("outer-20", PLANS["outer-int4"].changed("optimizer.target_batch_samples", 160), 20.0),
    Case("outer-5", PLANS["outer-int4"].changed("optimizer.target_batch_samples", 160), 5.0),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one epoch and member.

    Args:
        epoch_s: from update to update.
        share_computing: of the time.
        up_bytes, down_bytes: payload, mean over all members.
        samples_per_s: of a member while it computes.
        overlapped_s: how long a round runs beside computing.
    """

    epoch_s: float
    share_computing: float
    up_bytes: float
    down_bytes: float
    samples_per_s: float
    overlapped_s: float = 0.0


def measured_figures(members: Sequence[Mapping[str, Any]]) -> tuple[Figures, int]:
    """What happened after the probe.

    Args:
        members: what each left in `epochs-<rank>.json`.

    Returns:
        Means over members, and how many epochs they are of.

    Raises:
        BenchmarkError: the probe was not through in time, or too few epochs followed.
    """
    probed_s = next((member["probed_s"] for member in members if member["probed_s"] is not None), None)
    if probed_s is None:
        raise BenchmarkError("The probe was not through when the run ended; give more --seconds.")
    rows, counts = [], []
    for member in members:
        begins = [begin for begin in member["begins"] if begin["at_s"] > probed_s]
        if len(begins) <= FEWEST_EPOCHS:
            raise BenchmarkError(f"Only {len(begins)} epochs began after the probe; give more --seconds.")
        first, last = begins[0], begins[-1]
        epochs, took_s = last["epoch"] - first["epoch"], last["at_s"] - first["at_s"]
        up_bytes, down_bytes = ((last[name] - first[name]) / epochs for name in ("sent_bytes", "received_bytes"))
        computing_s = last["computing_s"] - first["computing_s"]
        samples_per_s = (last["pace_samples"] - first["pace_samples"]) / (last["pace_s"] - first["pace_s"])
        averaging_s = (last["averaging_s"] - first["averaging_s"]) / epochs
        rows.append(Figures(took_s / epochs, computing_s / took_s, up_bytes, down_bytes, samples_per_s, averaging_s))
        counts.append(epochs)
    return Figures(*(statistics.mean(values) for values in zip(*map(_numbers, rows), strict=True))), min(counts)


def _numbers(found: Figures) -> tuple[float, ...]:
    return found.epoch_s, found.share_computing, found.up_bytes, found.down_bytes, found.samples_per_s, found.overlapped_s


def at_speed(survey: Survey, samples_per_s: float, spec: RunSpec) -> Expected | None:
    """What would have been predicted if every member had computed so fast while the probe ran."""
    if survey.samples_per_s is None or survey.flops_per_s is None:
        return None
    flops_per_s = survey.flops_per_s * samples_per_s / survey.samples_per_s
    others = (survey.peers - survey.helpers - 1) * samples_per_s
    changes = {"samples_per_s": samples_per_s, "flops_per_s": flops_per_s, "others_samples_per_s": others}
    return expected_of(survey.model_copy(update=changes), spec)


def compared(case: Case, spec: RunSpec, survey: Survey, measured: Figures, epochs: int) -> dict[str, Any]:
    """One row of the JSON.

    Raises:
        BenchmarkError: the probe came to no prediction.
    """
    expected, later = survey.expected, at_speed(survey, measured.samples_per_s, spec)
    if expected is None or later is None or survey.samples_per_s is None:
        raise BenchmarkError(f"The probe came to no prediction: {survey.link_note or 'too little was computed'}")
    predicted = Figures(expected.epoch_s, expected.share_computing, expected.up_bytes, expected.down_bytes, survey.samples_per_s)
    names = ("epoch_s", "share_computing", "up_bytes", "down_bytes", "samples_per_s")
    pairs = zip(names, _numbers(predicted)[: len(names)], _numbers(measured)[: len(names)], strict=True)
    return {
        "case": case.name,
        "mbit": case.mbit,
        "epochs": epochs,
        **{name: {"predicted": said, "measured": was, "ratio": round(said / was, 3)} for name, said, was in pairs},
        "overlapped_s": round(measured.overlapped_s, 3),
        "at_speed": {
            "epoch_s": round(later.epoch_s / measured.epoch_s, 3),
            "share_computing": round(later.share_computing / measured.share_computing, 3),
        },
        "probe": {
            "others_samples_per_s": survey.others_samples_per_s,
            "up_mbit": round((survey.up_bytes_per_s or 0) * BITS, 2),
            "down_mbit": round((survey.down_bytes_per_s or 0) * BITS, 2),
            "rtt_s": survey.rtt_s,
            "update_s_per_elem": survey.update_s_per_elem,
            "processing_s_per_elem": survey.processing_s_per_elem,
            "moved_bytes": survey.link_moved_bytes,
            "note": survey.link_note,
        },
    }


class Unjudged(Judge):
    """Losses are not what is asked here, and measuring them takes longer than training did."""

    def curve(self, snapshots: Path, began_s: float, seconds: float) -> list[Point]:
        """None."""
        del snapshots, began_s, seconds
        return []


def measure(case: Case, common: Common, seconds: float, judge: Judge) -> dict[str, Any]:
    """One setting, from the first process to the last.

    Raises:
        BenchmarkError: a member failed, or the run was too short.
        NamespaceError: no namespaces can be had.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="planning-benchmark-"))) / case.name
        hosts = stack.enter_context(shaped_hosts([case.mbit] * common.peers))
        TrainingFleet(case.plan, common, hosts, directory, package="planning").run(seconds, judge)
        members = [json.loads((directory / f"epochs-{rank}.json").read_text()) for rank in range(common.peers)]
        spec = RunSpec.from_settings(member_settings(case.plan, common))
        survey = read_survey(directory / f"member-{common.peers - 1}" / "measured.json")
    if survey is None:
        raise BenchmarkError("The probe left nothing; give more --seconds.")
    return compared(case, spec, survey, *measured_figures(members))


_COLUMNS = (
    ("epoch_s", "epoch, s", 1.0, ".2f"),
    ("share_computing", "computing", 1.0, ".1%"),
    ("up_bytes", "MB up", 1e-6, ".3f"),
    ("down_bytes", "MB down", 1e-6, ".3f"),
    ("samples_per_s", "samples/s", 1.0, ".1f"),
)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """For people: predicted, measured, ratio."""
    found = Table("case", "epochs", title="predicted, measured: their ratio")
    for _, title, _, _ in _COLUMNS:
        found.add_column(title)
    found.add_column("epoch at speed")
    for row in rows:
        cells = [row["case"], str(row["epochs"])]
        for name, _, scale, form in _COLUMNS:
            figures = row[name]
            cells.append(f"{figures['predicted'] * scale:{form}}, {figures['measured'] * scale:{form}}: {figures['ratio']:.2f}")
        found.add_row(*cells, f"{row['at_speed']['epoch_s']:.2f}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; see `--help`.

    Returns:
        Process exit code: 0 measured, 1 a member failed or no namespaces, 2 wrong arguments, 130 interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.planning", description="What the planner predicts beside what happens.")
    parser.add_argument("--only", default=",".join(case.name for case in CASES), help="settings, comma-separated")
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=90.0, help="how long each setting trains, the probe included")
    parser.add_argument("--preset", default="mini", help="model, a preset of swarm.models")
    parser.add_argument("--micro-batch", type=int, default=4, help="samples in one pass")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    wanted = options.only.split(",")
    cases = [case for case in CASES if case.name in wanted]
    if len(cases) != len(wanted) or options.peers < 2 or options.seconds < 1 or options.micro_batch < 1:
        parser.error(f"--only names {', '.join(case.name for case in CASES)}; --peers needs at least 2, the others at least 1.")
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    common = Common(options.peers, 1, {"preset": options.preset}, 64, options.micro_batch)
    rows = []
    try:
        judge = Unjudged(common)
        for case in cases:
            console.print(f"{case.name}: {options.seconds:.0f} s at {case.mbit:g} Mbit/s")
            rows.append(measure(case, common, options.seconds, judge))
            console.print(json.dumps(rows[-1]), markup=False, soft_wrap=True)
    except (BenchmarkError, NamespaceError) as error:
        console.print(f"planning benchmark: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("planning benchmark: interrupted; every process and namespace it had started has ended.")
        return 130
    console.print(table(rows))
    if options.json:
        sys.stdout.write(json.dumps({"rows": rows, "parameters": judge.parameters}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
