"""`swarm-peer doctor`: look at this machine, and at our own node from outside."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from protocols.errors import ExitCode
from swarm.cli.common import AsJson, StateDir, configure, err, out, print_json

HELP = """Check this machine, and look at the running peer from outside with an independent libp2p implementation.

The second part dials the peer (or the one given by --address) with Noise only, and checks that it identifies itself, answers pings, has the
right time, and refuses both unencrypted connections and a wrong identity. Exit code 19 if anything is not as it should be.

Example:

    swarm-peer doctor --state-dir ~/.swarm-peer
"""


def command(
    state_dir: StateDir = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="MULTIADDR", help="Look at this libp2p address (ends in /p2p/...) instead of our own."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """See `HELP`."""
    from rich.table import Table

    from swarm.monitoring.doctor import examine

    config = configure({"state_dir": state_dir}, None)
    with err.status("Looking at the machine and the node ..."):
        findings = examine(config, address)
    healthy = all(finding.ok for finding in findings)
    if as_json:
        print_json(json.dumps({"healthy": healthy, "checks": [asdict(finding) for finding in findings]}))
    else:
        table = Table(show_header=False, box=None)
        for finding in findings:
            table.add_row("[green]ok[/]" if finding.ok else "[bold red]FAILED[/]", finding.name, finding.detail)
        out.print(table)
    if not healthy:
        raise typer.Exit(ExitCode.UNHEALTHY)
