"""`swarm-peer invite`: another invite to a run whose authority we hold."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from protocols.errors import ConfigError, ExitCode, StateDirError
from swarm.cli.common import AsJson, StateDir, configure, out, print_json

HELP = """Print a new invite to the run of this state directory; its coordinator must be running.

In a private run an invite serves --uses joiners until it expires. In an open run whoever holds it can join until it expires.

Example:

    swarm-peer invite --expires 24h --uses 10
"""

MAX_LIFETIME_S = 10 * 365 * 86_400.0


def command(
    expires: Annotated[str, typer.Option("--expires", metavar="TIME", help="How long it can be used: 30m, 24h, 7d.")] = "7d",
    uses: Annotated[int, typer.Option("--uses", min=1, max=1_000_000, help="How many peers may join by it.")] = 100,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """See `HELP`."""
    config = configure({"state_dir": state_dir}, None)
    lifetime_s = parse_duration_s(expires)
    from peers.clock import SystemClock
    from swarm.monitoring.status import read_status
    from swarm.runfile import load_run, new_invite

    signed, authority = load_run(config.state_dir)
    status = read_status(config.status_path)
    if status is None or not status.addresses:
        raise StateDirError(
            "Nobody can be reached yet: start swarm-peer coordinate first, an invite carries its address.", ExitCode.NO_STATE
        )
    max_uses = 0 if signed.spec.admission.mode == "open" else uses
    link = new_invite(signed, authority, status.addresses, now=SystemClock().now(), lifetime_s=lifetime_s, max_uses=max_uses)
    if as_json:
        print_json(json.dumps({"invite": link, "run_id": str(signed.run_id), "expires_in_s": lifetime_s, "uses": max_uses}))
    else:
        out.print(link, markup=False, soft_wrap=True)


def parse_duration_s(text: str) -> float:
    """Seconds of "90s", "30m", "24h" or "7d".

    Raises:
        ConfigError: another form, or longer than ten years.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isascii() or not number.isdigit() or not 0 < int(number) * units[unit] <= MAX_LIFETIME_S:
        raise ConfigError(f"--expires cannot be {text!r}: write a number and s, m, h or d, for example 24h.")
    return int(number) * units[unit]
