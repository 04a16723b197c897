"""`swarm-peer status`: what the peer of a state directory is doing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocols.errors import ConfigError, ExitCode
from swarm.cli.common import AsJson, StateDir, configure, err, fail, out, print_json

if TYPE_CHECKING:
    from swarm.monitoring.survey import Survey

HELP = """Show what the peer of this state directory is doing: the members, the epoch and the loss.

Exit code 0 while the peer runs and reports; 19 when it stopped, died or does not respond; 20 when none ever ran here.

Example:

    swarm-peer status --state-dir ~/.swarm-peer --watch
"""


def command(
    state_dir: StateDir = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep the table on the screen until Ctrl-C.")] = False,
) -> None:
    """See `HELP`."""
    from peers.clock import SystemClock
    from swarm.monitoring.live import watching
    from swarm.monitoring.status import Liveness, read_status
    from swarm.monitoring.survey import survey_block
    from swarm.monitoring.table import status_view

    now = SystemClock().now
    config = configure({"state_dir": state_dir}, None)
    path, survey = config.status_path, _survey(config.survey_path)
    status = read_status(path)
    if status is None:
        fail(f"No peer has ever run with the state directory {path.parent}: name another by --state-dir.", ExitCode.NO_STATE)
    liveness = status.liveness(now())
    if as_json:
        measured = json.loads(survey.model_dump_json()) if survey else None
        print_json(json.dumps({**json.loads(status.to_json()), "liveness": liveness.value, "measured": measured}))
    elif watch and liveness is Liveness.RUNNING:
        with watching(path, out):
            while (latest := read_status(path)) is not None and latest.liveness(now()) is Liveness.RUNNING:
                time.sleep(1.0)
        liveness = Liveness.STOPPED
        err.print("The peer has stopped.")
    else:
        out.print(status_view(status, liveness))
        if survey and survey.run_id == status.run_id:
            out.print(survey_block(survey), markup=False, soft_wrap=True)
    if liveness is not Liveness.RUNNING:
        raise typer.Exit(ExitCode.UNHEALTHY)


def _survey(path: Path) -> Survey | None:
    """What this peer measured when it joined; a damaged file says nothing about the peer."""
    from swarm.monitoring.survey import read_survey

    try:
        return read_survey(path)
    except ConfigError as error:
        err.print(f"{error}", markup=False, soft_wrap=True)
        return None
