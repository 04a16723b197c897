"""What holds for the whole suite: quick and local tests first, those with sockets and processes last; no test fails for being slow."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_ORDER = ("architecture", "unit", "contracts", "integration", "e2e")
_TESTS = Path(__file__).resolve().parent


def _rank(item: pytest.Item) -> int:
    folder = item.path.relative_to(_TESTS).parts[0] if item.path.is_relative_to(_TESTS) else ""
    return _ORDER.index(folder) if folder in _ORDER else len(_ORDER)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the order within a folder and put the folders in order."""
    items.sort(key=_rank)
