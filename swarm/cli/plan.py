"""`swarm-peer plan`: what a run will be like on given machines and links, and settings that fit them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarm.cli.common import AsJson, configure, err, out, print_json
from swarm.cli.plan_measured import measured_machine_of, members_and_link, read_measured

if TYPE_CHECKING:
    from protocols.planning import Link, Machine, Members, Prediction, Recommendation, Settings, Workload
    from protocols.runspec import RunSpec

HELP = """Say what a run will be like on given machines and links, and which settings fit them. Nothing is started or changed.

Prints how long epochs and rounds take, how many bytes each peer moves, and how much of the time devices compute, for the run file as it is
and with the recommended settings, the lines to put into the run file, and how much memory a member needs. With --device-gb it says how a
member can make the model fit into its device. --probe measures this machine for about half a minute, and stands in for --device-tflops.
--measured takes what a member measured when it joined, and stands in for --device-tflops, --mbit, --rtt-ms and --peers; what is given
beside it counts.

Example:

    swarm-peer plan scripts/tiny_bloom.toml --peers 12 --mbit 50 --device-tflops 20
"""

_MOST_PEERS = 100_000
_MOST_MBIT = 1e6
_MOST_GIB = 1e6
_GIB = 2**30
_UTILISATION = 0.35
_MICRO_BATCH = 8

Peers = Annotated[int | None, typer.Option("--peers", min=1, max=_MOST_PEERS, help="How many compute.")]
Measured = Annotated[
    Path | None, typer.Option("--measured", help="What a member measured: the measured.json of its state directory, or that directory.")
]
Mbit = Annotated[float | None, typer.Option("--mbit", min=0.001, max=_MOST_MBIT, help="Each one's link, its slower direction, in Mbit/s.")]
Clients = Annotated[int | None, typer.Option("--clients", min=0, help="How many of the peers cannot be dialled: they reduce nothing [0].")]
RoundTrip = Annotated[float | None, typer.Option("--rtt-ms", min=0.0, max=60_000.0, help="Round trip between peers, in ms [50].")]
Tflops = Annotated[float | None, typer.Option("--device-tflops", min=1e-6, max=1e6, help="Stated speed of each device, 10^12 a second.")]
Share = Annotated[
    float | None,
    typer.Option("--utilisation-of-device", min=0.001, max=1.0, help="How much of its stated speed a device reaches in training [0.35]."),
]
Memory = Annotated[
    float | None,
    typer.Option(
        "--memory-gib",
        "--device-gb",
        min=0.001,
        max=_MOST_GIB,
        help="Memory of each device, 12 for a card of 12 GB: how to make the model fit into it.",
    ),
]
MicroBatch = Annotated[int | None, typer.Option("--micro-batch", min=1, help="Samples in one pass, beside --device-tflops [8].")]
DoProbe = Annotated[bool, typer.Option("--probe", help="Measure this machine in place of --device-tflops.")]
Device = Annotated[str | None, typer.Option("--device", help="Which to --probe: auto, cpu or cuda [auto].")]


def command(  # noqa: PLR0913  each parameter is a flag
    run_file: Annotated[Path, typer.Argument(metavar="RUN_FILE", help="TOML file of the run.")],
    peers: Peers = None,
    mbit: Mbit = None,
    clients: Clients = None,
    rtt_ms: RoundTrip = None,
    device_tflops: Tflops = None,
    utilisation_of_device: Share = None,
    memory_gib: Memory = None,
    micro_batch: MicroBatch = None,
    probe: DoProbe = False,
    device: Device = None,
    measured: Measured = None,
    as_json: AsJson = False,
) -> None:
    """See `HELP`."""
    if probe + (device_tflops is not None) + (measured is not None) != 1:
        message = "give one of the three: what devices can do, --probe to measure this one, or --measured for what a member has measured."
        raise typer.BadParameter(message, param_hint="--device-tflops")
    _refuse_beside(
        device_tflops is None, "--device-tflops", {"--utilisation-of-device": utilisation_of_device, "--micro-batch": micro_batch}
    )
    _refuse_beside(not probe, "--probe", {"--device": device})
    from protocols.planning import Machine
    from swarm.runfile import check_fragments, read_spec

    spec = read_spec(run_file)
    check_fragments(spec)
    found = read_measured(measured) if measured else None
    members, link = members_and_link(found, peers, clients, mbit, rtt_ms)
    if found is not None:
        machine = measured_machine_of(found)
    elif device_tflops is not None:
        flops_per_s = device_tflops * 1e12 * (utilisation_of_device or _UTILISATION)
        machine = Machine(flops_per_s=flops_per_s, micro_batch_samples=micro_batch or _MICRO_BATCH)
    else:
        machine = _probed(spec, device or "auto")
    if memory_gib is not None:
        machine = replace(machine, memory_bytes=round(memory_gib * _GIB))
    _report(spec, members, machine, link, as_json=as_json)


def _refuse_beside(missing: bool, partner: str, flags: Mapping[str, object]) -> None:
    """What would be ignored without its partner is a mistake."""
    for flag, value in flags.items():
        if missing and value is not None:
            raise typer.BadParameter(f"it counts only beside {partner}.", param_hint=flag)


def _probed(spec: RunSpec, device: str) -> Machine:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from swarm.planning import measured_machine

    wanted = configure({"device": device}, None).device
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err, transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        return measured_machine(spec, wanted, lambda done, what: bar.update(task, completed=done, description=what))


def _report(spec: RunSpec, members: Members, machine: Machine, link: Link, *, as_json: bool) -> None:
    from protocols.planning import predict, recommend
    from protocols.planning.memory import choices
    from swarm.cli.plan_memory import memory_as_json, show_memory
    from swarm.planning import settings_of, shape_of, trained_of, workload_of

    workload, given = workload_of(spec, bf16=machine.bf16), settings_of(spec)
    audited = spec.trust.verify and spec.trust.auditors > 0
    micro_batch, device = machine.micro_batch_samples, machine.memory_bytes
    memory = choices(trained_of(spec), shape_of(spec), given, micro_batch, device, bf16=machine.bf16, audited=audited)
    now = predict(members, machine, link, workload, given)
    other = predict(members, machine, link, workload, replace(given, overlap=not given.overlap))
    better = recommend(members, machine, link, workload, given)
    if as_json:
        plan = _as_json(members, machine, link, workload, (given, now, other), better)
        print_json(json.dumps(plan | {"memory": memory_as_json(memory)}))
        return
    _show_machine(machine, workload)
    _show_predictions(given, now, other, better)
    show_memory(memory, machine.memory_bytes)
    _show_candidates(better)
    for advice in better.advice:
        out.print(f"{advice.section}.{advice.key} = {_toml(advice.value)}: {advice.why}", markup=False, soft_wrap=True)
    for warning in better.warnings:
        err.print(f"Warning: {warning}", style="bold yellow", markup=False, soft_wrap=True)
    out.print("\nFor the run file:\n", markup=False)
    out.print(run_file_lines(better), markup=False, soft_wrap=True)


def _as_json(
    members: Members,
    machine: Machine,
    link: Link,
    workload: Workload,
    given: tuple[Settings, Prediction, Prediction],
    better: Recommendation,
) -> dict[str, Any]:
    settings, now, other = given
    return {
        "members": asdict(members),
        "machine": asdict(machine),
        "link": asdict(link),
        "workload": asdict(workload),
        "given": {"settings": asdict(settings), "prediction": _numbers(now), "other_overlap": _numbers(other)},
        "recommended": {"settings": asdict(better.settings), "prediction": _numbers(better.prediction)},
        "candidates": [asdict(candidate) for candidate in better.candidates],
        "advice": [asdict(advice) for advice in better.advice],
        "run_file": run_file_lines(better),
        "warnings": list(better.warnings),
    }


def _numbers(found: Prediction) -> dict[str, Any]:
    return {**asdict(found), "averaging_s": found.averaging_s}


def run_file_lines(better: Recommendation) -> str:
    """The recommended settings as TOML, a table for each section."""
    lines: list[str] = []
    for advice in better.advice:
        if f"[{advice.section}]" not in lines:
            lines += ["", f"[{advice.section}]"] if lines else [f"[{advice.section}]"]
        lines.append(f"{advice.key} = {_toml(advice.value)}")
    return "\n".join(lines)


def _toml(value: str | float | bool) -> str:
    """A number, a string or true and false as TOML has them, which JSON has alike."""
    return json.dumps(value)


def _show_machine(machine: Machine, workload: Workload) -> None:
    flops, sample_s = workload.flops_per_sample, workload.flops_per_sample / machine.flops_per_s
    model = f"{_short(workload.parameters)} parameters, {_short(flops)}FLOP a sample of {workload.tokens_per_sample} tokens"
    device = f"a device of {_short(machine.flops_per_s)}FLOP/s takes {_time(sample_s)} for it"
    out.print(f"{model}; {device}.\n", markup=False, soft_wrap=True)


def _show_predictions(given: Settings, now: Prediction, other: Prediction, better: Recommendation) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("", "run file", "with overlap" if not given.overlap else "without overlap", "recommended"):
        table.add_column(title, justify="left" if not title else "right")
    columns = [_figures(settings, found) for settings, found in ((given, now), (given, other), (better.settings, better.prediction))]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    out.print(table)
    out.print()


def _show_candidates(better: Recommendation) -> None:
    from rich.table import Table

    if not better.candidates:
        return
    table = Table(box=None, pad_edge=False, title="Codecs for the outer rule", title_justify="left")
    for title in ("", "a round", "up an epoch", "steps without waiting", "computing if all wait", "held-out loss"):
        table.add_column(title, justify="right" if title and title != "held-out loss" else "left")
    for found in better.candidates:
        figures = (_time(found.round_s), f"{_short(found.up_bytes)}B", f"{found.steps:.0f}", f"{found.utilisation:.0%}")
        table.add_row(found.codec, *figures, found.quality if found.usable else f"{found.quality}; not in a run that verifies")
    out.print(table)
    out.print()


def _figures(settings: Settings, found: Prediction) -> dict[str, str]:
    """Name -> as people read it."""
    return {
        "rule, codec": f"{settings.rule}, {settings.codec}",
        "micro-batch or inner step": _time(found.step_s),
        "of these a peer and epoch": f"{found.inner_steps:.1f}",
        "computing": _time(found.compute_s),
        "averaging": " + ".join(_time(round_s) for round_s in found.rounds_s) or "nobody to average with",
        "update": _time(found.update_s),
        "epoch": _time(found.epoch_s),
        "devices compute": f"{found.utilisation:.1%}",
        "up, down a peer and epoch": f"{_short(found.up_bytes)}B, {_short(found.down_bytes)}B",
        "busiest link an epoch": f"{_short(found.busiest_bytes)}B",
        "samples an epoch": f"{found.epoch_samples:.0f}",
        "samples/s of the swarm": _significant(found.samples_per_s),
        "memory: device, CPU": f"{found.device_bytes / _GIB:.2f}, {found.host_bytes / _GIB:.2f} GiB",
    }


def _significant(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{_significant(seconds)} s"


def _short(number: float) -> str:
    """With a letter for thousands, as many as there are."""
    steps = min(max(int(math.log10(number) // 3), 0), 6) if number > 0 else 0
    return f"{number / 1000**steps:.3g} {' kMGTPE'[steps].strip()}"
