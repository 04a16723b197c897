"""The tools that read the whole tree: formatter, linter, type checker, import contracts, protobuf generator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def _passes(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))}\n\n{done.stdout}{done.stderr}", pytrace=False)


def test_code_is_formatted() -> None:
    _passes(BIN / "ruff", "format", "--check", ".")


def test_code_is_linted() -> None:
    _passes(BIN / "ruff", "check", ".")


def test_imports_keep_the_contracts() -> None:
    _passes(BIN / "lint-imports", "--no-logo")


@pytest.mark.timeout(300)
def test_types_are_right() -> None:
    _passes(BIN / "mypy")


def test_generated_protobuf_code_is_current() -> None:
    _passes(sys.executable, "-m", "scripts.generate_protos", "--check")
