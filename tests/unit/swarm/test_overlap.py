"""Rounds that run beside computing: nothing waits, nothing is counted twice, nothing is lost."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
import torch

from peers.local import LocalPeer
from peers.training_peer import PeerStopped
from protocols.errors import LocalProtocolError
from swarm.optim import CollaborativeOptimizer, GradientSettings, OuterSettings, StepStatus
from tests.helpers.scripted_peer import ME, Answer, Loop, ScriptedPeer, aborted, applied, behind

RULES = (GradientSettings(overlap=True), OuterSettings(inner_batch_samples=4, overlap=True))
every_rule = pytest.mark.parametrize("rule", RULES)


def overlapping(rule: GradientSettings, *answers: Answer) -> tuple[Loop, ScriptedPeer]:
    peer = ScriptedPeer(deque(answers))
    peer.slow = True
    loop = Loop(peer)
    loop.opt = CollaborativeOptimizer(loop.model, loop.inner, peer=peer, target_batch_samples=8, rule=rule, clock=lambda: 0.0)
    return loop, peer


@every_rule
def test_computing_goes_on_while_the_round_runs_and_its_result_is_applied_late(rule: GradientSettings) -> None:
    loop, peer = overlapping(rule, applied())
    loop.batch(0)
    peer.closing = True
    assert loop.batch(1) is StepStatus.ACCUMULATED
    assert (peer.contributions[0].weight, peer.contributions[0].epoch) == (8.0, 0)
    assert (loop.opt.epoch, loop.opt.sampling_epoch, loop.opt.next_sample) == (0, 1, 0)
    for number in (2, 3):
        assert loop.batch(number) is StepStatus.ACCUMULATED
        assert peer.reports[-1][0] == 8, "to the swarm it is in the old epoch still, with what it brought"
    assert loop.opt.next_sample == 8
    hash_before = loop.opt.state_hash
    peer.end_round()
    assert loop.batch(4) is StepStatus.APPLIED
    assert (loop.opt.epoch, loop.opt.sampling_epoch, loop.opt.samples, loop.opt.next_sample) == (1, 1, 12, 12)
    assert loop.opt.state_hash != hash_before
    assert peer.announced[-1][0] == 1
    assert peer.reports[-1][0] == 12
    assert len(peer.contributions) == 1


@every_rule
def test_a_round_that_fails_is_tried_again_with_the_same_contribution(rule: GradientSettings) -> None:
    loop, peer = overlapping(rule, aborted, applied())
    peer.closing = True
    loop.batch(0)
    loop.batch(1)
    peer.end_round()
    assert loop.batch(2) is StepStatus.ABORTED
    assert peer.reports[-1] == (12, "training")
    peer.closing = True
    assert loop.batch(3) is StepStatus.ACCUMULATED
    assert peer.contributions[1] is peer.contributions[0]
    peer.end_round()
    assert loop.batch(4) is StepStatus.APPLIED
    assert (loop.opt.epoch, loop.opt.samples) == (1, 16)


@every_rule
def test_who_falls_behind_while_its_round_runs_hears_of_it_at_the_rounds_end(rule: GradientSettings) -> None:
    ahead, _ = overlapping(rule)
    loop, peer = overlapping(rule, behind)
    peer.state = ahead.opt.snapshot()
    peer.closing = True
    loop.batch(0)
    peer.shown = replace(peer.shown, behind=True)
    assert loop.batch(1) is StepStatus.ACCUMULATED, "there are never two things at once under way for one trainer"
    peer.end_round()
    loop.batch(2)
    assert (loop.opt.sampling_epoch, loop.opt.samples) == (0, 0)
    assert torch.equal(loop.params(), ahead.params())


@every_rule
def test_a_helper_waits_for_the_rounds_end(rule: GradientSettings) -> None:
    loop, peer = overlapping(rule, applied(weight=24.0))
    peer.slow = False
    peer.closing = True
    outcome = loop.opt.follow()
    assert (outcome.status, outcome.epoch, outcome.weight) == (StepStatus.APPLIED, 1, 24.0)
    assert peer.contributions[0].weight == 0


@every_rule
def test_a_peer_that_stops_ends_a_round_that_runs(rule: GradientSettings) -> None:
    loop, peer = overlapping(rule)
    peer.closing = True
    loop.batch(0)
    assert peer.running is not None
    peer.running.set_exception(PeerStopped("the peer is stopping"))
    with pytest.raises(PeerStopped):
        loop.batch(1)


def test_what_has_been_computed_counts_where_a_round_failed_and_its_members_are_gone() -> None:
    """Else the swarm would wait for ever for the samples of those who do not come back."""
    loop, peer = overlapping(RULES[0], aborted)
    peer.closing = True
    loop.batch(0)
    loop.batch(1)
    assert peer.reports[-1][0] == 4
    peer.end_round()
    for number in (2, 3):
        loop.batch(number)
    assert peer.reports[-1][0] == 16


@every_rule
def test_nobody_claims_more_samples_than_others_would_believe(rule: GradientSettings) -> None:
    loop, peer = overlapping(rule)
    peer.closing = True
    statuses = [loop.batch(number) for number in range(12)]
    assert statuses[1:9] == [StepStatus.ACCUMULATED] * 8, "four targets of 8 samples"
    assert statuses[9:] == [StepStatus.SURPLUS] * 3
    assert (loop.opt.samples, loop.opt.next_sample) == (32, 32)


def test_no_state_is_taken_over_while_a_round_runs() -> None:
    loop, peer = overlapping(RULES[1])
    before = loop.opt.snapshot()
    peer.closing = True
    loop.batch(0)
    with pytest.raises(LocalProtocolError, match="while a round runs"):
        loop.opt.load_snapshot(before)


def test_what_the_swarm_holds_can_be_measured_while_the_model_is_elsewhere() -> None:
    loop, _ = overlapping(RULES[1])
    before = loop.params()
    loop.batch(0)
    after = loop.params()
    with loop.opt.shared_parameters():
        assert torch.equal(loop.params(), before)
    assert torch.equal(loop.params(), after)
    assert not torch.equal(before, after)


def test_targets_may_rise_from_epoch_to_epoch() -> None:
    peer = LocalPeer(ME, lambda epoch: 4 * (1 + epoch))
    loop = Loop(peer)
    loop.opt = CollaborativeOptimizer(loop.model, loop.inner, peer=peer, target_batch_samples=lambda epoch: 4 * (1 + epoch))
    closed = [number for number in range(6) if loop.batch(number) is StepStatus.ALONE]
    assert closed == [0, 2, 5], "after 4 samples, 8 more, 12 more"
