"""The demonstration's decisions and its verdict, without any process."""

from __future__ import annotations

import dataclasses
import json

import pytest

from swarm.demo.plan import Action, Cast, Plan, Seen, bans_seen, common_hashes, decide, held_out_loss, takes_part
from swarm.demo.report import BannedMember, DemoReport
from swarm.monitoring.status import BannedStatus, EpochHash
from tests.unit.swarm.status_builder import a_status

PLAN = Plan(seconds=240.0, goal_loss=2.6)
ATTACKED = Plan(seconds=240.0, goal_loss=2.6, cast=Cast(6, ("sign_flip", "lying_reducer")))
ONE, BOTH = (
    {name: BannedStatus(f"id of {name}", 4, "it lied") for name in names} for names in (["volunteer-6"], ["volunteer-5", "volunteer-6"])
)


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


def test_the_last_volunteers_attack_and_an_honest_one_is_killed() -> None:
    cast = ATTACKED.cast
    assert cast.attackers == {"volunteer-5": "sign_flip", "volunteer-6": "lying_reducer"}
    assert (cast.victim, cast.newcomer) == ("volunteer-2", "volunteer-7")
    assert cast.victim not in cast.attackers
    assert (PLAN.cast.attackers, PLAN.cast.newcomer) == ({}, "volunteer-5")


def test_nobody_is_killed_while_attackers_are_about_before_half_of_the_time_is_over() -> None:
    assert decide(_seen(81, 9), ATTACKED).action is Action.WAIT
    assert decide(_seen(81, 9, bans=ONE), ATTACKED).action is Action.WAIT
    assert decide(_seen(81, 9, bans=BOTH), ATTACKED).action is Action.KILL
    assert decide(_seen(121, 9, bans=ONE), ATTACKED).action is Action.KILL


def test_it_goes_on_until_all_attackers_are_banned() -> None:
    statuses = {"coordinator": a_status(epoch=50, eval_loss=1.5)}
    seen = _seen(150, 50, statuses=statuses, killed=True, newcomer="volunteer-7", joined_epoch=10)
    waiting = decide(dataclasses.replace(seen, bans=ONE), ATTACKED)
    assert waiting.action is Action.WAIT
    assert waiting.reason == "volunteer-5 not banned yet"
    assert decide(dataclasses.replace(seen, bans=BOTH), ATTACKED).action is Action.STOP
    assert decide(dataclasses.replace(seen, bans=ONE, elapsed_s=201), ATTACKED).action is Action.STOP, "time is up"


def test_an_attacker_may_end_because_it_is_banned_and_nobody_else() -> None:
    assert decide(_seen(50, 5, bans=ONE, exited={"volunteer-6": 18}), ATTACKED).action is Action.WAIT
    for exited in ({"volunteer-6": 1}, {"volunteer-1": 18}):
        assert decide(_seen(50, 5, bans=ONE, exited=exited), ATTACKED).action is Action.FAIL


def test_it_stops_when_an_honest_member_is_banned() -> None:
    decision = decide(_seen(50, 5, bans={"volunteer-1": BannedStatus("x", 4, "it lied")}, exited={"volunteer-1": 18}), ATTACKED)
    assert decision.action is Action.STOP
    assert decision.reason == "volunteer-1 is honest and was banned"


def test_bans_are_told_by_the_names_of_the_demonstration() -> None:
    early, late = BannedStatus("a", 3, "it lied"), BannedStatus("b", 7, "it lied too")
    statuses = {"coordinator": a_status(banned=(late,)), "volunteer-1": a_status(banned=(early, late)), "volunteer-2": None}
    assert list(bans_seen(statuses, {"a": "volunteer-5"}).items()) == [("volunteer-5", early), ("b", late)]


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


CAUGHT = BannedMember("volunteer-5", "sign_flip", "its contribution is not what its samples give", 7)


def test_a_report_counts_the_attackers_that_were_banned() -> None:
    report = dataclasses.replace(GOOD, attackers=1, banned=(CAUGHT,))
    assert report.shortcomings(2.6) == []
    raw = json.loads(report.to_json())
    assert raw["attackers_banned"] == 1
    assert raw["banned"] == [{"name": "volunteer-5", "attack": "sign_flip", "reason": CAUGHT.reason, "epoch": 7}]


def test_an_attacker_at_large_and_an_honest_member_banned_are_named() -> None:
    (missing,) = dataclasses.replace(GOOD, attackers=2, banned=(CAUGHT,)).shortcomings(2.6)
    assert missing == "Only 1 of 2 attackers were banned."
    wronged = dataclasses.replace(CAUGHT, name="volunteer-1", attack="")
    (missing,) = dataclasses.replace(GOOD, attackers=1, banned=(CAUGHT, wronged)).shortcomings(2.6)
    assert missing == "volunteer-1 is honest and was banned: its contribution is not what its samples give."
