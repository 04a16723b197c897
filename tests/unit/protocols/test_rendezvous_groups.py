"""Group formation among members whose views of earlier failures differ, whatever overtakes what: one group commits at most, and all come.

A leader knows of every failure under itself; of the others' each member has seen some. 600 seeds of each kind.
"""

from __future__ import annotations

import random

import pytest

from tests.helpers.rendezvous_table import Table

Views = dict[int, dict[int, int]]
SEEDS = range(600)
END_S = 100.0


def honest_views(dice: random.Random, count: int) -> Views:
    truth = [dice.choice([0, 0, 1, 2]) for _ in range(count)]
    return {me: {other: truth[me] if other == me else dice.randint(0, truth[other]) for other in range(count)} for me in range(count)}


def any_views(dice: random.Random, count: int) -> Views:
    return {me: {other: dice.randint(0, 2) for other in range(count)} for me in range(count)}


def table_of(seed: int, views: Views, most_delay_s: float) -> Table:
    return Table(len(views), seed, most_delay_s, views)


@pytest.mark.parametrize(("spread_s", "most_delay_s"), [(0.0, 0.05), (0.3, 0.2), (3.0, 0.2)])
def test_all_who_come_in_time_end_in_one_group(spread_s: float, most_delay_s: float) -> None:
    for seed in SEEDS:
        dice = random.Random(seed)
        count = dice.randint(2, 8)
        table = table_of(seed, honest_views(dice, count), most_delay_s)
        for number in range(count):
            table.ready(number, dice.random() * spread_s)
        table.run(END_S)
        (leader,) = table.groups_that_commit()
        assert {seat.plan for seat in table.seats.values()} == {leader}, seed


@pytest.mark.parametrize(("spread_s", "most_delay_s"), [(3.0, 0.3), (8.0, 2.0), (20.0, 1.0)])
def test_two_groups_never_both_commit(spread_s: float, most_delay_s: float) -> None:
    """Also where some stay away, nobody knows what failed, and messages take as long as a leader waits."""
    for seed in SEEDS:
        dice = random.Random(seed)
        count = dice.randint(2, 8)
        table = table_of(seed, any_views(dice, count), most_delay_s)
        for number in dice.sample(range(count), dice.randint((count + 1) // 2, count)):
            table.ready(number, dice.random() * spread_s)
        table.run(END_S)
        assert len(table.groups_that_commit()) <= 1, seed
        assert all(seat.over or seat.asking is None for seat in table.seats.values()), seed


@pytest.mark.parametrize("seed", [166, 247])
def test_members_of_the_plan_alone_would_not_keep_two_groups_from_committing(seed: int) -> None:
    """Why a plan names the members that were counted: with joins that have been withdrawn, both plans look like a majority's."""
    dice = random.Random(seed)
    count = dice.randint(4, 8)
    table = table_of(seed, any_views(dice, count), 2.0)
    for number in range(count):
        table.ready(number, dice.random() * 4.0)
    table.run(END_S)
    takers = [seat.plan for seat in table.seats.values()]
    assert sum(2 * takers.count(leader) > len(plan.joins) for leader, plan in table.plans.items()) == 2
    assert len(table.groups_that_commit()) < 2
