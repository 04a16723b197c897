"""The table of behaviours names tests that exist, and every test of this folder is in it or needs no row."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
WITHOUT_A_ROW = {
    "test_fault_pairs.py::test_what_a_member_delivered_before_it_was_lost_counts",
    "test_readme.py::test_every_test_that_is_named_exists",
    "test_readme.py::test_every_test_here_is_named",
}
"""Ours alone: no suite of hivemind asks for it."""


def named() -> set[str]:
    """The tests that the tables name."""
    return set(re.findall(r"`([\w/]+\.py::\w+)`", (HERE / "README.md").read_text()))


def defined_in(path: Path) -> set[str]:
    return set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))


def test_every_test_that_is_named_exists() -> None:
    missing = []
    for name in sorted(named()):
        file, test = name.split("::")
        path = ROOT / file if "/" in file else HERE / file
        if not path.exists() or test not in defined_in(path):
            missing.append(name)
    assert missing == []


def test_every_test_here_is_named() -> None:
    ours = {f"{path.name}::{test}" for path in HERE.glob("test_*.py") for test in defined_in(path)}
    assert ours - named() == WITHOUT_A_ROW
