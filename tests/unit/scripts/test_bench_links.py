"""The links benchmark's judgement: what counts, and what it refuses. No process and no namespace is made."""

from __future__ import annotations

import pytest

from scripts.bench import links
from scripts.bench.fleet import RoundFigures
from scripts.bench.netns import MIN_BURST_BYTES, Host, burst_bytes, loopback_hosts

MB = 10**6


def _figure(seconds: float) -> RoundFigures:
    return RoundFigures(seconds, 1.0, 1e-7, True, ({"link": 1},))


def test_warm_up_rounds_do_not_count() -> None:
    figures = {"ours": [_figure(9.0), _figure(2.0), _figure(3.0), _figure(2.5)], "hivemind": [_figure(1.0), *[_figure(5.0)] * 3]}
    summary = links.report(figures, 1, 2.0)
    assert (summary["round_s"], summary["share_of_bound"], summary["hivemind_share_of_bound"]) == (2.5, 0.8, 0.4)
    assert (summary["warm_up_rounds_s"], summary["peers_notes"]) == ([9.0], [{"link": 1}])


@pytest.mark.parametrize("words", [["--mbit", "100"], ["--mbit", "100,0"], ["--mbit", "100,fast"], ["--rounds", "0"], ["--mib", "0"]])
def test_what_cannot_be_measured_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        links.parse_arguments(words)
    assert refused.value.code == 2


def test_a_link_lets_hardly_more_than_a_frame_through_at_once() -> None:
    assert burst_bytes(1.0) == MIN_BURST_BYTES
    assert burst_bytes(100.0) == 18750


def test_hosts_on_loopback_need_no_namespace() -> None:
    assert loopback_hosts(2) == (Host("127.0.0.1"), Host("127.0.0.1"))
    assert Host("10.0.0.1", 8.0).link_bytes_per_s == MB
    assert Host("10.0.0.1").link_bytes_per_s is None
