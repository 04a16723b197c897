"""`plan --measured`: from what a member measured when it joined, and what is given beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from protocols.errors import ConfigError

if TYPE_CHECKING:
    from protocols.planning import Link, Machine, Members
    from swarm.monitoring.survey import Survey

_RTT_MS = 50.0
FILE_NAME = "measured.json"


def read_measured(path: Path) -> Survey:
    """The file, also where the state directory is named.

    Raises:
        ConfigError: there is none, or it is something else.
    """
    from swarm.monitoring.survey import read_survey

    path = path.expanduser()
    path = path / FILE_NAME if path.is_dir() else path
    found = read_survey(path)
    if found is None:
        raise ConfigError(f"{path} is not there: a member writes it some seconds after it has joined, unless it has --no-probe.")
    return found


def members_and_link(
    found: Survey | None, peers: int | None, clients: int | None, mbit: float | None, rtt_ms: float | None
) -> tuple[Members, Link]:
    """What is given counts; what is not comes from what was measured.

    Raises:
        BadParameter: something is neither given nor measured.
        ConfigError: numbers that do not fit each other.
    """
    from protocols.planning import Link, Members
    from protocols.planning.values import MBIT_BYTES
    from swarm.surveying import link_of, members_of

    if peers is not None:
        members = Members(peers=peers, clients=clients or 0)
    elif found is not None:
        members = members_of(found) if clients is None else replace(members_of(found), clients=clients)
    else:
        raise typer.BadParameter("say how many compute.", param_hint="--peers")
    known = link_of(found) if found is not None else None
    rtt_s = rtt_ms / 1e3 if rtt_ms is not None else known.rtt_s if known else _RTT_MS / 1e3
    if mbit is not None:
        return members, Link(bytes_per_s=mbit * MBIT_BYTES, rtt_s=rtt_s)
    if known is not None:
        return members, Link(bytes_per_s=known.bytes_per_s, rtt_s=rtt_s, share=known.share)
    raise typer.BadParameter("say how fast links are; it was not measured.", param_hint="--mbit")


def measured_machine_of(found: Survey) -> Machine:
    """The machine of the member that measured.

    Raises:
        ConfigError: it computed nothing.
    """
    from swarm.surveying import machine_of

    machine = machine_of(found)
    if machine is None:
        raise ConfigError("That member had computed nothing when it measured: give --device-tflops instead of --measured.")
    return machine
