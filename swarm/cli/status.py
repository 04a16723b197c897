"""`swarm-peer status`: what the peer of a state directory is doing."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from protocols.errors import ExitCode
from swarm.cli.common import AsJson, StateDir, configure, err, fail, out, print_json

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
    from swarm.monitoring.table import status_view

    now = SystemClock().now
    path = configure({"state_dir": state_dir}, None).status_path
    status = read_status(path)
    if status is None:
        fail(f"No peer has ever run with the state directory {path.parent}: name another by --state-dir.", ExitCode.NO_STATE)
    liveness = status.liveness(now())
    if as_json:
        print_json(json.dumps({**json.loads(status.to_json()), "liveness": liveness.value}))
    elif watch and liveness is Liveness.RUNNING:
        with watching(path, out):
            while (latest := read_status(path)) is not None and latest.liveness(now()) is Liveness.RUNNING:
                time.sleep(1.0)
        liveness = Liveness.STOPPED
        err.print("The peer has stopped.")
    else:
        out.print(status_view(status, liveness))
    if liveness is not Liveness.RUNNING:
        raise typer.Exit(ExitCode.UNHEALTHY)
