"""Every exit code has one number and one row in the manual that says what to do."""

from __future__ import annotations

import re
from pathlib import Path

from protocols import errors
from protocols.errors import ExitCode, UserError

MANUAL = Path(__file__).resolve().parents[2] / "docs" / "exit-codes.md"


def _rows() -> list[tuple[int, str, str, str]]:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (.+?) \| (.+?) \|$", MANUAL.read_text(), re.MULTILINE)
    return [(int(number), name, when, remedy) for number, name, when, remedy in rows]


def test_every_code_is_documented_once_and_in_order() -> None:
    assert [(number, name) for number, name, _, _ in _rows()] == sorted((code.value, name) for name, code in ExitCode.__members__.items())


def test_every_row_says_when_and_what_to_do() -> None:
    assert [name for _, name, when, remedy in _rows() if len(when) < 10 or len(remedy) < 10] == []


def test_no_number_has_two_names() -> None:
    assert len(ExitCode.__members__) == len(set(ExitCode))


def test_every_user_error_ends_with_a_code_of_its_own_kind() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UserError)]
    assert len(kinds) > 1
    assert [kind.__name__ for kind in kinds if kind.exit_code in {ExitCode.OK, ExitCode.INTERNAL}] == []
    assert len({kind.exit_code for kind in kinds}) == len(kinds)
