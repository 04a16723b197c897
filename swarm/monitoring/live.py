"""Keeps the table on a terminal while something else runs in the main thread; where there is no terminal, says a line now and then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live

from peers.clock import SystemClock
from protocols.errors import StateDirError
from swarm.monitoring.status import Liveness, PeerStatus, read_status
from swarm.monitoring.table import human_bytes, status_view

logger = logging.getLogger(__name__)

REFRESH_S = 1.0
PLAIN_EVERY_S = 10.0


@contextmanager
def watching(path: Path, console: Console) -> Iterator[None]:
    """Show the status file `path` until the context ends: a live table on a terminal, a log line every ten seconds elsewhere.

    One thread, owned by this context and joined when it ends.
    """
    done = threading.Event()
    started_at = SystemClock().now()
    watch = _show if console.is_terminal else _tell
    worker = threading.Thread(target=watch, args=(path, console, done, started_at), name="watch", daemon=True)
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join(timeout=2 * REFRESH_S)


def plain_line(status: PeerStatus) -> str:
    """One line for logs."""
    loss = "" if status.swarm_loss is None else f" loss={status.swarm_loss:.3f}"
    held_out = "" if status.eval_loss is None else f" held_out={status.eval_loss:.3f}"
    return (
        f"{status.state} epoch={status.epoch} members={len(status.members)} samples={status.swarm_samples}/{status.target_samples} "
        f"samples_per_s={status.samples_per_s:.1f} in={human_bytes(status.received_bytes)} "
        f"out={human_bytes(status.sent_bytes)}{loss}{held_out}"
    )


def fresh_status(path: Path, not_before: float) -> PeerStatus | None:
    """The status, unless there is none, it is damaged, or it is left over from before `not_before` (seconds since the Unix epoch)."""
    try:
        status = read_status(path)
    except StateDirError:
        return None
    return status if status is not None and status.updated_at >= not_before else None


def _show(path: Path, console: Console, done: threading.Event, started_at: float) -> None:
    with Live(console=console, refresh_per_second=2, transient=False) as live:
        while not done.wait(REFRESH_S):
            status = fresh_status(path, started_at)
            if status is not None:
                live.update(status_view(status, Liveness.RUNNING))


def _tell(path: Path, console: Console, done: threading.Event, started_at: float) -> None:
    del console
    while not done.wait(PLAIN_EVERY_S):
        status = fresh_status(path, started_at)
        if status is not None:
            logger.info("%s", plain_line(status))
