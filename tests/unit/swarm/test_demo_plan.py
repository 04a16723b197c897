"""The demonstration's decisions and its verdict, without any process."""

from __future__ import annotations

import dataclasses
import json

import pytest

from swarm.demo.plan import Action, Plan, Seen, common_hashes, decide, held_out_loss, takes_part
from swarm.demo.report import DemoReport
from swarm.monitoring.status import EpochHash
from tests.unit.swarm.status_builder import a_status

PLAN = Plan(seconds=240.0, goal_loss=2.6)


def _seen(elapsed_s: float, epoch: int, **changes: object) -> Seen:
    base = Seen(
        elapsed_s=elapsed_s,
        statuses={"coordinator": a_status(epoch=epoch, eval_loss=None), "volunteer-1": None},
        exited={},
        killed=False,
        newcomer="",
        joined_epoch=None,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_it_waits_for_the_first_epoch_and_gives_up_in_time() -> None:
    assert decide(_seen(89, 0), PLAN).action is Action.WAIT
    failed = decide(_seen(91, 0), PLAN)
    assert failed.action is Action.FAIL
    assert "no epoch" in failed.reason


def test_a_process_that_ends_by_itself_is_a_failure_at_any_time() -> None:
    for seen in (_seen(1, 0), _seen(100, 5, killed=True, newcomer="volunteer-5"), _seen(1000, 50)):
        decision = decide(dataclasses.replace(seen, exited={"volunteer-3": 15}), PLAN)
        assert decision.action is Action.FAIL
        assert decision.reason == "volunteer-3 ended by itself with exit code 15"


def test_one_is_killed_after_a_third_of_the_time_and_then_one_joins() -> None:
    assert decide(_seen(79, 9), PLAN).action is Action.WAIT
    assert decide(_seen(81, 9), PLAN).action is Action.KILL
    assert decide(_seen(81, 9, killed=True), PLAN).action is Action.JOIN
    assert decide(_seen(82, 9, killed=True, newcomer="volunteer-5"), PLAN).action is Action.WAIT


@pytest.mark.parametrize(
    ("loss", "epoch", "joined_epoch", "action"),
    [
        (2.2, 12, 10, Action.STOP),
        (2.2, 11, 10, Action.WAIT),  # the newcomer has not taken part in enough epochs
        (2.2, 50, None, Action.WAIT),  # or not at all
        (2.4, 50, 10, Action.WAIT),  # not far enough below the goal yet
        (None, 50, 10, Action.WAIT),
    ],
)
def test_it_stops_early_only_when_everything_was_shown(loss: float | None, epoch: int, joined_epoch: int | None, action: Action) -> None:
    statuses = {"coordinator": a_status(epoch=epoch, eval_loss=loss)}
    seen = _seen(150, epoch, statuses=statuses, killed=True, newcomer="volunteer-5", joined_epoch=joined_epoch)
    assert decide(seen, PLAN).action is action


def test_it_stops_when_time_is_up_whatever_the_loss() -> None:
    statuses = {"coordinator": a_status(eval_loss=5.0)}
    assert decide(_seen(201, 7, statuses=statuses, killed=True, newcomer="volunteer-5"), PLAN).action is Action.STOP
    assert decide(_seen(199, 7, statuses=statuses, killed=True, newcomer="volunteer-5"), PLAN).action is Action.WAIT


def test_held_out_loss_is_that_of_the_most_advanced_peer_that_measured() -> None:
    assert (
        held_out_loss([a_status(epoch=3, eval_loss=3.0), a_status(epoch=5, eval_loss=2.5), a_status(epoch=9, eval_loss=None), None]) == 2.5
    )
    assert held_out_loss([None]) is None


def test_who_takes_part() -> None:
    assert takes_part(a_status())
    assert not takes_part(None)
    assert not takes_part(a_status(state_hash=""))
    assert not takes_part(a_status(samples_total=0))


def test_states_are_compared_at_the_newest_epoch_that_all_remember() -> None:
    ahead = a_status(hashes=(EpochHash(6, "aa"), EpochHash(7, "bb"), EpochHash(8, "cc")))
    behind = a_status(hashes=(EpochHash(6, "aa"), EpochHash(7, "bb")))
    forked = a_status(hashes=(EpochHash(7, "xx"),))
    assert common_hashes({"a": ahead, "b": behind}) == (7, {"a": "bb", "b": "bb"})
    assert common_hashes({"a": ahead, "b": forked}) == (7, {"a": "bb", "b": "xx"})
    assert common_hashes({"a": ahead, "b": None}) is None
    assert common_hashes({"a": behind, "b": a_status(hashes=(EpochHash(9, "zz"),))}) is None
    assert common_hashes({}) is None


GOOD = DemoReport(5.5, 2.3, 120, 5, 1, 1, True, "/tmp/export", 201.04, 120, {"coordinator": "aa"}, "def f(): ...")


def test_a_good_report_has_no_shortcomings_and_the_promised_fields() -> None:
    assert GOOD.shortcomings(2.6) == []
    raw = json.loads(GOOD.to_json())
    assert {"loss_start", "loss_end", "epochs", "members", "killed", "joined", "anchors_equal", "export", "seconds"} <= set(raw)
    assert raw["seconds"] == 201.0
    assert "\n" not in GOOD.to_json()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"loss_end": 2.6}, "should be below 2.60"),
        ({"loss_start": None}, "held-out loss"),
        ({"killed": 0}, "killed"),
        ({"joined": 0}, "newcomer"),
        ({"anchors_equal": False}, "same state"),
        ({"export": ""}, "exported"),
        ({"sample": ""}, "sampled"),
    ],
)
def test_every_broken_promise_is_named(change: dict[str, object], sentence: str) -> None:
    (missing,) = dataclasses.replace(GOOD, **change).shortcomings(2.6)  # type: ignore[arg-type]
    assert sentence in missing
