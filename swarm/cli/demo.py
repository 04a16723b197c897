"""`swarm-peer demo`: five peers on this machine train one model, lose a member and gain one."""

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

Example:

    swarm-peer demo --keep --state-dir ./demo
"""

PATIENCE_S = 20.0
"""How long ending all peers may take after Ctrl-C."""


def command(
    as_json: AsJson = False,
    seconds: Annotated[float, typer.Option("--seconds", min=60.0, help="Time for everything.")] = 260.0,
    goal: Annotated[float, typer.Option("--goal", min=0.1, help="Held-out loss to get below, in nats per byte.")] = 2.6,
    state_dir: Annotated[Path | None, typer.Option("--state-dir", help="Folder for state, logs and export [a temporary one].")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep state and logs too, not only the export.")] = False,
) -> None:
    """See `HELP`."""
    from rich.live import Live

    from swarm.demo.plan import Plan
    from swarm.demo.show import Demo

    folder = state_dir.absolute() if state_dir else Path(tempfile.mkdtemp(prefix="swarm-demo-"))
    if folder.exists() and any(folder.iterdir()):
        raise typer.BadParameter(f"{folder} is not empty: name a new folder.", param_hint="--state-dir")
    if state_dir is None and not keep:
        emergency.register(folder, lambda: shutil.rmtree(folder, ignore_errors=True))  # after Ctrl-C, even a second one
    with leaving_on_signals(PATIENCE_S), Live(console=err, refresh_per_second=2) as live:
        demo = Demo(Plan(seconds, goal), folder, say=lambda text: live.console.print(text, markup=False), show=live.update)
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


def _summarize(report: DemoReport) -> None:
    losses = " -> ".join("?" if loss is None else f"{loss:.2f}" for loss in (report.loss_start, report.loss_end))
    out.print(f"\nHeld-out loss {losses} nats per byte in {report.epochs} epochs", style="bold")
    out.print(f"{report.members} members at the end, {report.killed} killed, {report.joined} joined on the way, {report.seconds:.0f} s")
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
