"""What people see of a status."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from swarm.monitoring.live import plain_line
from swarm.monitoring.status import BannedStatus, Liveness
from swarm.monitoring.table import Row, human_bytes, own_row, render, status_view, summary_of
from tests.unit.swarm.status_builder import PEER, a_member, a_status


def _text(view: RenderableType) -> str:
    console = Console(record=True, width=140, force_terminal=False, file=io.StringIO())
    console.print(view)
    return console.export_text()


def test_one_row_per_member_and_the_swarm_below() -> None:
    other = "12D3KooWPz8xEji9oXPh72fxyT6FTWv6EnhH24b5pqSiPcKtcz4g"
    lines = _text(status_view(a_status(members=(a_member(), a_member(peer=other, epoch=6, loss=None))), Liveness.RUNNING)).splitlines()
    mine = next(line for line in lines if PEER[-8:] in line)
    assert "(me)" in mine
    for cell in ("trainer", "training", "7", "12", "3.5", "999 B", "2.5 MB", "3.250"):
        assert cell in mine
    theirs = next(line for line in lines if other[-8:] in line)
    assert "(me)" not in theirs
    assert "3.250" not in theirs
    assert any("epoch 7" in line and "loss 3.250" in line and "held-out 3.500" in line for line in lines)
    assert any("64/128 samples" in line for line in lines)


def test_bans_are_told_below_the_table() -> None:
    other = "12D3KooWPz8xEji9oXPh72fxyT6FTWv6EnhH24b5pqSiPcKtcz4g"
    banned = (BannedStatus(other, 12, "it returned a false mean of its blocks"), BannedStatus(PEER, 13, "it accused an honest member"))
    lines = [line.strip() for line in _text(status_view(a_status(banned=banned), Liveness.RUNNING)).splitlines()]
    assert f"{other[-8:]} banned in epoch 12: it returned a false mean of its blocks" in lines
    assert "this peer banned in epoch 13: it accused an honest member" in lines
    named = _text(render([own_row("volunteer-3", a_status(), "banned")], summary_of(a_status(banned=banned), names={other: "volunteer-3"})))
    assert "volunteer-3 banned in epoch 12" in named
    assert "banned" in next(line for line in named.splitlines() if "trainer" in line)


def test_a_dead_peer_is_not_shown_as_if_it_lived() -> None:
    assert "not running: died" in _text(status_view(a_status(), Liveness.DEAD))
    assert "not running" not in _text(status_view(a_status(), Liveness.RUNNING))


def test_rows_of_peers_that_have_not_reported_or_were_killed() -> None:
    text = _text(render([own_row("volunteer-1", None), own_row("volunteer-2", a_status(), "killed")], None))
    first, second = (next(line for line in text.splitlines() if name in line) for name in ("volunteer-1", "volunteer-2"))
    assert "starting" in first
    assert "killed" in second
    assert "0.0" in second, "a killed peer computes nothing"


def test_absurd_numbers_do_not_break_the_table() -> None:
    text = _text(render([Row("x", "trainer", "[red]odd", -1, 10**15)], summary_of(a_status(swarm_samples=-5, target_samples=0))))
    assert "[red]odd" in text, "a state from elsewhere is text, not markup"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (10**12, "1.0 TB"), (10**15, "1000.0 TB")]
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_plain_line_for_logs() -> None:
    line = plain_line(a_status(eval_loss=None))
    assert line == "training epoch=7 members=1 samples=64/128 samples_per_s=3.5 in=999 B out=2.5 MB loss=3.250"
