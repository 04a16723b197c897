"""`swarm-peer demo` itself, with an easy goal and little time: everything it promises but the final loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def _demonstrate(folder: Path, *arguments: str, limit_s: float) -> dict[str, Any]:
    """Run the demonstration; its report.

    Raises:
        AssertionError: it was no success.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SWARM_")}
    program = [sys.executable, "-m", "swarm.cli.main", "demo", "--json", "--goal", "4.8", "--state-dir", str(folder), *arguments]
    done = subprocess.run(program, capture_output=True, text=True, timeout=limit_s, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["loss_end"] < 4.8 < report["loss_start"]
    assert report["anchors_equal"]
    assert len(set(report["hashes"].values())) == 1
    assert len(report["hashes"]) == report["members"]
    return report


@pytest.mark.timeout(240)
def test_the_demonstration_keeps_its_promises(tmp_path: Path) -> None:
    report = _demonstrate(tmp_path / "demo", "--seconds", "150", limit_s=200)
    assert (report["killed"], report["joined"], report["members"]) == (1, 1, 5)
    assert (report["attackers_banned"], report["banned"]) == (0, [])
    assert report["seconds"] < 150
    assert (Path(report["export"]) / "model.safetensors").is_file()
    assert report["sample"]
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["export"]


@pytest.mark.timeout(240)
def test_two_of_six_volunteers_attack_and_are_banned_for_what_they_did(tmp_path: Path) -> None:
    report = _demonstrate(tmp_path / "demo", "--seconds", "150", "--attackers", "2", limit_s=200)
    assert (report["killed"], report["joined"], report["members"]) == (1, 1, 5)
    assert report["attackers_banned"] == 2
    caught = {(member["name"], member["attack"], member["reason"]) for member in report["banned"]}
    assert caught == {
        ("volunteer-5", "sign_flip", "its contribution is not what its samples give"),
        ("volunteer-6", "lying_reducer", "it returned a false mean of its blocks"),
    }
    assert all(member["epoch"] >= 1 for member in report["banned"])
