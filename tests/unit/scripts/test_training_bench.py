"""The training benchmark's pure parts: curves, what is compared with what, plans, and refused arguments. Nothing is trained."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from protocols.runspec import RunSpec
from scripts.bench.training import parse_arguments, picture
from scripts.bench.training_member import Recorder, interface_bytes
from scripts.bench.training_plans import DEFAULT_PLANS, GROUPS, PLANS, Common, chosen, member_settings
from scripts.bench.training_report import Point, Trained, best_of, loss_at, seconds_to, summary, table, target_of

COMMON = Common(peers=4, seed=3, model={"preset": "mini"}, sequence_length=64, micro_batch_samples=4)

FAST = [(0.0, 5.0), (10.0, 3.0), (20.0, 2.0)]
SLOW = [(0.0, 5.0), (40.0, 3.0), (100.0, 2.5)]
SLOWEST = [(0.0, 5.0), (100.0, 4.0)]


def trained(name: str, group: str, curve: list[Point]) -> Trained:
    return Trained(name, group, curve, 100, (1_000_000, 3_000_000), (5, 6), 2.0, 9.0, {"codec": "int4"}, {"epochs": 7})


ALL = [
    trained("outer-int4", "outer", FAST),
    trained("gradient", "gradient", SLOWEST),
    trained("hivemind-delayed", "hivemind", SLOW),
    trained("hivemind-local", "hivemind", SLOWEST),
    trained("gloo", "gloo", SLOWEST),
]


@pytest.mark.parametrize(("target", "seconds"), [(6.0, 0.0), (5.0, 0.0), (4.0, 5.0), (3.0, 10.0), (2.5, 15.0), (2.0, 20.0), (1.9, None)])
def test_time_to_a_loss_lies_on_a_straight_line_between_two_points(target: float, seconds: float | None) -> None:
    assert seconds_to(FAST, target) == seconds


def test_time_to_a_loss_is_that_of_the_first_crossing() -> None:
    assert seconds_to([(0.0, 5.0), (1.0, 3.0), (2.0, 4.0), (3.0, 2.0)], 3.0) == 1.0
    assert seconds_to([], 3.0) is None


@pytest.mark.parametrize(("seconds", "loss"), [(-1.0, 5.0), (0.0, 5.0), (5.0, 4.0), (20.0, 2.0), (99.0, 2.0)])
def test_loss_at_a_time_is_held_before_the_first_and_after_the_last_point(seconds: float, loss: float) -> None:
    assert loss_at(FAST, seconds) == loss


def test_target_is_what_the_best_incumbent_comes_to() -> None:
    assert target_of(ALL) == 2.5
    assert target_of(ALL[:2]) is None
    assert {group: best.name for group, best in best_of(ALL, 2.5).items()} == {
        "outer": "outer-int4", "gradient": "gradient", "hivemind": "hivemind-delayed", "gloo": "gloo",
    }  # fmt: skip


def test_summary_says_how_many_times_sooner_ours_is_there() -> None:
    found = summary(ALL)
    assert found["target_loss"] == 2.5
    assert found["seconds_to_target"] == {"outer": 15.0, "gradient": None, "hivemind": 100.0, "gloo": None}
    assert (found["vs_hivemind"], found["vs_gloo"]) == (round(100 / 15, 2), 20.0)
    assert found["against"]["gloo"] == {"loss": 4.0, "seconds": 100.0, "ours_seconds": 5.0, "ratio": 20.0}
    assert found["bytes"]["gloo"] == {"sent": [1_000_000, 3_000_000], "received": [5, 6]}
    assert {"samples", "final_loss", "start_s", "cpu_s", "curves", "about", "best"} <= found.keys()
    assert json.loads(json.dumps(found)) == found


def test_summary_of_a_few_systems_leaves_out_what_there_is_not() -> None:
    alone = summary(ALL[:1])
    assert (alone["target_loss"], alone["vs_hivemind"], alone["vs_gloo"]) == (None, None, None)
    behind = summary([trained("outer-int4", "outer", SLOWEST), trained("gloo", "gloo", FAST)])
    assert (behind["vs_gloo"], behind["vs_hivemind"], behind["against"]["gloo"]["ratio"]) == (None, None, None)


def test_table_has_a_row_for_each_system() -> None:
    console = Console(file=io.StringIO(), width=160)
    console.print(table(ALL, "title"))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert all(result.name in shown for result in ALL)
    assert "15.0" in shown


def test_picture_has_a_line_for_each_system() -> None:
    drawn = picture(ALL, "four members", 100.0)
    assert drawn.count("<polyline") == len(ALL)
    assert "hivemind-delayed" in drawn
    assert ">5.5<" not in drawn
    assert ">4.5<" in drawn


def test_interface_counts_are_read_by_name() -> None:
    text = "Inter-| Receive | Transmit\n face |bytes packets\n    lo: 1 2 3 4 5 6 7 8 9 10 11\n  eth0: 21 2 3 4 5 6 7 8 29 10 11\n"
    assert interface_bytes(text, "eth0") == (29, 21)
    assert interface_bytes(text, "wlan0") == (0, 0)


def test_parameters_are_written_down_at_first_often_and_always_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(100.0, 0.5)
    monkeypatch.setattr("scripts.bench.training_member.time.monotonic", lambda: next(clock))
    recorder = Recorder(tmp_path)
    recorder.begin()
    for number in range(5):
        recorder.changed([torch.full((2,), float(number)), torch.zeros(1, 2)])
    recorder.changed([torch.ones(4)], last=True)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["100.500.npy", "102.000.npy", "103.000.npy"]
    assert np.load(files[1]).tolist() == [3.0, 3.0, 0.0, 0.0]
    Recorder(None).changed([torch.ones(4)], last=True)


@pytest.mark.parametrize("name", [plan.name for plan in PLANS.values() if plan.module == "ours"])
def test_our_plans_are_run_files(name: str) -> None:
    spec = RunSpec.from_settings(member_settings(PLANS[name], COMMON))
    assert spec.run.seed == COMMON.seed
    assert spec.data.sequence_length == COMMON.sequence_length
    assert spec.averaging.overlap == (name != "gradient-waiting")
    assert spec.optimizer.rule == PLANS[name].group


def test_plans_are_chosen_by_name_or_group_and_changed_by_path() -> None:
    assert [plan.name for plan in chosen(["gloo", "outer-fp16"])] == ["gloo", "outer-fp16"]
    assert {plan.group for plan in chosen(GROUPS)} == set(GROUPS)
    changed = PLANS["outer-int4"].changed("outer.momentum", 0.9).with_learning_rate(0.5)
    assert (changed.settings["outer"]["momentum"], changed.settings["optimizer"]["learning_rate"]) == (0.9, 0.5)
    assert PLANS["outer-int4"].settings["outer"]["momentum"] != 0.9
    assert PLANS["gloo"].with_learning_rate(0.5).settings["learning_rate"] == 0.5


def test_the_command_line_reads_plans_and_changes() -> None:
    options = parse_arguments(["--only", "outer,gloo", "--lr", "0.25", "--set", "a.b=[1]"])
    assert {plan.group for plan in options.plans} == {"outer", "gloo"}
    assert all(plan.settings["a"] == {"b": [1]} for plan in options.plans)
    assert options.plans[-1].settings["learning_rate"] == 0.25
    assert tuple(plan.name for plan in parse_arguments([]).plans) == DEFAULT_PLANS


@pytest.mark.parametrize("arguments", [["--only", "nobody"], ["--peers", "1"], ["--mbit", "0"], ["--set", "a=b c"]])
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse_arguments(arguments)
    assert refused.value.code == 2
    assert arguments[0] in capsys.readouterr().err
