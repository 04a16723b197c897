"""The command line `swarm-peer`: its commands and its version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from swarm.cli import coordinate, demo, doctor, export, generate, init, invite, join, plan, status
from swarm.cli.common import guarded, out

COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("init", init.command, init.HELP),
    ("plan", plan.command, plan.HELP),
    ("coordinate", coordinate.command, coordinate.HELP),
    ("invite", invite.command, invite.HELP),
    ("join", join.command, join.HELP),
    ("status", status.command, status.HELP),
    ("doctor", doctor.command, doctor.HELP),
    ("export", export.command, export.HELP),
    ("generate", generate.command, generate.HELP),
    ("demo", demo.command, demo.HELP),
)
"""Name, function and help of every command, in the order in which people meet them."""

app = typer.Typer(name="swarm-peer", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
for _name, _command, _help in COMMANDS:
    app.command(_name, help=_help)(guarded(_command))


def _version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        out.print(f"swarm-peer {importlib.metadata.version('swarm-peer-training')}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Train one transformer together: peers find each other by an invite, average what they learn, and may come and go.

    Exit codes: 0 done, 1 a bug of ours, 2 wrong usage, 10 configuration, 11 invite, 12 data, 13 state directory,
    14 identity in use, 15 network, 16 port in use, 17 wrong run, 18 refused, 19 unhealthy, 20 no state, 21 device,
    130 interrupted.
    """
