"""Rounds until everybody holds the mean: Moshpit's table (arXiv 2103.03239 §4.1) from our grid, with our adaptive grid beside it.

    python -m scripts.bench.moshpit_table --json

Every member holds one number from N(0, 1). In each round each member fails with probability p. Counted are the rounds until the variance
across members is below 1e-9 (and 1e-4), at most 50, as the mean over seeds. `scripts.bench.moshpit_rules` says what each column does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from protocols.grid import Grid, grid_for
from scripts.bench.line_chart import Panel, svg
from scripts.bench.moshpit_rules import Rule, adaptive, all_reduce, fixed_grid, random_groups, rounds_of, rounds_until

MAX_ROUNDS = 50
FAILURES = (0.0, 0.001, 0.005, 0.01)
TARGET, COARSE_TARGET = 1e-9, 1e-4
CURVE_ROUNDS = 10
WIDTH = 110
"""Of the tables, in characters."""
CURVES = ((1024, 0.0), (1024, 0.005), (768, 0.005))
_FLOOR = 1e-17
"""Variances below what rounding leaves are drawn as this."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Some rows of the table.

    Args:
        members: n.
        grid: of the paper's Moshpit; its side is also the size of random groups and `max_group` of the adaptive grid.
    """

    members: int
    grid: Grid

    @property
    def side(self) -> int:
        """Most members that average in one group."""
        return self.grid.sides[0]

    @property
    def rules(self) -> dict[str, Rule]:
        """The columns."""
        return {
            "moshpit": fixed_grid(self.grid),
            "random_groups": random_groups(self.side),
            "adaptive": adaptive(self.side),
            "all_reduce": all_reduce,
        }


SETTINGS = (
    *(Setting(members, Grid((32, 32))) for members in (512, 768, 900, 1024)),
    Setting(512, Grid((8, 8, 8))),
)
GAPS = ((15, 4, Grid((4, 4))), (60, 8, Grid((8, 8))), (250, 16, Grid((16, 16))), (1000, 32, Grid((32, 32))))
"""(members, max_group, the smallest grid that holds them with as few rounds as a full one): no filled grid has so few rounds."""


def measure(rule: Rule, members: int, p: float, seeds: int) -> dict[str, float]:
    """Rounds to both targets, and by how much the mean of all has moved meanwhile (mean square, of a start variance of 1)."""
    fine, coarse, shift = [], [], []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        start_N = rng.standard_normal(members)
        course = [start_N]
        for values_N in rule(start_N, p, rng):
            course.append(values_N)
            if len(course) > MAX_ROUNDS or values_N.var() < TARGET:
                break
        fine.append(rounds_until(course, TARGET))
        coarse.append(rounds_until(course, COARSE_TARGET))
        shift.append((course[-1].mean() - start_N.mean()) ** 2)
    return {"rounds": float(np.mean(fine)), "rounds_1e4": float(np.mean(coarse)), "shift": float(np.mean(shift))}


def table_rows(seeds: int) -> list[dict[str, Any]]:
    """The table: for every setting and p, rounds of every rule."""
    rows = []
    for setting in SETTINGS:
        for p in FAILURES:
            row: dict[str, Any] = {"n": setting.members, "grid": "x".join(map(str, setting.grid.sides)), "p": p}
            row["adaptive_grid"] = "x".join(map(str, grid_for(setting.members, 0, setting.side).sides))
            for name, rule in setting.rules.items():
                figures = measure(rule, setting.members, p, seeds)
                row |= {name: round(figures["rounds"], 2), f"{name}_1e4": round(figures["rounds_1e4"], 2)}
                row[f"{name}_shift"] = float(f"{figures['shift']:.2g}")
            rows.append(row)
    return rows


def gap_rows(seeds: int) -> list[dict[str, Any]]:
    """Where no filled grid has the fewest rounds: a few empty cells, or a round more?"""
    rows = []
    for members, max_group, few_rounds in GAPS:
        for p in (0.0, 0.01):
            row: dict[str, Any] = {"n": members, "max_group": max_group, "p": p}
            for name, grid in (("empty_cells", few_rounds), ("filled", grid_for(members, 0, max_group))):
                figures = measure(adaptive(max_group, grid), members, p, seeds)
                row[f"{name}_grid"] = "x".join(map(str, grid.sides))
                row |= {name: round(figures["rounds"], 2), f"{name}_1e4": round(figures["rounds_1e4"], 2)}
            rows.append(row)
    return rows


def curves(seeds: int) -> list[Panel]:
    """Variance across members after each round, mean over seeds: the paper's figure with our curve."""
    panels = []
    for members, p in CURVES:
        lines = {}
        for name, rule in Setting(members, Grid((32, 32))).rules.items():
            variances = np.zeros(CURVE_ROUNDS + 1)
            for seed in range(seeds):
                rng = np.random.default_rng(seed)
                course = rounds_of(rule, rng.standard_normal(members), p, rng, CURVE_ROUNDS)
                variances += [values_N.var() / seeds for values_N in course]
            lines[name.replace("_", " ")] = [max(float(variance), _FLOOR) for variance in variances]
        panels.append(Panel(f"{members} members, p = {p:g}", lines))
    return panels


