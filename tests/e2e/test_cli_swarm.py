"""A small swarm through the command line alone: real processes, real sockets, one machine."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from protocols.errors import ExitCode
from tests.helpers.cli_swarm import TRAINER, Swarm, wait_until

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


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """A coordinator that helps and one volunteer that trains, past their second epoch."""
    running = Swarm(tmp_path_factory.mktemp("swarm"))
    try:
        invite = running.found(RUN_FILE)
        running.start("alice", "join", f"@{invite}", *TRAINER)
        wait_until(lambda: running.status("alice").get("epoch", 0) >= 2, 90, lambda: running.log("alice"))
        yield running
    finally:
        running.end()


def test_members_see_each_other(swarm: Swarm) -> None:
    wait_until(lambda: len(swarm.status("alice").get("members", [])) == 2, 20, lambda: str(swarm.status("alice")))
    status = swarm.status("alice")
    assert status["state_hash"]
    assert status["samples_total"] > 0
    assert {member["role"] for member in status["members"]} == {"trainer", "helper"}


def test_a_member_that_joins_is_told_what_to_expect(swarm: Swarm) -> None:
    measured = swarm.folder / "alice" / "measured.json"
    wait_until(measured.exists, 60, lambda: swarm.log("alice"))
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
    wait_until(lambda: swarm.status("bob").get("samples_total", 0) > 0, 60, lambda: swarm.log("bob"))
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
    wait_until(lambda: any((swarm.folder / "alice" / "checkpoints").glob("epoch-*")), 30, lambda: swarm.log("alice"))
    target = swarm.folder / "export"
    done = swarm.command("export", str(target), "--json", "--state-dir", str(swarm.folder / "alice"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epoch"] >= 1
    first = swarm.command("generate", str(target), "--bytes", "50", "--json")
    again = swarm.command("generate", str(target), "--bytes", "50", "--json")
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout, "the same seed writes the same text"
    assert json.loads(first.stdout)["text"]
