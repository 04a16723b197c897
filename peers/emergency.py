"""What must still be done when a process cannot wait for its event loop: end the libp2p daemon, delete the sockets.

Normally whoever made these things removes them, in order. A second Ctrl-C, or a trainer that does not come to its senses, ends the process
at once; `run` then does the same without waiting for anybody. After SIGKILL nobody can: the daemon ends by itself, and the next start
sweeps the directory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

_actions: dict[object, Callable[[], None]] = {}


def register(owner: object, action: Callable[[], None]) -> None:
    """Do `action` if the process has to end at once.

    Args:
        owner: who forgets it again once it has cleaned up itself.
        action: quick, and harmless when done twice.
    """
    _actions[owner] = action


def forget(owner: object) -> None:
    """Nothing of this owner is left to clean up. Idempotent."""
    _actions.pop(owner, None)


def run() -> None:
    """Do everything that is registered, newest first. From any thread or signal handler."""
    for owner, action in reversed(list(_actions.items())):
        with contextlib.suppress(OSError):
            action()
        forget(owner)
