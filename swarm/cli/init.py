"""`swarm-peer init`: make a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from swarm.cli.common import AsJson, StateDir, configure, err, out, print_json

HELP = """Make a run: an authority key, and a signed specification that every member will check.

RUN_FILE is a TOML file with the model, the data, the optimizer and so on; without one, a preset gives a run that
trains on the text of Python's standard library. Prints the run's fingerprint. Nothing is started yet: that is
`swarm-peer coordinate`.

Example:

    swarm-peer init scripts/tiny_bloom.toml --state-dir ~/.swarm-peer
"""


def command(
    run_file: Annotated[Path | None, typer.Argument(metavar="[RUN_FILE]", help="TOML file of the run.")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="Model preset if there is no run file: tiny, mini, ... [tiny].")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run if there is no run file.")] = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """See `HELP`."""
    if run_file is not None and (preset is not None or name is not None):
        raise typer.BadParameter("a run file already says this; give one or the other.", param_hint="--preset or --name")
    config = configure({"state_dir": state_dir}, None)
    from peers.clock import SystemClock
    from swarm.runfile import create_run, preset_spec, read_spec

    with err.status("Reading the data ..."):
        spec = read_spec(run_file) if run_file else preset_spec(preset or "tiny", name)
        run = create_run(config.state_dir, spec, now=SystemClock().now())
    if as_json:
        print_json(json.dumps({"run_id": str(run.run_id), "name": spec.run.name, "state_dir": str(config.state_dir)}))
    else:
        out.print(f"Run {spec.run.name}: {run.run_id}", markup=False, soft_wrap=True)
        err.print(f"Start it with: swarm-peer coordinate --state-dir {config.state_dir}", markup=False, soft_wrap=True)
