"""The benchmark of aggregators runs small, and its verdicts follow from its figures."""

from __future__ import annotations

import json
import math

import pytest
import torch

from scripts.bench import aggregators
from scripts.bench.aggregator_errors import ATTACKS, COLUMNS, PUBLISHED_STEPS, centered_clip_steps, compared, trial


def test_it_runs_small_and_its_verdict_is_that_of_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    assert aggregators.main(["--trials", "2", "--elems", "500", "--rounds", "1", "--seed", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {(row["attack"], row["rule"]) for row in found["rows"]} == {(attack, rule) for attack in ATTACKS for rule in COLUMNS}
    judged = [row["within_noise"] for row in found["rows"] if row["published"] is not None]
    assert len(judged) == 36
    assert found["all_within_noise"] == all(judged)
    assert {(row["rule"], row["parts"]) for row in found["throughput"]} == {
        (rule, kind) for rule in aggregators.RULES for kind in ("fp32", "int8")
    }
    assert all(row["gb_s"] > 0 for row in found["throughput"])


def test_noise_is_rounding_and_three_standard_errors() -> None:
    errors = [1.0, 1.2] * 10
    margin = 0.005 + 3 * 0.10259783520851541 * math.sqrt(2 / 20)
    for published, within in ((1.1 + margin - 0.004, True), (1.1 + margin + 0.006, False)):
        row = compared(errors, f"{published:.2f}")
        assert row["within_noise"] is within
    assert compared([437.9375] * 20, "438")["within_noise"]
    assert not compared([437.4] * 20, "438")["within_noise"]
    assert compared(errors, None)["within_noise"] is None


def test_attacks_know_the_honest_mean_and_change_attackers_only() -> None:
    clean_GE, honest_E, secret = trial("none", 1, 0)
    for attack in ATTACKS:
        attacked_GE, mean_E, same = trial(attack, 1, 0)
        assert torch.equal(attacked_GE[7:], clean_GE[7:])
        assert torch.equal(mean_E, honest_E)
        assert same == secret
    assert torch.equal(trial("ipm 0.1", 1, 0)[0][0], -0.1 * honest_E)
    assert float(trial("random x1000", 1, 0)[0][0].norm() / honest_E.norm()) == pytest.approx(1000, rel=1e-4)
    assert not torch.equal(trial("none", 1, 1)[0], clean_GE)
    assert not torch.equal(trial("none", 2, 0)[0], clean_GE)


def test_the_authors_steps_come_to_the_papers_third() -> None:
    parts_GE = torch.tensor([[0.0], [0.0], [0.0], [10.0]])
    assert float(centered_clip_steps(parts_GE, 1.0, 1)) == 0.25
    assert float(centered_clip_steps(parts_GE, 1.0, 2)) == 0.3125
    assert float(centered_clip_steps(parts_GE, 1.0, PUBLISHED_STEPS)) == pytest.approx(1 / 3, abs=1e-5)


def test_odd_arguments_are_refused() -> None:
    for arguments in (["--trials", "0"], ["--elems", "0"], ["--seed", "-1"]):
        with pytest.raises(SystemExit) as stopped:
            aggregators.parse_arguments(arguments)
        assert stopped.value.code == 2
