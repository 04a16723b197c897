"""`swarm-peer coordinate`: start a run that `init` made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swarm.cli.common import (
    Announce,
    DeviceName,
    Listen,
    OffloadOptimizer,
    OptimizerStates,
    RecomputeActivations,
    Settings,
    StateDir,
    configure,
    err,
    out,
    start_logging,
)

HELP = """Start a run that `swarm-peer init` made, print an invite, and help along until Ctrl-C.

This peer holds the run's authority key: it admits volunteers, reduces and serves the state. It does not compute
unless --train is given. Once others have joined, the run goes on without it.

Example:

    swarm-peer coordinate --listen 0.0.0.0:7001 --announce train.example.org --invite-file invite.txt
"""


def command(  # noqa: PLR0913  one for each flag
    state_dir: StateDir = None,
    train: Annotated[bool, typer.Option("--train", help="Compute gradients too.")] = False,
    invite_file: Annotated[Path | None, typer.Option("--invite-file", help="Write the invite here instead of printing it.")] = None,
    listen: Listen = None,
    announce: Announce = None,
    device: DeviceName = None,
    optimizer_states: OptimizerStates = None,
    offload_optimizer: OffloadOptimizer = None,
    recompute_activations: RecomputeActivations = None,
    settings: Settings = None,
) -> None:
    """See `HELP`."""
    flags: dict[str, object] = {
        "state_dir": state_dir,
        "listen": listen,
        "announce": announce,
        "device": device,
        "role": "trainer" if train else "helper",
    }
    flags |= {"optimizer_states": optimizer_states, "offload_optimizer": offload_optimizer, "recompute_activations": recompute_activations}
    config = configure(flags, settings)
    from swarm.monitoring.live import watching
    from swarm.runfile import load_run, write_invite

    signed, authority = load_run(config.state_dir)
    start_logging(config)
    from swarm.runtime import run_coordinator

    def deliver(link: str) -> None:
        """Called once, as soon as somebody can join."""
        if invite_file is None:
            out.print(link, markup=False, soft_wrap=True)
        else:
            write_invite(invite_file, link)
            err.print(f"The invite is in {invite_file}; hand it to volunteers.", markup=False)

    with watching(config.status_path, err):
        run_coordinator(config, signed, authority, train=train, invite_sink=deliver)
