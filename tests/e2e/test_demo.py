"""`swarm-peer demo` itself, with an easy goal and little time: everything it promises but the final loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(240)
def test_the_demonstration_keeps_its_promises(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SWARM_")}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "swarm.cli.main",
            "demo",
            "--json",
            "--seconds",
            "150",
            "--goal",
            "4.8",
            "--state-dir",
            str(tmp_path / "demo"),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["loss_end"] < 4.8 < report["loss_start"]
    assert (report["killed"], report["joined"], report["members"]) == (1, 1, 5)
    assert report["anchors_equal"]
    assert len(set(report["hashes"].values())) == 1
    assert len(report["hashes"]) == 5
    assert report["seconds"] < 150
    assert (Path(report["export"]) / "model.safetensors").is_file()
    assert report["sample"]
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["export"]
