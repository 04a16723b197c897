"""The table of Moshpit's paper from our grid: what must be exact, and in which order the rules come."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from protocols.grid import Grid
from scripts.bench import moshpit_table
from scripts.bench.line_chart import Panel, svg
from scripts.bench.moshpit_rules import Rule, adaptive, all_reduce, fixed_grid, random_groups, rounds_of, rounds_until
from scripts.bench.moshpit_table import Setting, curves, gap_rows, measure, table_rows

RULES = {"adaptive": adaptive(4), "fixed grid": fixed_grid(Grid((4, 4))), "random groups": random_groups(4), "all-reduce": all_reduce}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("p", [0.0, 0.05])
def test_every_rule_comes_to_one_value(rule: Rule, p: float) -> None:
    course = rounds_of(rule, np.arange(16.0), p, np.random.default_rng(1), 50)
    assert len(course) == 51
    assert course[-1].var() < 1e-9
    assert abs(course[-1].mean() - 7.5) < (1e-9 if p == 0 else 2.0)


@pytest.mark.parametrize(("members", "sides", "rounds"), [(1024, (32, 32), 2), (512, (8, 8, 8), 3)])
def test_a_full_grid_is_exact_in_as_many_rounds_as_it_has_axes(members: int, sides: tuple[int, ...], rounds: int) -> None:
    setting = Setting(members, Grid(sides))
    for name in ("moshpit", "adaptive"):
        course = rounds_of(setting.rules[name], np.random.default_rng(2).standard_normal(members), 0.0, np.random.default_rng(3), rounds)
        assert np.ptp(course[rounds]) < 1e-14
        assert np.ptp(course[rounds - 1]) > 0.1


def test_rounds_are_counted_to_the_first_that_is_good_enough() -> None:
    course = [np.array([0.0, 2.0]), np.array([0.0, 1.0]), np.array([0.5, 0.5])]
    assert [rounds_until(course, target) for target in (2.0, 0.5, 1e-9, 0.0)] == [0, 1, 2, 2]


def test_adaptive_grid_is_not_worse_than_random_groups() -> None:
    rows = table_rows(seeds=1)
    assert len(rows) == 20
    assert {"n", "grid", "p", "moshpit", "random_groups", "adaptive", "all_reduce", "moshpit_1e4"} <= rows[0].keys()
    assert all(row["adaptive"] <= row["random_groups"] + 0.5 for row in rows)
    exact = {(row["n"], row["grid"]): row["moshpit"] for row in rows if row["p"] == 0}
    assert (exact[1024, "32x32"], exact[512, "8x8x8"]) == (2.0, 3.0)


def test_a_round_more_is_worth_it_where_cells_would_be_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moshpit_table, "GAPS", moshpit_table.GAPS[:3])
    assert all(row["filled"] < row["empty_cells"] for row in gap_rows(seeds=2))


def test_failures_cost_rounds() -> None:
    assert measure(adaptive(8), 64, 0.0, 2)["rounds"] == 2 < measure(adaptive(8), 64, 0.2, 2)["rounds"]


def test_command_prints_json_last_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moshpit_table, "SETTINGS", (Setting(64, Grid((8, 8))),))
    monkeypatch.setattr(moshpit_table, "GAPS", ())
    monkeypatch.setattr(moshpit_table, "CURVES", ((100, 0.01),))
    picture = tmp_path / "picture.svg"
    assert moshpit_table.main(["--json", "--seeds", "1", "--svg", str(picture)]) == 0
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert out["rows"][0]["adaptive"] == 2.0
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def test_chart_holds_every_line_and_escapes_names() -> None:
    text = svg([Panel("a < b", {"one": [1.0, 0.1], "two": [1.0, 0.001]})], "round", "variance")
    assert text.count("<polyline") == 2
    assert "a &lt; b" in text


def test_curves_have_a_point_for_each_round() -> None:
    (panel, *_) = curves(seeds=1)
    assert {len(line) for line in panel.lines.values()} == {moshpit_table.CURVE_ROUNDS + 1}
