"""Every reader of bytes from others keeps its promises on all inputs that once reached something new, and on some that are drawn.

`python -m scripts.fuzz` looks for more.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis.errors import NoSuchExample

from scripts.fuzzing import corpus
from scripts.fuzzing.strategies import inputs
from scripts.fuzzing.target import check
from scripts.fuzzing.targets import TARGETS

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = 12
READERS = {"decode", "from_bytes", "from_message", "from_envelope"}


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_shows_no_fault(name: str) -> None:
    target = TARGETS[name]
    faults = [(data, finding) for data in corpus.read(corpus.CORPUS / name) if (finding := check(target, data).finding) is not None]
    assert faults == []


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read(name: str) -> None:
    outcomes = [check(TARGETS[name], data) for data in TARGETS[name].seeds()]
    assert outcomes
    assert [seen.finding for seen in outcomes if seen.finding is not None] == []
    assert any(seen.refusal is None for seen in outcomes)


@pytest.mark.parametrize("name", TARGETS)
def test_drawn_inputs_show_no_fault(name: str) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(target))
    def draw(data: bytes) -> None:
        assert check(target, data).finding is None, data

    draw()


def test_the_corpus_is_small_and_belongs_to_targets() -> None:
    files = [path for path in corpus.CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} <= TARGETS.keys()
    assert sum(path.stat().st_size for path in files) < 2**20
    assert [path for path in files if path.name != corpus.file_name(path.read_bytes())] == []


def _readers() -> set[str]:
    """Classes with a class method that reads bytes, wherever they are."""
    found = set()
    for path in [*(ROOT / "protocols").rglob("*.py"), *(ROOT / "peers").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())) if "cls, " in path.read_text() else ():
            methods = [method for method in node.body if isinstance(method, ast.FunctionDef)] if isinstance(node, ast.ClassDef) else []
            if any(method.name in READERS and method.decorator_list for method in methods):
                found.add(node.name)  # type: ignore[attr-defined]
    return found


def test_every_message_with_a_reader_is_fuzzed() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "scripts" / "fuzzing" / "targets").glob("*.py"))
    readers = _readers()
    assert "Join" in readers
    assert {name for name in readers if name not in sources} == set()


def test_the_strategy_reaches_valid_and_invalid_inputs() -> None:
    target = TARGETS["closing"]
    quick = settings(max_examples=300, database=None, derandomize=True, phases=[Phase.generate])
    try:
        accepted = find(inputs(target), lambda data: check(target, data).refusal is None, settings=quick)
        refused = find(inputs(target), lambda data: check(target, data).refusal is not None, settings=quick)
    except NoSuchExample as error:  # pragma: no cover
        raise AssertionError from error
    assert accepted != refused
