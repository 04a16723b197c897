"""What the grouping and the fault benchmark make of what they saw. No process is started."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from scripts.bench import data, faults, grouping
from scripts.bench.faults import Repetition
from scripts.bench.faults_member import count_wrong
from scripts.bench.grouping import Ours, RoundSeen

GROUP = ("a", "b", "c", "d")


def _round(peer: str, ready_at_s: float, planned_at_s: float, members: tuple[str, ...] = GROUP, index: int = 0) -> RoundSeen:
    return RoundSeen(3, index, peer, members, ready_at_s, planned_at_s)


def test_plan_time_begins_when_the_last_of_the_group_is_ready() -> None:
    rounds = [_round("a", 10.0, 12.5), _round("b", 12.0, 12.4), _round("c", 11.0, 12.3), _round("d", 10.0, 12.2)]
    assert grouping.plan_seconds(rounds) == pytest.approx([0.5, 0.4, 0.3, 0.2])


def test_other_groups_and_rounds_do_not_matter_for_plan_time() -> None:
    late = [_round("x", 99.0, 99.5, ("x", "y")), _round("b", 50.0, 51.0, index=1)]
    assert grouping.plan_seconds([_round("a", 10.0, 10.5), _round("b", 10.2, 10.5), *late])[0] == pytest.approx(0.3)


def test_only_full_groups_that_all_their_members_saw_count_as_formed() -> None:
    whole = [_round(peer, 0.0, 1.0) for peer in GROUP]
    assert grouping.share_formed(whole, 4, max_group=4) == 1.0
    assert grouping.share_formed(whole, 8, max_group=4) == 0.5, "rounds that nobody saw are missing"
    assert grouping.share_formed(whole[:3], 4, max_group=4) == 0.0, "one member of the plan did not get through"
    small = [_round(peer, 0.0, 1.0, ("a", "b", "c")) for peer in ("a", "b", "c")]
    assert grouping.share_formed(small, 4, max_group=4) == 0.0


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert grouping.percentile(values, 50) == 50.0
    assert grouping.percentile(values, 99) == 99.0
    assert grouping.percentile([7.0], 99) == 7.0


@pytest.mark.parametrize(("peers", "max_group", "rounds"), [(16, 4, 2), (4, 4, 1), (17, 4, 3), (2, 16, 1)])
def test_rounds_that_an_epoch_needs(peers: int, max_group: int, rounds: int) -> None:
    assert grouping.rounds_of_grid(peers, max_group) == rounds


def test_report_of_grouping_takes_the_worst_error() -> None:
    ours = Ours([_round(peer, 0.0, 0.2) for peer in GROUP], [1e-8, 3e-7, 1e-8, 1e-8], [0.5, 0.7, 0.6], [], {})
    summary = grouping.report_ours(ours, max_group=4, rounds_an_epoch=1)
    assert summary["formed"] == 1.0
    assert summary["rel_error"] == 3e-7
    assert summary["epoch_s_p50"] == 0.6
    assert summary["plan_s_p50"] == 0.2


def test_relative_error_is_that_of_the_rotated_mean(tmp_path: Path) -> None:
    file, elems, weights = tmp_path / "mean.f64", data.SHIFT_ELEMS + 10, [1.0, 3.0]
    data.write_expected(file, 5, elems, weights)
    rows_KD = np.stack([data.rotated(data.vector(5, rank, elems), 2) for rank in range(2)])
    mean_D = np.average(rows_KD.astype(np.float64), axis=0, weights=weights).astype(np.float32)
    assert data.relative_error(file, mean_D, 2) < 1e-7
    assert data.relative_error(file, 2 * mean_D, 2) == pytest.approx(1.0, abs=1e-6)
    assert data.relative_error(file, mean_D, 1) > 0.5
    assert math.isinf(data.relative_error(file, mean_D[:-1], 2))
    assert math.isinf(data.relative_error(file, np.full_like(mean_D, np.nan), 2))


def _repetition(kind: str = "reducer", seconds: float = 1.0, *, equal: bool = True, wrong: int = 0, failure: str = "") -> Repetition:
    return Repetition(kind, 0.3, seconds, equal, wrong, (failure,) if failure else ())


@pytest.mark.parametrize(
    ("repetition", "passed"),
    [
        (_repetition(seconds=2.4), True),
        (_repetition(seconds=2.6), False),
        (_repetition("blackhole", seconds=5.4), True),
        (_repetition("blackhole", seconds=5.6), False),
        (_repetition(equal=False), False),
        (_repetition(wrong=1), False),
        (_repetition(failure="member 3: left out"), False),
    ],
)
def test_a_repetition_passes_within_one_and_a_half_times_the_normal_time_and_its_allowance(repetition: Repetition, passed: bool) -> None:
    assert repetition.passed(normal_s=1.0) is passed


def test_report_of_faults_counts_what_failed_and_takes_the_worst_by_kind() -> None:
    summary = faults.report([_repetition(seconds=1.6), _repetition(seconds=3.0), _repetition("blackhole", 4.0)], [0.9, 1.0, 5.0])
    assert (summary["repetitions"], summary["failed"], summary["normal_s"], summary["equal_bytes"]) == (3, 1, 1.0, True)
    assert summary["worst_extra_s"] == {"reducer": 1.5, "blackhole": 2.5}
    assert faults.report([_repetition(equal=False)], [1.0])["equal_bytes"] is False


def test_a_block_may_be_the_mean_of_all_or_of_all_but_the_victim_and_nothing_between() -> None:
    whole_D, without_D = np.arange(8.0), np.arange(8.0) + 1
    mixed_D = np.concatenate([whole_D[:4], without_D[4:]]).astype(np.float32)
    assert count_wrong(mixed_D, [whole_D, without_D], 4) == 0
    assert count_wrong(mixed_D, [whole_D], 4) == 1
    assert count_wrong(mixed_D + np.float32(0.5), [whole_D, without_D], 4) == 2


def test_unknown_kinds_are_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        faults.parse_arguments(["--kinds", "sender,meteor"])
    assert ended.value.code == 2
    assert "--kinds meteor is unknown" in capsys.readouterr().err
