"""A small swarm through the command line alone: real processes, real sockets, one machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from protocols.errors import ExitCode

LOOPBACK = ("--listen", "127.0.0.1:0", "--announce", "127.0.0.1", "--set", "libp2p_listen=/ip4/127.0.0.1/tcp/0")
TRAINER = (*LOOPBACK, "--device", "cpu", "--set", "threads=1", "--set", "checkpoint_every_epochs=1")
RUN_FILE = """
[run]
name = "e2e"
[model]
preset = "tiny"
[data]
source = "stdlib"
sequence_length = 64
[optimizer]
learning_rate = 0.004
target_batch_samples = 32
"""


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


def _program() -> list[str]:
    return [sys.executable, "-m", "swarm.cli.main"]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SWARM_")}


def _wait(what: Callable[[], object], limit_s: float, why: Callable[[], str]) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        if time.monotonic() > deadline:
            pytest.fail(why())
        time.sleep(0.5)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """A coordinator that helps and one volunteer that trains, past their second epoch."""
    running = Swarm(tmp_path_factory.mktemp("swarm"))
    (running.folder / "run.toml").write_text(RUN_FILE, encoding="utf-8")
    invite = running.folder / "invite.txt"
    try:
        made = running.command("init", str(running.folder / "run.toml"), "--state-dir", str(running.folder / "coordinator"), "--json")
        assert made.returncode == 0, made.stderr
        running.start("coordinator", "coordinate", "--invite-file", str(invite), *LOOPBACK, "--set", "checkpoint_every_epochs=1")
        _wait(invite.exists, 60, lambda: running.log("coordinator"))
        running.start("alice", "join", f"@{invite}", *TRAINER)
        _wait(lambda: running.status("alice").get("epoch", 0) >= 2, 90, lambda: running.log("alice"))
        yield running
    finally:
        for process in running.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in running.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def test_members_see_each_other(swarm: Swarm) -> None:
    _wait(lambda: len(swarm.status("alice").get("members", [])) == 2, 20, lambda: str(swarm.status("alice")))
    status = swarm.status("alice")
    assert status["state_hash"]
    assert status["samples_total"] > 0
    assert {member["role"] for member in status["members"]} == {"trainer", "helper"}


def test_a_member_that_joins_is_told_what_to_expect(swarm: Swarm) -> None:
    measured = swarm.folder / "alice" / "measured.json"
    _wait(measured.exists, 60, lambda: swarm.log("alice"))
    found = json.loads(measured.read_text(encoding="utf-8"))
    assert found["samples_per_s"] > 0
    assert found["peers"] == 2
    assert found["helpers"] == 1
    assert min(found["up_bytes_per_s"], found["down_bytes_per_s"]) > 0, found["link_note"]
    assert found["expected"]["epoch_s"] > 0
    assert "Your machine in the run e2e:" in swarm.log("alice")
    assert swarm.status("alice")["measured"] == found
    planned = swarm.command("plan", str(swarm.folder / "run.toml"), "--measured", str(measured), "--json")
    assert json.loads(planned.stdout)["given"]["prediction"]["epoch_s"] == pytest.approx(found["expected"]["epoch_s"])


def test_doctor_finds_everybody_healthy(swarm: Swarm) -> None:
    for name in ("coordinator", "alice"):
        done = swarm.command("doctor", "--json", "--state-dir", str(swarm.folder / name))
        report = json.loads(done.stdout)
        assert done.returncode == 0, report
        assert report["healthy"]


def test_a_second_peer_with_the_same_identity_is_refused(swarm: Swarm) -> None:
    done = swarm.command("join", f"@{swarm.folder / 'invite.txt'}", *TRAINER, "--state-dir", str(swarm.folder / "alice"))
    assert done.returncode == ExitCode.IDENTITY_IN_USE
    assert "Traceback" not in done.stderr
    assert swarm.status("alice")["liveness"] == "running", "the first one goes on"


def test_a_tampered_invite_is_refused(swarm: Swarm) -> None:
    link = (swarm.folder / "invite.txt").read_text(encoding="ascii").strip()
    middle = len(link) // 2
    tampered = link[:middle] + ("A" if link[middle] != "A" else "B") + link[middle + 1 :]
    done = swarm.command("join", tampered, *TRAINER, "--state-dir", str(swarm.folder / "mallory"))
    assert done.returncode == ExitCode.INVITE
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_expired_invite_is_refused(swarm: Swarm) -> None:
    made = swarm.command("invite", "--expires", "1s", "--state-dir", str(swarm.folder / "coordinator"))
    assert made.returncode == 0, made.stderr
    time.sleep(5)  # a second of validity and three of forgiveness for clocks
    done = swarm.command("join", made.stdout.strip(), *TRAINER, "--state-dir", str(swarm.folder / "late"))
    assert done.returncode == ExitCode.INVITE
    assert "expired" in done.stderr


def test_a_joiner_takes_part_and_leaves_within_five_seconds(swarm: Swarm) -> None:
    bob = swarm.start("bob", "join", f"@{swarm.folder / 'invite.txt'}", *TRAINER)
    _wait(lambda: swarm.status("bob").get("samples_total", 0) > 0, 60, lambda: swarm.log("bob"))
    children = [child.pid for child in psutil.Process(bob.pid).children(recursive=True)]
    asked = time.monotonic()
    bob.send_signal(signal.SIGINT)
    code = bob.wait(15)
    assert time.monotonic() - asked < 5.0
    assert code in (0, ExitCode.INTERRUPTED), swarm.log("bob")
    assert not [pid for pid in children if psutil.pid_exists(pid)], "the libp2p daemon must be gone too"
    assert swarm.command("status", "--state-dir", str(swarm.folder / "bob")).returncode == ExitCode.UNHEALTHY
    assert not [path for path in (swarm.folder / "bob").rglob("*") if path.name.startswith(".") or path.is_socket()]


def test_a_checkpoint_is_exported_and_writes(swarm: Swarm) -> None:
    _wait(lambda: any((swarm.folder / "alice" / "checkpoints").glob("epoch-*")), 30, lambda: swarm.log("alice"))
    target = swarm.folder / "export"
    done = swarm.command("export", str(target), "--json", "--state-dir", str(swarm.folder / "alice"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epoch"] >= 1
    first = swarm.command("generate", str(target), "--bytes", "50", "--json")
    again = swarm.command("generate", str(target), "--bytes", "50", "--json")
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout, "the same seed writes the same text"
    assert json.loads(first.stdout)["text"]
