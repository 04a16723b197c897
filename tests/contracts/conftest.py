"""What the contract suites of one session share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.libp2p_pool import POOL


@pytest.fixture(scope="session", autouse=True)
def _libp2p_pool() -> Iterator[None]:
    """End the daemons of the shared libp2p nodes with the session."""
    yield
    POOL.close()
