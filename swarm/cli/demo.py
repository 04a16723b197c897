"""`swarm-peer demo`: some peers on this machine train one model, lose a member and gain one, and ban those that attack."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peers import emergency
from protocols.errors import ExitCode
from swarm.cli.common import AsJson, err, fail, out, print_json, printable
from swarm.signals import leaving_on_signals

if TYPE_CHECKING:
    from swarm.demo.report import DemoReport

HELP = """Show the whole thing on this machine in less than five minutes.

A coordinator and four volunteers, each a process of its own, find each other through an invite and train a small
BLOOM on the text of Python's standard library. One volunteer is killed, a new one joins; at the end everybody must
hold the same model, which is exported and sampled.

With --attackers there are six volunteers. One or two of them attack, and must be banned with the reason on the screen, while
the others reach the same loss. --attack says how they attack, once for each; one of: sign_flip, constant_direction,
bit_flip, lying_reducer, lying_reducer_1 and other names of peers/attacks/lone.py.

Examples:

    swarm-peer demo --keep --state-dir ./demo
    swarm-peer demo --attackers 2
"""

ATTACKS = ("sign_flip", "lying_reducer")
"""Of the attackers, in order, unless others are named: one is found out by an audit, the other by the check of every block."""

PATIENCE_S = 20.0
"""How long ending all peers may take after Ctrl-C."""


def command(
    as_json: AsJson = False,
    seconds: Annotated[float, typer.Option("--seconds", min=60.0, help="Time for everything.")] = 260.0,
    goal: Annotated[float, typer.Option("--goal", min=0.1, help="Held-out loss to get below, in nats per byte.")] = 2.6,
    state_dir: Annotated[Path | None, typer.Option("--state-dir", help="Folder for state, logs and export [a temporary one].")] = None,
    attackers: Annotated[int, typer.Option("--attackers", min=0, max=2, help="How many of six volunteers attack.")] = 0,
    attack: Annotated[
        list[str] | None, typer.Option("--attack", metavar="NAME", help="How they attack, repeatable [sign_flip, lying_reducer].")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep state and logs too, not only the export.")] = False,
) -> None:
    """See `HELP`."""
    from rich.live import Live

    from swarm.demo.plan import Cast, Plan
    from swarm.demo.show import Demo

    attacks = _attacks(attackers, attack or [])
    cast = Cast(6, attacks) if attacks else Cast()
    folder = state_dir.absolute() if state_dir else Path(tempfile.mkdtemp(prefix="swarm-demo-"))
    if folder.exists() and any(folder.iterdir()):
        raise typer.BadParameter(f"{folder} is not empty: name a new folder.", param_hint="--state-dir")
    if state_dir is None and not keep:
        emergency.register(folder, lambda: shutil.rmtree(folder, ignore_errors=True))  # after Ctrl-C, even a second one
    with leaving_on_signals(PATIENCE_S), Live(console=err, refresh_per_second=2) as live:
        demo = Demo(Plan(seconds, goal, cast=cast), folder, say=lambda text: live.console.print(text, markup=False), show=live.update)
        try:
            report = demo.run()
        except Exception:
            emergency.forget(folder)  # the error names a log in it
            raise
    emergency.forget(folder)
    missing = report.shortcomings(goal)
    if not keep and not missing:
        _keep_only_export(folder)
    if as_json:
        print_json(report.to_json())
    else:
        _summarize(report)
    if missing:
        fail(f"{' '.join(missing)} The logs are in {folder}.", ExitCode.INTERNAL)


def _attacks(count: int, chosen: list[str]) -> tuple[str, ...]:
    from peers.attacks.lone import LONE_ATTACKS

    unknown = [name for name in chosen if name not in LONE_ATTACKS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]} is not known: choose one of {', '.join(LONE_ATTACKS)}.", param_hint="--attack")
    if len(chosen) > count:
        raise typer.BadParameter(f"{len(chosen)} attacks are named for {count} attackers.", param_hint="--attack")
    return (*chosen, *(name for name in ATTACKS if name not in chosen))[:count]


def _summarize(report: DemoReport) -> None:
    losses = " -> ".join("?" if loss is None else f"{loss:.2f}" for loss in (report.loss_start, report.loss_end))
    out.print(f"\nHeld-out loss {losses} nats per byte in {report.epochs} epochs", style="bold")
    out.print(f"{report.members} members at the end, {report.killed} killed, {report.joined} joined on the way, {report.seconds:.0f} s")
    for member in report.banned:
        out.print(f"{member.name} ({member.attack or 'honest'}) banned in epoch {member.epoch}: {member.reason}")
    out.print(f"State after epoch {report.hash_epoch}, by member:")
    for name, digest in report.hashes.items():
        out.print(f"  {name:<14} {digest}")
    out.print("All equal." if report.anchors_equal else "NOT equal.", style="green" if report.anchors_equal else "bold red")
    out.print(f"Hugging Face folder: {report.export or 'none'}")
    out.print("A sample from it:", style="bold")
    out.print(printable(report.sample), markup=False, soft_wrap=True)


def _keep_only_export(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == "export":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
