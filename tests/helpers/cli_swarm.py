"""A small swarm through the command line alone: real processes, real sockets, one machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LOOPBACK = ("--listen", "127.0.0.1:0", "--announce", "127.0.0.1", "--set", "libp2p_listen=/ip4/127.0.0.1/tcp/0")
TRAINER = (*LOOPBACK, "--device", "cpu", "--set", "threads=1", "--set", "checkpoint_every_epochs=1")


class Swarm:
    """Processes that a test starts; all are ended with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one peer in the background."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*_program(), *arguments, "--state-dir", str(self.folder / name)],
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run([*_program(), *arguments], capture_output=True, text=True, timeout=90, env=_environment(), check=False)

    def status(self, name: str) -> dict[str, Any]:
        """What `status --json` says; empty if the peer is not running."""
        done = self.command("status", "--json", "--state-dir", str(self.folder / name))
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def log(self, name: str) -> str:
        """Everything a peer said."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def found(self, run_file: str) -> Path:
        """A coordinator that helps; returns the file with the invite.

        Args:
            run_file: text of the run.
        """
        (self.folder / "run.toml").write_text(run_file, encoding="utf-8")
        invite = self.folder / "invite.txt"
        made = self.command("init", str(self.folder / "run.toml"), "--state-dir", str(self.folder / "coordinator"), "--json")
        assert made.returncode == 0, made.stderr
        self.start("coordinator", "coordinate", "--invite-file", str(invite), *LOOPBACK, "--set", "checkpoint_every_epochs=1")
        wait_until(invite.exists, 60, lambda: self.log("coordinator"))
        return invite

    def end(self) -> None:
        """Ask all to leave, and kill who does not."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _program() -> list[str]:
    return [sys.executable, "-m", "swarm.cli.main"]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SWARM_")}


def wait_until(what: Callable[[], object], limit_s: float, why: Callable[[], str]) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        if time.monotonic() > deadline:
            pytest.fail(why())
        time.sleep(0.5)
