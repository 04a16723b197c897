"""`swarm-peer join`: take part in a run as a volunteer."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocols.errors import ConfigError, InviteError
from swarm.cli.common import (
    Announce,
    DeviceName,
    Listen,
    OffloadOptimizer,
    OptimizerStates,
    RecomputeActivations,
    RoleName,
    Settings,
    StateDir,
    configure,
    err,
    out,
    start_logging,
)

if TYPE_CHECKING:
    from swarm.connection import Connection
    from swarm.training.trainer import Trainer

HELP = """Join a run and train along until Ctrl-C.

INVITE is the link somebody gave you, or @FILE to read it from a file. The first Ctrl-C leaves cleanly within five seconds; the same command
later goes on with the same identity.

While the first micro-batches are computed, for half a minute at most, it is measured how fast this machine computes, and with some members
what its link carries; what to expect of the run is shown and kept as measured.json. --no-probe leaves that out.

A device with little memory trains larger models of runs with the outer rule with --optimizer-states 8bit or --offload-optimizer, and of any
run with --recompute-activations; swarm-peer plan says what each saves.

Example:

    swarm-peer join swarm://... --device auto
"""

MAX_INVITE_CHARS = 16_384


def command(  # noqa: PLR0913  one for each flag
    invite: Annotated[str, typer.Argument(metavar="INVITE", help="Invite link, or @FILE.")],
    state_dir: StateDir = None,
    listen: Listen = None,
    announce: Announce = None,
    device: DeviceName = None,
    role: RoleName = None,
    optimizer_states: OptimizerStates = None,
    offload_optimizer: OffloadOptimizer = None,
    recompute_activations: RecomputeActivations = None,
    settings: Settings = None,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Do not measure this machine and its link while the first micro-batches are computed.")
    ] = False,
    attack: Annotated[
        str | None,
        typer.Option("--attack", hidden=True, help="For demonstrations and tests: attack the run in this way. The peer is banned for it."),
    ] = None,
) -> None:
    """See `HELP`."""
    flags: dict[str, object] = {"state_dir": state_dir, "listen": listen, "announce": announce, "device": device, "role": role}
    flags |= {"optimizer_states": optimizer_states, "offload_optimizer": offload_optimizer, "recompute_activations": recompute_activations}
    flags["probe"] = False if no_probe else None
    config = configure(flags, settings)
    link = read_link(invite)
    from peers.clock import SystemClock
    from protocols.invite import read_invite

    read_invite(link, SystemClock().now())  # a wrong one is told before the slow imports
    start_logging(config)
    from swarm.monitoring.live import watching
    from swarm.runtime import run_volunteer

    if attack:
        _check_attack(attack)
    with watching(config.status_path, out):
        run_volunteer(config, link, attack=attack, beside=_probe if config.probe else None)


def _probe(connection: Connection, trainer: Trainer) -> AbstractContextManager[None]:
    """Measure while the trainer runs, and show what was found above the table."""
    from swarm.surveying import surveying

    return surveying(connection, trainer, lambda text: out.print(text, markup=False, soft_wrap=True))


def _check_attack(attack: str) -> None:
    from peers.attacks.lone import LONE_ATTACKS

    if attack not in LONE_ATTACKS:
        raise ConfigError(f"--attack {attack} is not known: choose one of {', '.join(LONE_ATTACKS)}.")
    err.print(
        f"THIS PEER ATTACKS THE RUN ({attack}). The others will ban it, for good: use this in demonstrations and tests only.",
        style="bold red",
    )


def read_link(text: str) -> str:
    """The link itself, from the command line or from the file after "@".

    Raises:
        InviteError: the file cannot be read, is empty, or is far too long to be an invite.
    """
    if text.startswith("@"):
        path = Path(text[1:]).expanduser()
        try:
            with path.open(encoding="ascii") as file:
                text = file.read(MAX_INVITE_CHARS + 1)
        except OSError as error:
            raise InviteError(f"Cannot read the invite file {path}: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise InviteError(f"{path} is no invite: it holds something else than a link.") from None
    text = text.strip()
    if not text or len(text) > MAX_INVITE_CHARS:
        raise InviteError("This is no invite: paste the whole link, or give the file it is in as @FILE.")
    return text
