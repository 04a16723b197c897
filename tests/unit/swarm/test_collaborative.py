"""The collaborative optimizer in a user's own loop: what each outcome of a round does."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
import torch

from peers.bridge import Contribution, PeerStopped, RoundOutcome, RoundStatus, SwarmView
from peers.local import LocalPeer
from protocols.errors import ConfigError, LocalProtocolError, RemoteProtocolError, RoundError
from protocols.ids import Epoch
from swarm.optim import CollaborativeOptimizer, StepStatus
from swarm.optim.settings import FeedbackSettings, GradientSettings, OuterSettings
from tests.helpers.scripted_peer import CLIPPED, ME, Answer, Loop, ScriptedPeer, aborted, alone, applied, behind, trained


def test_an_epoch_is_accumulated_closed_and_announced() -> None:
    loop = alone()
    start = loop.params()
    assert loop.batch(0) is StepStatus.ACCUMULATED
    assert torch.equal(loop.params(), start)
    assert loop.opt.samples == 4
    assert loop.batch(1) is StepStatus.ALONE
    assert not torch.equal(loop.params(), start)
    assert (loop.opt.epoch, loop.opt.accepted_samples, loop.opt.samples) == (1, 8, 0)
    view = loop.peer.view()
    assert (view.epoch, view.state_hash) == (1, loop.opt.state_hash)


def test_the_swarms_average_is_what_is_applied_not_our_own() -> None:
    peer = ScriptedPeer(deque([applied(torch.full((44,), 0.25), 640.0)]))
    ours, reference = Loop(peer, "sgd"), Loop(ScriptedPeer(), "sgd")
    start = ours.params()
    ours.batch(0)
    peer.closing = True
    assert ours.batch(1) is StepStatus.APPLIED
    clip = 1.0 / torch.full((44,), 0.25).norm()
    torch.testing.assert_close(ours.params(), start - 0.05 * 0.25 * clip)
    assert ours.opt.accepted_samples == 640
    assert [phase for _, phase in peer.reports].count("averaging") == 1
    assert peer.announced[0] == (0, reference.opt.state_hash, 0)
    assert peer.announced[1] == (1, ours.opt.state_hash, 640)
    assert peer.contributions[0].state_hash == reference.opt.state_hash


def test_members_that_apply_the_same_bytes_have_the_same_state_hash() -> None:
    average = torch.linspace(-1, 1, 44)
    loops = [Loop(ScriptedPeer(deque([applied(average.clone())])), "adamw") for _ in range(2)]
    for number, loop in enumerate(loops):
        assert isinstance(loop.peer, ScriptedPeer)
        loop.peer.closing = True
        loop.batch(number)
    assert loops[0].opt.state_hash == loops[1].opt.state_hash
    assert loops[0].opt.state_hash != Loop(ScriptedPeer()).opt.state_hash


def test_an_aborted_round_keeps_what_was_accumulated() -> None:
    peer = ScriptedPeer(deque([aborted, applied()]))
    loop, steady = Loop(peer), alone()
    start = loop.params()
    loop.batch(0)
    peer.closing = True
    assert loop.batch(1) is StepStatus.ABORTED
    assert torch.equal(loop.params(), start)
    assert (loop.opt.epoch, loop.opt.samples) == (0, 8)
    peer.closing = True
    assert loop.batch(2) is StepStatus.APPLIED
    assert [c.weight for c in peer.contributions] == [8.0, 12.0]
    steady.opt = CollaborativeOptimizer(steady.model, steady.inner, peer=LocalPeer(ME, 12), target_batch_samples=12, rule=CLIPPED)
    assert [steady.batch(number) for number in range(3)][-1] is StepStatus.ALONE
    assert torch.equal(loop.params(), steady.params())


def test_a_batch_that_is_not_finite_is_dropped_and_the_contribution_begins_anew_after_it(caplog: pytest.LogCaptureFixture) -> None:
    peer = ScriptedPeer(deque([applied()]))
    loop, clean = Loop(peer), alone()
    loop.batch(7)
    loop.model(torch.full((4, 4), float("nan"))).sum().backward()
    outcome = loop.opt.step(samples=4)
    assert (outcome.status, outcome.samples, outcome.lost_samples) == (StepStatus.DROPPED, 0, 4)
    assert "dropped_batches=1 lost_samples=4 next_sample=8" in caplog.text
    assert (loop.opt.dropped_batches, loop.opt.next_sample) == (1, 8)
    loop.batch(0)
    peer.closing = True
    assert loop.batch(1) is StepStatus.APPLIED
    clean.batch(0)
    clean.batch(1)
    assert torch.equal(loop.params(), clean.params())
    (brought,) = peer.contributions
    assert (brought.first_sample, brought.weight) == (8, 8.0)
    assert loop.opt.next_sample == 0


def test_a_loss_that_is_not_finite_drops_the_batch_even_if_its_gradient_looks_well() -> None:
    loop = alone()
    for param in loop.model.parameters():
        param.grad = torch.ones_like(param)
    assert loop.opt.step(samples=4, loss=float("inf")).status is StepStatus.DROPPED
    assert loop.opt.samples == 0
    assert all(param.grad is None for param in loop.model.parameters())


def test_an_average_that_is_not_finite_closes_the_epoch_without_a_step() -> None:
    loop = Loop(ScriptedPeer(deque([applied(torch.full((44,), float("nan")))]), closing=True))
    start = loop.params()
    assert loop.batch(0) is StepStatus.SKIPPED
    assert torch.equal(loop.params(), start)
    assert (loop.opt.epoch, loop.opt.samples) == (1, 0)


def test_a_member_told_that_it_is_behind_takes_the_swarms_state_and_says_what_it_lost() -> None:
    ahead = trained(3)
    peer = ScriptedPeer(deque([behind]), state=ahead.opt.snapshot())
    loop = Loop(peer)
    loop.batch(0)
    peer.closing = True
    loop.model(torch.ones(4, 4)).sum().backward()
    outcome = loop.opt.step(samples=4)
    assert (outcome.status, outcome.epoch, outcome.lost_samples) == (StepStatus.CAUGHT_UP, 3, 8)
    assert torch.equal(loop.params(), ahead.params())
    assert loop.opt.state_hash == ahead.opt.state_hash
    assert loop.opt.samples == 0
    assert peer.announced[-1] == (3, ahead.opt.state_hash, 24)
    assert (8, "syncing") in peer.reports


def test_a_late_joiner_catches_up_before_it_contributes_and_goes_on_in_step() -> None:
    ahead = trained(3)
    loop = Loop(ScriptedPeer(state=ahead.opt.snapshot(), shown=SwarmView(epoch=Epoch(3), behind=True)), seed=99)
    peer = loop.peer
    assert isinstance(peer, ScriptedPeer)
    assert loop.batch(50) is StepStatus.CAUGHT_UP  # the gradient of the old state went with it
    assert loop.opt.samples == 0
    assert peer.announced == [(3, ahead.opt.state_hash, 24)]
    peer.answers.append(applied())
    for number in (6, 7):
        ahead.batch(number)
        peer.closing = number == 7
        loop.batch(number)
    assert loop.opt.state_hash == ahead.opt.state_hash


def test_a_member_seen_to_be_behind_fetches_before_its_next_micro_batch_counts() -> None:
    ahead, peer = trained(2), ScriptedPeer()
    loop = Loop(peer)
    loop.batch(0)
    peer.shown, peer.state = SwarmView(epoch=Epoch(2), behind=True), ahead.opt.snapshot()
    assert loop.batch(1) is StepStatus.CAUGHT_UP
    assert loop.opt.epoch == 2


def test_a_state_that_nobody_can_give_is_tried_again() -> None:
    peer = ScriptedPeer(state=RoundError("everybody is busy"), shown=SwarmView(epoch=Epoch(2), behind=True))
    loop = Loop(peer)
    start = loop.params()
    loop.model(torch.ones(4, 4)).sum().backward()
    outcome = loop.opt.step(samples=4)
    assert (outcome.status, outcome.reason) == (StepStatus.BEHIND, "everybody is busy")
    assert torch.equal(loop.params(), start)
    assert peer.announced == []
    peer.state = trained(2).opt.snapshot()
    assert loop.batch(1) is StepStatus.CAUGHT_UP


def test_a_member_with_other_bytes_in_the_same_epoch_offers_its_own_so_that_only_differences_are_fetched() -> None:
    peer = ScriptedPeer()
    loop = Loop(peer)
    loop.batch(0)
    peer.shown, peer.state = SwarmView(epoch=Epoch(0), behind=True), Loop(ScriptedPeer(), seed=1).opt.snapshot()
    own_hash = loop.opt.state_hash
    assert loop.batch(1) is StepStatus.CAUGHT_UP
    assert [snapshot.state_hash for snapshot in peer.published] == [own_hash]


def test_a_snapshot_is_made_only_when_wanted_and_is_the_state_announced() -> None:
    peer = ScriptedPeer()
    loop = Loop(peer)
    loop.batch(0)
    assert peer.published == []
    peer.wanted = True
    loop.batch(1)
    (snapshot,) = peer.published
    assert snapshot.state_hash == peer.announced[-1][1] == loop.opt.state_hash
    assert snapshot.damaged_piece() is None


def test_a_snapshot_does_not_change_when_training_goes_on() -> None:
    loop = trained(1)
    snapshot = loop.opt.snapshot()
    loop.batch(2)
    loop.batch(3)
    assert snapshot.damaged_piece() is None
    assert snapshot.state_hash != loop.opt.state_hash


def test_a_swarm_whose_state_does_not_fit_our_model_is_named_as_such() -> None:
    wide = Loop(LocalPeer(ME, 8), width=9)
    loop = Loop(ScriptedPeer(state=wide.opt.snapshot(), shown=SwarmView(epoch=Epoch(2), behind=True)))
    with pytest.raises(RemoteProtocolError, match="does not fit this model"):
        loop.batch(0)


def test_a_helper_joins_rounds_with_weight_zero_and_ends_with_the_same_state() -> None:
    trainer = Loop(ScriptedPeer(deque([applied()]), closing=True))
    trainer.batch(0)
    assert isinstance(trainer.peer, ScriptedPeer)
    average = trainer.peer.contributions[0].vector
    peer = ScriptedPeer(deque([applied(average)]))
    helper = Loop(peer)
    assert helper.opt.follow(0.0).status is StepStatus.WAITED
    peer.closing = peer.wanted = True
    assert helper.opt.follow(0.0).status is StepStatus.APPLIED
    assert peer.contributions[0].weight == 0
    assert not peer.contributions[0].vector.any()
    assert helper.opt.state_hash == trainer.opt.state_hash
    assert len(peer.published) == 1


def test_a_helper_that_is_behind_catches_up() -> None:
    ahead = trained(2)
    helper = Loop(ScriptedPeer(state=ahead.opt.snapshot(), shown=SwarmView(epoch=Epoch(2), behind=True)))
    assert helper.opt.follow(0.0).status is StepStatus.CAUGHT_UP
    assert helper.opt.state_hash == ahead.opt.state_hash


def test_a_stopping_peer_ends_the_loop_before_anything_else() -> None:
    loop = Loop(ScriptedPeer(stopped=True))
    with pytest.raises(PeerStopped):
        loop.batch(0)
    with pytest.raises(PeerStopped):
        loop.opt.follow(0.0)


@pytest.mark.parametrize(
    "answer",
    [
        lambda mine: RoundOutcome(RoundStatus.APPLIED, Epoch(mine.epoch + 1), mine.vector, 8.0),
        lambda mine: RoundOutcome(RoundStatus.APPLIED, mine.epoch, None, 8.0),
        lambda mine: RoundOutcome(RoundStatus.APPLIED, mine.epoch, mine.vector[1:], 8.0),
        lambda mine: RoundOutcome(RoundStatus.APPLIED, mine.epoch, mine.vector.double(), 8.0),
        lambda mine: RoundOutcome(RoundStatus.APPLIED, mine.epoch, mine.vector, 0.0),
    ],
)
def test_an_outcome_that_makes_no_sense_is_our_bug_and_is_not_applied(answer: Answer) -> None:
    loop = Loop(ScriptedPeer(deque([answer]), closing=True))
    start = loop.params()
    with pytest.raises(LocalProtocolError):
        loop.batch(0)
    assert torch.equal(loop.params(), start)


def test_users_mistakes_are_clear() -> None:
    model = torch.nn.Linear(2, 1)
    with pytest.raises(ConfigError, match="target_batch_samples"):
        CollaborativeOptimizer(model, torch.optim.SGD(model.parameters(), lr=0.1), peer=LocalPeer(ME, 8), target_batch_samples=0)
    wrong = CollaborativeOptimizer(model, torch.optim.SGD(model.parameters(), lr=0.1), peer=LocalPeer(ME, 8), target_batch_samples=9)
    with pytest.raises(ConfigError, match="at 8 samples, not 9"):
        wrong.synchronise()
    with pytest.raises(ConfigError, match="at least one sample"):
        alone().opt.step(samples=0)


def test_speed_counts_computing_and_not_averaging() -> None:
    now_s = 0.0
    speeds: list[float] = []

    class Watched(ScriptedPeer):
        def report(self, samples: int, samples_per_s: float, loss: float | None, phase: str) -> None:
            speeds.append(samples_per_s)

        def average(self, contribution: Contribution) -> RoundOutcome:
            nonlocal now_s
            now_s += 1000.0
            return super().average(contribution)

    peer = Watched(deque([applied(), applied()]))
    loop = Loop(peer)
    loop.opt = CollaborativeOptimizer(loop.model, loop.inner, peer=peer, target_batch_samples=8, clock=lambda: now_s)
    for number in range(4):
        peer.closing = number in (0, 2)
        now_s += 2.0  # 4 samples in 2 s
        loop.batch(number)
    assert speeds[-1] == pytest.approx(2.0)


AUDITED = SwarmView(audited=True)
OUTER = OuterSettings(inner_batch_samples=4)


def test_who_could_not_be_confirmed_does_not_begin_in_an_audited_run() -> None:
    loop = Loop(ScriptedPeer(shown=AUDITED))
    loop.opt = CollaborativeOptimizer(loop.model, loop.inner, peer=loop.peer, target_batch_samples=8, rule=OUTER)
    with pytest.raises(ConfigError, match="call replay_with before the first step"):
        loop.batch(0)
    assert loop.opt.samples == 0


@pytest.mark.parametrize("rule", [OUTER, replace(OUTER, feedback=FeedbackSettings("int4", 64)), GradientSettings()])
def test_who_records_what_it_does_trains_in_an_audited_run(rule: GradientSettings) -> None:
    loop = Loop(ScriptedPeer(shown=AUDITED))
    loop.opt = CollaborativeOptimizer(loop.model, loop.inner, peer=loop.peer, target_batch_samples=8, rule=rule)
    loop.opt.replay_with(lambda request, done: None)
    assert loop.batch(0) is StepStatus.ACCUMULATED
