"""A member behind a NAT trains: it reaches nothing but the libp2p port of the others, and nobody reaches it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.nat import nat
from tests.helpers.nat_scene import OUTSIDE

LIBP2P_PORT = 4001
SWARM = (sys.executable, "-m", "swarm.cli.main")
COMMON = ("--set", "log_level=debug", "--set", "checkpoint_every_epochs=1")
RUN_FILE = """
[run]
name = "nat"
[model]
preset = "tiny"
[data]
source = "stdlib"
sequence_length = 64
[optimizer]
learning_rate = 0.004
target_batch_samples = 32
"""


def wait_for(what: Callable[[], object], limit_s: float, why: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + limit_s
    while not what():
        if time.monotonic() > deadline_s:
            pytest.fail(why())
        time.sleep(0.5)


def status(folder: Path) -> dict[str, Any]:
    """What a peer writes about itself; empty before the first time."""
    file = folder / "status.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def test_a_member_behind_a_nat_trains_as_client_only(tmp_path: Path) -> None:
    """Only the hidden member computes: every epoch that the other one closes has counted its contribution.

    Then the other one dies and comes back with nothing: the hidden member, which nobody can dial, is all that holds the state.
    """
    coordinator, hidden, invite = tmp_path / "coordinator", tmp_path / "hidden", tmp_path / "invite.txt"
    (tmp_path / "run.toml").write_text(RUN_FILE, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SWARM_")}
    subprocess.run([*SWARM, "init", str(tmp_path / "run.toml"), "--state-dir", str(coordinator)], check=True, env=environment)

    def everything_said() -> str:
        return "\n".join(file.read_text(errors="replace")[-10_000:] for file in tmp_path.glob("*.log"))

    def epochs(folder: Path) -> dict[int, str]:
        return {entry["epoch"]: entry["state_hash"] for entry in status(folder).get("hashes", [])}

    with nat(LIBP2P_PORT) as scene:
        listen = ("--listen", f"{OUTSIDE}:7400", "--announce", OUTSIDE, "--set", f"libp2p_listen=/ip4/{OUTSIDE}/tcp/{LIBP2P_PORT}")
        coordinating = ("coordinate", "--invite-file", str(invite), "--state-dir", str(coordinator))
        dying = scene.run("outside", tmp_path / "coordinator.log", *SWARM, *coordinating, *listen, *COMMON)
        wait_for(invite.exists, 30, everything_said)
        joining = ("join", f"@{invite}", "--role", "client", "--state-dir", str(hidden), "--device", "cpu", "--set", "threads=1")
        scene.run("inside", tmp_path / "hidden.log", *SWARM, *joining, *COMMON)
        # The hidden one may have begun alone, before the other had a state: epochs count that both have closed.
        wait_for(lambda: len(epochs(hidden).keys() & epochs(coordinator).keys()) >= 2, 40, everything_said)
        ours, theirs = epochs(hidden), epochs(coordinator)
        scene.kill(dying)
        lost_epoch = status(coordinator)["epoch"]
        shutil.rmtree(coordinator / "checkpoints")
        (coordinator / "status.json").unlink()
        scene.run("outside", tmp_path / "coordinator-again.log", *SWARM, *coordinating, *listen, *COMMON)
        wait_for(lambda: status(coordinator).get("epoch", 0) > lost_epoch, 40, everything_said)
        router = scene.counters()

    common = ours.keys() & theirs.keys()
    assert len(common) >= 2
    assert all(ours[epoch] == theirs[epoch] for epoch in common), "bit for bit the same state"
    assert status(hidden)["data_address"] == ""
    assert status(hidden)["addresses"] == []
    assert "direct=False" in (tmp_path / "hidden.log").read_text(encoding="utf-8")
    assert router["dropped"] > 0, "a direct connection was tried in vain"
    assert router["let_through"] > 0
