"""The planning benchmark's pure parts: what is measured of what members left, and how it is compared. Nothing is trained."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from protocols.runspec import RunSpec
from scripts.bench.fleet import BenchmarkError
from scripts.bench.planning import CASES, Figures, compared, main, measured_figures, table
from scripts.bench.training_plans import Common, member_settings
from swarm.surveying import expected_of
from tests.unit.swarm.test_survey import SPEC, a_survey

COMMON = Common(peers=4, seed=3, model={"preset": "mini"}, sequence_length=64, micro_batch_samples=4)


def left_by(probed_s: float | None, epoch_s: float, sent_bytes: int) -> dict[str, Any]:
    """Epochs of equal length, half of which was computing."""
    one = {"at_s": epoch_s, "epoch": 1, "sent_bytes": sent_bytes, "received_bytes": 1, "computing_s": epoch_s / 2}
    one |= {"pace_s": epoch_s, "pace_samples": 20, "averaging_s": 0.25}
    return {"probed_s": probed_s, "begins": [{name: number * value for name, value in one.items()} for number in range(9)]}


def test_only_epochs_after_the_probe_count_and_members_are_averaged() -> None:
    found, epochs = measured_figures([left_by(None, 2.0, 100), left_by(3.0, 2.0, 300)])
    assert found == Figures(epoch_s=2.0, share_computing=0.5, up_bytes=200.0, down_bytes=1.0, samples_per_s=10.0, overlapped_s=0.25)
    assert epochs == 6


def test_too_short_a_run_is_said_to_be() -> None:
    with pytest.raises(BenchmarkError, match="not through"):
        measured_figures([left_by(None, 2.0, 1)])
    with pytest.raises(BenchmarkError, match="Only"):
        measured_figures([left_by(14.0, 2.0, 1)])


def test_a_row_has_ratios_of_predicted_by_measured() -> None:
    survey = a_survey()
    with pytest.raises(BenchmarkError, match="no prediction"):
        compared(CASES[0], SPEC, survey, Figures(1.0, 1.0, 1.0, 1.0, 1.0), 5)
    survey = survey.model_copy(update={"expected": expected_of(survey, SPEC)})
    assert survey.expected is not None
    row = compared(CASES[0], SPEC, survey, Figures(survey.expected.epoch_s * 2, 0.5, survey.expected.up_bytes, 1.0, 25.0), 5)
    assert (row["epoch_s"]["ratio"], row["up_bytes"]["ratio"], row["epochs"]) == (0.5, 1.0, 5)
    assert row["samples_per_s"]["ratio"] == 2.0
    assert row["at_speed"]["epoch_s"] > row["epoch_s"]["ratio"], "slower members take longer"
    text = io.StringIO()
    Console(file=text, width=200).print(table([row]))
    assert CASES[0].name in text.getvalue()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_setting_is_a_run(case: Any) -> None:
    spec = RunSpec.from_settings(member_settings(case.plan, COMMON))
    assert spec.optimizer.target_batch_samples >= COMMON.peers * COMMON.micro_batch_samples


@pytest.mark.parametrize("arguments", [["--only", "nonsense"], ["--peers", "1"], ["--seconds", "0"]])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
