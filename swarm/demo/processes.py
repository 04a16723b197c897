"""The demonstration's peers as operating-system processes, each with a log of its own; whatever was started here is ended here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peers import emergency
from protocols.errors import StateDirError
from swarm import environment
from swarm.monitoring.status import PeerStatus, read_status

INTERRUPT_WAIT_S = 10.0
"""A peer leaves within 5 s of Ctrl-C; a busy machine gets twice that before it is forced."""

TERMINATE_WAIT_S = 3.0


@dataclass(slots=True)
class PeerProcess:
    """One running `swarm-peer`.

    Args:
        name: for people.
        state_dir: its own.
        log: file with everything it said.
        process: the process, leader of a session of its own.
        killed: it was killed on purpose.
        stopped: `stop_all` is done with it.
    """

    name: str
    state_dir: Path
    log: Path
    process: subprocess.Popen[bytes]
    killed: bool = False
    stopped: bool = False

    def status(self) -> PeerStatus | None:
        """Its newest report, or None before the first."""
        try:
            status = read_status(self.state_dir / "status.json")
        except StateDirError:
            return None
        return status if status is not None and status.pid == self.process.pid else None

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.poll()

    def tail(self, lines: int = 12) -> str:
        """The end of its log."""
        try:
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"

    def kill(self) -> None:
        """SIGKILL for the whole group, as if the machine had lost its power."""
        self.killed = self.stopped = True
        _end_group(self.process)


def start_peer(name: str, arguments: Sequence[str], folder: Path, *, threads: int) -> PeerProcess:
    """Start `swarm-peer <arguments> --state-dir <folder>/<name>` with its output in `<folder>/<name>.log`."""
    state_dir, log = folder / name, folder / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "swarm.cli.main", *arguments, "--state-dir", str(state_dir)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment.for_children({"OMP_NUM_THREADS": str(threads)}),
            start_new_session=True,
        )
    emergency.register(process, lambda: _signal_group(process, signal.SIGKILL))
    return PeerProcess(name, state_dir, log, process)


def run_command(arguments: Sequence[str], log: Path, *, timeout_s: float) -> tuple[int, str]:
    """Run one `swarm-peer` command to its end.

    Returns:
        (exit code, standard output); standard error goes to `log`. The exit code is 124 when it took too long and was killed.
    """
    with (
        log.open("ab") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "swarm.cli.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment.for_children(),
            start_new_session=True,
        ) as process,
    ):
        emergency.register(process, lambda: _signal_group(process, signal.SIGKILL))
        try:
            raw, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return 124, ""
        finally:
            if process.returncode is None:
                _signal_group(process, signal.SIGKILL)
            emergency.forget(process)
    return process.returncode, raw.decode(errors="replace")


def stop_all(peers: Sequence[PeerProcess]) -> list[str]:
    """Ask everybody to leave at once (SIGINT), and force whoever does not.

    Returns:
        Names of peers that had to be forced; empty when everybody left by itself.
    """
    asked = [peer for peer in peers if not peer.stopped and peer.exit_code() is None]
    for peer in asked:
        peer.process.send_signal(signal.SIGINT)
    _wait(asked, INTERRUPT_WAIT_S)
    forced = [peer for peer in asked if peer.exit_code() is None]
    for peer in forced:
        peer.process.send_signal(signal.SIGTERM)
    _wait(forced, TERMINATE_WAIT_S)
    for peer in peers:
        if not peer.stopped:
            _end_group(peer.process)
        peer.stopped = True
    return [peer.name for peer in forced]


def _wait(peers: Sequence[PeerProcess], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while any(peer.exit_code() is None for peer in peers) and time.monotonic() < deadline:
        time.sleep(0.05)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill whoever is left of a group that we created, and wait for its leader."""
    _signal_group(process, signal.SIGKILL)
    process.wait()
    emergency.forget(process)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a group that we created; fine if nobody is left in it."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
