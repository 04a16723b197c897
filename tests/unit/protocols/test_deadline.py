"""Deadlines from what was seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.deadline import AdaptiveDeadline


def after(*durations_s: float, **settings: float) -> float:
    deadline = AdaptiveDeadline(1.0, 60.0, **settings)  # type: ignore[arg-type]
    for duration_s in durations_s:
        deadline.observe(duration_s)
    return deadline.value_s()


def test_the_ceiling_holds_until_enough_is_known() -> None:
    assert after() == after(2.0) == after(2.0, 2.0) == 60
    assert after(2.0, 2.0, 2.0) == 4


def test_it_follows_median_and_spread() -> None:
    assert after(2.0, 3.0, 4.0) == 2 * 3 + 6 * 1
    assert after(2.0, 3.0, 4.0, spread_factor=0.0) == 6


def test_one_hiccup_changes_nothing() -> None:
    assert after(2.0, 2.0, 2.0, 2.0, 50.0) == after(2.0, 2.0, 2.0, 2.0)


@pytest.mark.parametrize(("duration_s", "value_s"), [(0.001, 1.0), (1000.0, 60.0)])
def test_it_keeps_its_bounds(duration_s: float, value_s: float) -> None:
    assert after(*[duration_s] * 5) == value_s


def test_it_forgets_what_is_long_past() -> None:
    deadline = AdaptiveDeadline(1.0, 60.0, window=4)
    for duration_s in [20.0] * 4 + [2.0] * 4:
        deadline.observe(duration_s)
    assert deadline.value_s() == 4


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_it_is_always_a_usable_deadline(durations_s: list[float]) -> None:
    assert 1 <= after(*durations_s) <= 60
