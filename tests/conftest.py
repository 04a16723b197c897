"""What holds for the whole suite: quick and local tests first, those with sockets and processes last; no test fails for being slow."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import settings

from swarm.environment import prepare_libraries

prepare_libraries()  # as every program of ours does first: gRPC's fork handlers can crash what starts a libp2p daemon
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a script starts in the background ignores Ctrl-C, and so would its children
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
