"""The demonstration's processes: started in groups of their own, asked first, forced then, and never left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from swarm.demo import processes
from swarm.demo.plan import Plan
from swarm.demo.processes import PeerProcess, run_command, stop_all
from swarm.demo.report import DemoError
from swarm.demo.show import Demo

POLITE = "import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit(0)); print('ready', flush=True); time.sleep(60)"
STUBBORN = (
    "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); print('ready', child.pid, flush=True); time.sleep(60)"
)


def _start(name: str, code: str, folder: Path) -> PeerProcess:
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    deadline = time.monotonic() + 30
    while "ready" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    return PeerProcess(name, folder / name, log, process)


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_the_polite_leave_and_the_stubborn_are_forced_with_their_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "INTERRUPT_WAIT_S", 2.0)
    monkeypatch.setattr(processes, "TERMINATE_WAIT_S", 0.2)
    polite, stubborn = _start("polite", POLITE, tmp_path), _start("stubborn", STUBBORN, tmp_path)
    child = int(stubborn.tail().split()[-1])
    assert stop_all([polite, stubborn]) == ["stubborn"]
    assert polite.exit_code() == 0
    assert stubborn.exit_code() == -signal.SIGKILL
    assert _gone(child)
    assert stop_all([polite, stubborn]) == [], "a second time there is nothing to do"


def test_killing_a_peer_kills_its_daemon_too(tmp_path: Path) -> None:
    victim = _start("victim", STUBBORN, tmp_path)
    child = int(victim.tail().split()[-1])
    victim.kill()
    assert victim.killed
    assert victim.exit_code() == -signal.SIGKILL
    assert _gone(child)


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    code, output = run_command(["--help"], tmp_path / "log", timeout_s=60)
    assert code == 0
    assert "Usage" in output
    code, _ = run_command(["--help"], tmp_path / "log", timeout_s=0.01)
    assert code == 124


def test_a_demonstration_whose_run_cannot_be_made_names_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "run.toml"
    broken.write_text("[run]\nname = 'x'\n", encoding="utf-8")
    monkeypatch.setattr("swarm.demo.show.RUN_FILE", broken)
    demo = Demo(Plan(60, 2.6), tmp_path / "demo", say=lambda text: None, show=lambda view: None)
    with pytest.raises(DemoError, match="exit code 10") as caught:
        demo.run()
    assert str(tmp_path / "demo" / "init.log") in str(caught.value)
    assert "model is missing" in str(caught.value)
    assert demo.peers == []
