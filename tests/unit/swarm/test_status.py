"""The status file: whole or not at all, and honest about a dead writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from protocols.errors import ExitCode, StateDirError
from swarm.monitoring import status as status_module
from swarm.monitoring.status import STALE_AFTER_S, STOPPED, Liveness, PeerStatus, read_status, write_status
from tests.unit.swarm.status_builder import a_member, a_status


def test_a_status_survives_the_file(tmp_path: Path) -> None:
    status = a_status(loss=None, last_error="the disk is full")
    write_status(tmp_path / "status.json", status)
    assert read_status(tmp_path / "status.json") == status
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_no_status_is_not_an_error(tmp_path: Path) -> None:
    assert read_status(tmp_path / "status.json") is None
    assert read_status(tmp_path / "nowhere" / "status.json") is None


def test_a_failed_write_leaves_the_old_status_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    write_status(path, a_status(epoch=1))

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StateDirError, match="No space left"):
        write_status(path, a_status(epoch=2))
    old = read_status(path)
    assert old is not None
    assert old.epoch == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"epoch": 7', '"epoch": "seven"', 1),
        lambda text: text.replace('"pid"', '"dip"'),
        lambda text: text.replace('"members": [', '"members": [3, '),
        lambda text: "\x00" * 10,
    ],
)
def test_a_damaged_file_is_one_clear_sentence(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    path = tmp_path / "status.json"
    path.write_text(damage(a_status().to_json()), encoding="utf-8")
    with pytest.raises(StateDirError, match="damaged") as caught:
        read_status(path)
    assert caught.value.exit_code is ExitCode.STATE_DIR
    assert "\n" not in str(caught.value)


def test_an_absurdly_long_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "_MAX_FILE_BYTES", 100)
    write_status(tmp_path / "status.json", a_status())
    with pytest.raises(StateDirError, match="far too long"):
        read_status(tmp_path / "status.json")


def test_liveness() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    now = 1_800_000_000.0
    assert a_status().liveness(now) is Liveness.RUNNING
    assert a_status().liveness(now + STALE_AFTER_S + 1) is Liveness.STALE
    assert a_status(pid=gone.pid).liveness(now) is Liveness.DEAD
    assert a_status(pid=0).liveness(now) is Liveness.DEAD
    assert a_status(state=STOPPED, pid=gone.pid).liveness(now + 1e6) is Liveness.STOPPED


def test_swarm_loss_weighs_members_by_speed() -> None:
    members = (a_member(loss=2.0, samples_per_s=3.0), a_member(loss=4.0, samples_per_s=1.0), a_member(loss=None, samples_per_s=100.0))
    assert a_status(members=members).swarm_loss == pytest.approx(2.5)
    assert a_status(members=(a_member(loss=None),), loss=None).swarm_loss is None
    assert a_status(members=(a_member(loss=2.0, samples_per_s=0.0),)).swarm_loss == pytest.approx(2.0)


def test_json_has_the_agreed_fields() -> None:
    raw = json.loads(a_status().to_json())
    agreed = {
        *("run_name", "run_id", "peer", "pid", "role", "state", "epoch", "samples", "samples_total", "samples_per_s", "sent_bytes"),
        *("received_bytes", "loss", "eval_loss", "state_hash", "target_samples", "swarm_samples", "addresses", "members", "updated_at"),
        *("last_error", "data_address", "hashes", "banned"),
    }
    assert set(raw) == agreed
    assert raw["pid"] == os.getpid()
    assert PeerStatus.from_json(json.dumps(raw)) == a_status()
