"""The documents say what is so: paths exist, targets exist, and what is marked `<!-- tested -->` works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.architecture.documents import DOCUMENTS, ROOT, Block, make_targets, marked_blocks, paths

BIN = Path(sys.executable).parent


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_exist(name: str) -> None:
    assert [path for path in paths(name) if not (ROOT / path).exists()] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name: make_targets(name) for name in DOCUMENTS}
    assert {"demo", "test"} <= named["README.md"]
    assert {name: wanted - targets for name, wanted in named.items() if wanted - targets} == {}


def test_every_make_target_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    assert phony == set(re.findall(r"^([a-z][a-z-]*):.*## ", makefile, re.MULTILINE))


def test_ci_runs_make_test() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line and not re.match(r"#|set |cd ", line)] == ["make test"]


@pytest.mark.timeout(300)
def test_marked_blocks_work(tmp_path: Path) -> None:
    blocks = marked_blocks()
    assert any(block.document == "README.md" for block in blocks), "README.md has no block marked <!-- tested -->"
    failed = [f"{block.document}: {message}" for block in blocks if (message := _failure(block, tmp_path))]
    assert failed == []


def _failure(block: Block, folder: Path) -> str:
    if block.language == "toml":
        try:
            tomllib.loads(block.text)
        except tomllib.TOMLDecodeError as error:
            return f"{error} in\n{block.text}"
        return ""
    commands = {
        "console": ["bash", "-euo", "pipefail", "-c", "\n".join(re.findall(r"^\$ (.*)$", block.text, re.MULTILINE))],
        "python": [sys.executable, "-c", block.text],
    }
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder)}
    done = subprocess.run(commands[block.language], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"exit code {done.returncode} from\n{block.text}\n{done.stdout}{done.stderr}"
