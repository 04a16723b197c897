"""The container image's health check, on files of our own making."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def healthcheck(tmp_path: Path) -> ModuleType:
    """The program as a module that looks at a file of ours."""
    spec = importlib.util.spec_from_file_location("healthcheck", ROOT / "docker" / "healthcheck.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.STATUS_FILE = tmp_path / "status.json"  # type: ignore[attr-defined]
    return module


def _aged(file: Path, age_s: float) -> None:
    file.touch()
    then_s = time.time() - age_s
    os.utime(file, (then_s, then_s))


def test_a_fresh_status_is_healthy(healthcheck: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    _aged(healthcheck.STATUS_FILE, 2.0)
    assert healthcheck.main() == 0
    assert capsys.readouterr().err == ""


def test_a_status_that_is_no_longer_renewed_is_not(healthcheck: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    _aged(healthcheck.STATUS_FILE, healthcheck.MAX_AGE_S + 5)
    assert healthcheck.main() == 1
    assert "no longer renews it" in capsys.readouterr().err


def test_no_status_at_all_is_not(healthcheck: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert healthcheck.main() == 1
    assert "has not started" in capsys.readouterr().err
