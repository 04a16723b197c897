"""Rules about our own files that no linter knows: sizes, and tests that can fail, quickly."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
"""Without the docstring. Aim for 50."""

_EXCUSES = {"skip", "skipif", "skipIf", "skipUnless", "SkipTest", "xfail", "importorskip", "expectedFailure"}


def _sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in sorted((ROOT / folder).rglob("*.py")) if not path.name.endswith("_pb2.py"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_files_are_short() -> None:
    lengths = {_name(path): len(path.read_text().splitlines()) for path in _sources("swarm", "peers", "protocols", "scripts", "tests")}
    assert lengths, "no sources found"
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    long = {
        f"{_name(path)}: {node.name}": _body_lines(node)
        for path in _sources("swarm", "peers", "protocols", "scripts")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _body_lines(node) > MAX_FUNCTION_LINES
    }
    assert long == {}


def test_unit_tests_do_not_sleep() -> None:
    sleepers = [_name(path) for path in _sources("tests/unit") if re.search(r"\bsleep\(", path.read_text())]
    assert sleepers == []


def test_no_test_is_excused() -> None:
    excused = [
        f"{_name(path)}:{node.lineno}"
        for path in _sources("tests")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in _EXCUSES and ast.unparse(node).startswith(("pytest.", "unittest.", "mark.")))
        or (isinstance(node, ast.ImportFrom) and node.module in {"pytest", "unittest"} and {name.name for name in node.names} & _EXCUSES)
    ]
    assert excused == []


def test_every_package_is_typed() -> None:
    assert [name for name in ("swarm", "peers", "protocols") if not (ROOT / name / "py.typed").exists()] == []
