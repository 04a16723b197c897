"""What a member alone has survives its process: its model between two averages, its inner optimizer, what few bytes left out."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peers.state_snapshot import StateSnapshot
from protocols.ids import Epoch
from swarm.checkpoint.store import CheckpointStore
from swarm.optim import CollaborativeOptimizer, FeedbackSettings, GradientSettings, OuterSettings, StepStatus
from swarm.optim.state import StateMismatch
from tests.helpers.scripted_peer import Loop, ScriptedPeer, applied

FEEDBACK = FeedbackSettings("topk64", 4096)
OUTER = OuterSettings(inner_batch_samples=4, feedback=FEEDBACK)
AHEAD = replace(OUTER, feedback=FeedbackSettings("topk64", 4096, 0.9, 0.5))


def loop_of(rule: GradientSettings = OUTER, optimizer: str = "adamw", width: int = 6) -> Loop:
    loop = Loop(ScriptedPeer(deque([applied()] * 5)), optimizer, width=width)
    loop.opt = CollaborativeOptimizer(loop.model, loop.inner, peer=loop.peer, target_batch_samples=8, rule=rule, clock=lambda: 0.0)
    return loop


def trained(rule: GradientSettings = OUTER) -> Loop:
    loop = loop_of(rule)
    for number in range(5):
        assert isinstance(loop.peer, ScriptedPeer)
        loop.peer.closing = number in (1, 3)
        loop.batch(number)
    assert loop.opt.epoch == 2
    return loop


def flat(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors.values()]).clone()


def own_of(loop: Loop) -> StateSnapshot:
    own = loop.opt.own_snapshot()
    assert own is not None
    return own


@pytest.mark.parametrize("rule", [OUTER, AHEAD])
def test_after_a_restart_a_member_goes_on_to_the_bit_where_it_was(rule: OuterSettings, tmp_path: Path) -> None:
    before = trained(rule)
    shared, own = CheckpointStore(tmp_path), CheckpointStore(tmp_path).beside("own")
    shared.save(before.opt.snapshot())
    own.save(own_of(before))
    after = loop_of(rule)
    for store, load in ((shared, after.opt.load_snapshot), (own, after.opt.load_own)):
        kept = store.newest()
        assert kept is not None
        load(kept)
    assert torch.equal(after.params(), before.params())
    assert (after.opt.samples, after.opt.next_sample, after.opt.epoch) == (before.opt.samples, before.opt.next_sample, before.opt.epoch)
    for number in range(5, 9):
        for loop in (before, after):
            assert isinstance(loop.peer, ScriptedPeer)
            loop.peer.closing = number == 7
            assert loop.batch(number) in (StepStatus.ACCUMULATED, StepStatus.APPLIED)
        assert torch.equal(after.params(), before.params())
    assert after.opt.state_hash == before.opt.state_hash


def test_with_a_later_shared_state_only_the_inner_optimizer_is_taken_over() -> None:
    before, later = trained(), trained()
    assert isinstance(later.peer, ScriptedPeer)
    later.peer.closing = True
    later.batch(9)
    after = loop_of()
    after.opt.load_snapshot(later.opt.snapshot())
    shared = after.params()
    after.opt.load_own(own_of(before))
    assert torch.equal(after.params(), shared)
    assert (after.opt.samples, after.opt.next_sample) == (0, 0)
    assert after.opt._outgoing.feedback is not None
    assert after.opt._outgoing.feedback.kept == {}, "it may have been sent meanwhile"
    first = next(iter(after.model.parameters()))
    assert torch.equal(after.inner.state[first]["exp_avg"], before.inner.state[next(iter(before.model.parameters()))]["exp_avg"])


def test_the_gradient_rule_has_nothing_of_its_own_but_feedback() -> None:
    assert trained(GradientSettings()).opt.own_snapshot() is None
    assert [name for name, _ in own_of(trained(GradientSettings(feedback=FEEDBACK))).tensors()] == ["feedback/0"]


def test_what_belongs_to_something_else_is_refused_and_changes_nothing() -> None:
    own = own_of(trained())
    wider = loop_of(width=7)
    before = wider.params()
    with pytest.raises(StateMismatch, match="does not fit"):
        wider.opt.load_own(own)
    assert torch.equal(wider.params(), before)
    with pytest.raises(StateMismatch, match="another sync rule, optimizer"):
        loop_of(optimizer="sgd").opt.load_own(own)
    with pytest.raises(StateMismatch, match="another sync rule"):
        loop_of(GradientSettings(feedback=FEEDBACK)).opt.load_own(own)
    damaged = [(name, torch.full_like(tensor, torch.nan) if tensor.dim() else tensor) for name, tensor in own.tensors()]
    with pytest.raises(StateMismatch, match="not finite"):
        loop_of().opt.load_own(StateSnapshot.of(damaged, epoch=Epoch(2), accepted_samples=0, meta=dict(own.manifest.meta)))


def test_what_a_member_was_ahead_by_goes_with_the_residuals() -> None:
    """Kept where the member itself catches up, dropped with what came from disk: then the model is where the anchor is."""
    before = trained(AHEAD)
    anchor = flat(before.opt._rule.shared.trained)
    before.opt.take_over(before.opt.snapshot())
    feedback = before.opt._outgoing.feedback
    assert feedback is not None
    held_F = feedback.ahead(0)
    assert held_F is not None
    assert float(held_F.abs().max()) > 0
    assert torch.equal(before.params(), anchor - held_F)
    after = loop_of(AHEAD)
    after.opt.load_snapshot(before.opt.snapshot())
    after.opt.load_own(own_of(before))
    assert torch.equal(after.params(), before.params())
    after.opt.take_over(before.opt.snapshot())
    assert torch.equal(after.params(), anchor)


def test_residuals_from_disk_are_not_sent_again_where_the_swarm_has_gone_on() -> None:
    before = trained()
    for goes_on in (False, True):
        after = loop_of()
        after.opt.load_snapshot(before.opt.snapshot())
        after.opt.load_own(own_of(before))
        feedback = after.opt._outgoing.feedback
        assert feedback is not None
        assert feedback.kept
        if goes_on:
            after.opt.take_over(before.opt.snapshot())
        assert bool(feedback.kept) is not goes_on