def show(rows: Sequence[dict[str, Any]], gaps: Sequence[dict[str, Any]], console: Console) -> None:
    """Both tables, for people."""
    shown = Table(title="Rounds until the variance across members is below 1e-9 (1e-4)")
    for heading in ("n", "p", "fixed grid", "moshpit", "random groups", "adaptive", "adaptive grid", "all-reduce"):
        shown.add_column(heading, justify="right")
    for row in rows:
        cells = {name: f"{row[name]:.1f} ({row[f'{name}_1e4']:.1f})" for name in ("moshpit", "random_groups", "adaptive", "all_reduce")}
        shown.add_row(
            str(row["n"]), f"{row['p']:g}", row["grid"], cells["moshpit"], cells["random_groups"], cells["adaptive"], row["adaptive_grid"],
            cells["all_reduce"],
        )  # fmt: skip
    console.print(shown)
    shown = Table(title="Just below a full grid: a few empty cells, or a round more an epoch?")
    for heading in ("n", "max group", "p", "with empty cells", "rounds", "filled", "rounds"):
        shown.add_column(heading, justify="right")
    for row in gaps:
        rounds = [f"{row[name]:.1f} ({row[f'{name}_1e4']:.1f})" for name in ("empty_cells", "filled")]
        shown.add_row(
            str(row["n"]), str(row["max_group"]), f"{row['p']:g}", row["empty_cells_grid"], rounds[0], row["filled_grid"], rounds[1]
        )
    console.print(shown)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.moshpit_table",
        description="Rounds until everybody holds the mean: fixed grid, random groups, our adaptive grid, all-reduce.",
    )
    parser.add_argument("--seeds", type=int, default=10, help="runs of which each figure is the mean")
    parser.add_argument("--svg", type=Path, help="also draw variance against rounds into this file")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds needs at least 1.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, and say in JSON; see `--help`."""
    options = parse_arguments(arguments)
    console = Console(stderr=True, width=WIDTH)
    if options.svg and not options.svg.absolute().parent.is_dir():
        console.print(f"--svg {options.svg}: there is no folder {options.svg.absolute().parent}", markup=False)
        return 2
    began_s = time.perf_counter()
    rows, gaps = table_rows(options.seeds), gap_rows(options.seeds)
    show(rows, gaps, console)
    worst = max(row["adaptive"] - row["random_groups"] for row in rows)
    console.print(f"adaptive grid against random groups: at worst {worst:+.1f} rounds")
    if options.svg:
        options.svg.write_text(svg(curves(options.seeds), "round", "variance across members"))
        console.print(f"drawn into {options.svg}")
    if options.json:
        wall_s = round(time.perf_counter() - began_s, 2)
        print(json.dumps({"rows": rows, "gaps": gaps, "adaptive_minus_random_groups_max": round(worst, 2), "wall_s": wall_s}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
