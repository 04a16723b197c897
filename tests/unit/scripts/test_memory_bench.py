"""The memory benchmark: every way trains, and what it prints adds up."""

from __future__ import annotations

import json

import pytest

from scripts.bench.memory import WAYS, main


def test_every_way_trains_and_bytes_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--layers", "1", "--hidden", "64", "--tokens", "16", "--batch", "2", "--steps", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["way"]: row for row in found["rows"]}
    assert rows.keys() == WAYS.keys()
    plain = rows["fp32"]
    assert plain["bytes"]["weights"] == plain["bytes"]["gradients"] == 4 * found["parameters"]
    assert rows["8bit"]["bytes"]["states"] < 0.3 * plain["bytes"]["states"]
    assert rows["offload"]["host_bytes"] == plain["bytes"]["states"]
    assert rows["offload"]["loss"] == rows["recompute"]["loss"] == plain["loss"]
    assert rows["8bit"]["loss"] == pytest.approx(plain["loss"], rel=0.01)
    assert rows["recompute"]["device_bytes"] < plain["device_bytes"]
    for row in rows.values():
        assert row["device_bytes"] <= row["predicted_device_bytes"] * 1.02
        assert row["step_ms"] > 0


@pytest.mark.parametrize("wrong", [["--hidden", "33"], ["--steps", "1"], ["--batch", "0"]])
def test_wrong_arguments_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(wrong)
    assert caught.value.code == 2
