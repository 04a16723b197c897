"""The soak's judgement and its picture. No process is started."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from scripts.soaking import plot, verdict
from scripts.soaking.verdict import Happening, Record, Sample

MINUTE_S = 60.0
ELDER, MORTAL = 0, 5


def _record(rss_mib_a_minute: float = 0.0, fds_a_minute: float = 0.0, minutes: int = 20) -> Record:
    """An elder whose values rise steadily, with a spike now and then, in a swarm that closes an epoch every 2 s."""
    record = Record(frozenset({ELDER}))
    for step in range(minutes * 12):
        at_s = step * 5.0
        spike = 40.0 if step % 17 == 0 else 0.0
        values = {
            "rss_mib": 300.0 + rss_mib_a_minute * at_s / MINUTE_S + spike,
            "fds": 80.0 + fds_a_minute * at_s / MINUTE_S + (step % 3),
            "tasks": 12.0,
        }
        record.samples.append(Sample(at_s, ELDER, step, values))
    record.epoch_at_s = {epoch: 2.0 * epoch for epoch in range(minutes * 30)}
    return record


def test_a_steady_swarm_passes() -> None:
    assert verdict.complaints(_record()) == []
    assert verdict.summary(_record())["passed"] is True


def test_a_leak_of_memory_is_seen_through_spikes() -> None:
    found = verdict.complaints(_record(rss_mib_a_minute=3.0))
    assert len(found) == 1
    assert "member 0: rss_mib rose by" in found[0]


def test_a_leak_of_descriptors_is_seen() -> None:
    assert any("fds rose" in words for words in verdict.complaints(_record(fds_a_minute=1.0)))


def test_growth_that_ends_in_the_warm_up_is_no_leak() -> None:
    record = _record()
    end_s = record.samples[-1].at_s
    cold = [Sample(s.at_s, s.rank, s.epoch, {"rss_mib": 100.0}) if s.at_s < 0.2 * end_s else s for s in record.samples]
    record.samples[:] = cold
    assert verdict.complaints(record) == []


def test_mortals_are_not_judged_for_growth() -> None:
    record = _record()
    record.samples += [Sample(s.at_s, MORTAL, s.epoch, {"rss_mib": 100.0 + s.at_s}) for s in list(record.samples)]
    assert verdict.complaints(record) == []


@pytest.mark.parametrize(("pause_s", "stuck"), [(verdict.MAX_PAUSE_S - 1, False), (verdict.MAX_PAUSE_S + 1, True)])
def test_a_swarm_that_stands_still_is_noticed(pause_s: float, stuck: bool) -> None:
    record = _record()
    record.epoch_at_s = {epoch: at_s + (pause_s - 2.0 if epoch > 100 else 0.0) for epoch, at_s in record.epoch_at_s.items()}
    assert any("no epoch ended" in words for words in verdict.complaints(record)) is stuck


def test_standing_still_at_the_end_counts() -> None:
    assert verdict.longest_pause_s([1.0, 2.0], end_s=50.0) == 48.0
    assert verdict.longest_pause_s([], end_s=50.0) == 50.0


def test_everything_else_that_is_wrong_is_complained_about() -> None:
    record = _record()
    record.alone_s = {3: verdict.MAX_ALONE_S + 1, 4: 1.0}
    record.digests[7]["aa"].add(1)
    record.digests[7]["bb"].add(2)
    record.digests[8]["cc"].update({1, 2})
    record.crashes.append("Traceback")
    record.left.append(4242)
    found = "\n".join(verdict.complaints(record))
    for words in ("member 3 had no round", "different results of 1 epochs, first of 7", "ended by itself: Traceback", "[4242]"):
        assert words in found
    assert "member 4" not in found
    assert verdict.summary(record)["passed"] is False


def test_a_soak_that_recorded_nothing_fails() -> None:
    assert "nothing was recorded" in verdict.complaints(Record(frozenset({ELDER})))


def test_the_slope_is_that_of_the_line_whatever_a_few_points_do() -> None:
    points = [(float(x), 2.0 * x) for x in range(40)]
    points[7] = (7.0, 1000.0)
    assert verdict.slope(points) == pytest.approx(2.0)
    assert verdict.slope([(1.0, 5.0)]) == 0.0
    assert verdict.slope([(float(x), 0.5 * x) for x in range(3000)]) == pytest.approx(0.5)


def test_the_picture_is_svg_with_a_line_for_every_member_and_a_mark_for_every_happening() -> None:
    record = _record()
    record.samples += [Sample(s.at_s, MORTAL, s.epoch, s.values) for s in record.samples[:50]]
    record.happenings = [Happening(10.0, "kill", MORTAL), Happening(20.0, "cut", ELDER), Happening(30.0, "resume", ELDER)]
    root = ET.fromstring(plot.svg(record, "20 minutes <of> soak"))
    lines = [element for element in root.iter() if element.tag.endswith("polyline")]
    marks = [element for element in root.iter() if element.get("stroke") in plot.MARKS.values() and element.tag.endswith("}line")]
    drawn = [name for name, _ in plot.PANELS if name in {"rss_mib", "fds", "tasks", "epoch"}]
    assert len(lines) == 2 * len(drawn)
    assert len(marks) == 2
    assert any(element.text == "20 minutes <of> soak" for element in root.iter())


@pytest.mark.parametrize("top", [0.0, 0.3, 1.0, 7.0, 99.0, 1234.5])
def test_ticks_are_round_and_reach_the_top(top: float) -> None:
    found = plot.ticks(top)
    assert found[0] == 0.0
    assert found[-1] >= top
    assert 2 <= len(found) <= 8
