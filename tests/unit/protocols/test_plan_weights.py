"""What members of a plan count for, whatever they claim."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocols.messages import Plan
from tests.helpers.trust_values import signed_plan


def plan_of(*claims: float, **changes: object) -> Plan:
    plan = signed_plan(range(len(claims)))
    members = tuple(replace(member, join=replace(member.join, weight=claim)) for member, claim in zip(plan.members, claims, strict=True))
    return replace(plan, members=members, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("claims", "cap", "weights"),
    [
        ((1.0, 2.0, 1e9), 3.0, (1.0, 2.0, 6.0)),
        ((5.0, 1e9), 2.0, (5.0, 10.0)),  # the lower median: a liar does not lift its own cap
        ((1e9,), 1.0, (1e9,)),
        ((0.0, 1.0, 8.0), 4.0, (0.0, 1.0, 4.0)),  # who brings nothing does not lower the median
        ((1.0, 2.0, 1e9), 0.0, (1.0, 2.0, 1e9)),
    ],
)
def test_nobody_counts_for_more_than_the_cap(claims: tuple[float, ...], cap: float, weights: tuple[float, ...]) -> None:
    assert plan_of(*claims, weight_cap=cap).weights == weights


def test_newcomers_count_nothing_and_their_claims_do_not_move_the_cap() -> None:
    assert plan_of(1.0, 1e9, 1e9, 8.0, weight_cap=4.0, probation=frozenset({1, 2})).weights == (1.0, 0.0, 0.0, 4.0)


def test_what_comes_from_an_earlier_round_was_limited_there() -> None:
    assert plan_of(1.0, 100.0, weight_cap=2.0, round_index=1).weights == (1.0, 100.0)
