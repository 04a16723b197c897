"""Taking part in a run from Python: what `swarm-peer coordinate` and `swarm-peer join` do, as two calls."""

from __future__ import annotations

from collections.abc import Callable

from peers.clock import SystemClock
from protocols.runspec import RunSpec
from swarm import environment
from swarm.config import PeerConfig
from swarm.runfile import open_run


def coordinate(spec: RunSpec, config: PeerConfig, *, train: bool = True, on_invite: Callable[[str], None]) -> None:
    """Make the run in `config.state_dir`, or go on with the one that is there, and take part until it ends or Ctrl-C.

    Args:
        spec: what all members share.
        config: this peer's own settings.
        train: compute gradients too, not only admit, reduce and serve.
        on_invite: gets the invite link, once, as soon as somebody can join.

    Raises:
        UserError: whatever the person at this machine can mend; one sentence each.
    """
    environment.prepare_libraries()
    signed, authority = open_run(config.state_dir, spec, now=SystemClock().now())
    from swarm.runtime import run_coordinator

    run_coordinator(config, signed, authority, train=train, invite_sink=on_invite)


def join(invite: str, config: PeerConfig) -> None:
    """Take part in a run as a volunteer until it ends or Ctrl-C.

    Args:
        invite: the link.
        config: this peer's own settings.

    Raises:
        UserError: whatever the person at this machine can mend; one sentence each.
    """
    environment.prepare_libraries()
    from swarm.runtime import run_volunteer

    run_volunteer(config, invite)
