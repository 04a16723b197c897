"""Error feedback: nothing that a codec or a reducer leaves out is lost, only late."""

from __future__ import annotations

import math
from collections import deque

import pytest
import torch

from protocols.aggregation.mean import weighted_mean
from protocols.codecs import codec_named
from protocols.errors import ConfigError
from swarm.optim import CollaborativeOptimizer, GradientSettings, OuterSettings, StepStatus
from swarm.optim.feedback import ErrorFeedback
from swarm.optim.settings import FeedbackSettings
from tests.helpers.scripted_peer import Loop, ScriptedPeer, aborted, applied

ELEMS, BLOCK = 3 * 4096, 8192
ATOL = 1e-5


def feedback(codec: str = "topk64", decay: float = 1.0, step_ahead: float = 0.0) -> ErrorFeedback:
    return FeedbackSettings(codec, BLOCK, decay, step_ahead).make()


def vector(seed: int) -> torch.Tensor:
    return torch.randn(ELEMS, generator=torch.Generator().manual_seed(seed))


def encoded_again(codec: str, sent_F: torch.Tensor) -> torch.Tensor:
    """What a reducer decodes."""
    found = torch.empty_like(sent_F)
    for start in range(0, ELEMS, BLOCK):
        part = sent_F[start : start + BLOCK]
        codec_named(codec).decode_into(codec_named(codec).encode(part), found[start : start + BLOCK])
    return found


@pytest.mark.parametrize("codec", ["topk64", "topk128", "int4", "e3m0", "rd20", "rd100"])
def test_what_is_sent_and_what_is_kept_add_up(codec: str) -> None:
    member = feedback(codec)
    total_sent, total_own = torch.zeros(ELEMS), torch.zeros(ELEMS)
    for number in range(5):
        own = vector(number)
        sent = member.compress(0, own)
        assert torch.equal(encoded_again(codec, sent), sent), "it arrives as it was made"
        member.settle(0, torch.where(sent == 0, torch.ones(()), sent), included=True)
        total_sent += sent
        total_own += own
    assert torch.allclose(total_sent + member.kept[0], total_own, rtol=0, atol=ATOL)


def test_what_is_in_the_model_already_does_not_come_twice() -> None:
    """Decay and all: whoever steps ahead sends the same, for the same steps of its own, as whoever does not."""
    plain, ahead = feedback(decay=0.9), feedback(decay=0.9, step_ahead=0.25)
    assert (plain.ahead(0), ahead.ahead(0)) == (None, None)
    for number in range(5):
        own = vector(number)
        held_F = ahead.ahead(0)
        sent = plain.compress(0, own)
        assert torch.allclose(ahead.compress(0, own if held_F is None else own + held_F), sent, rtol=0, atol=ATOL)
        for member in (plain, ahead):
            member.settle(0, sent, included=True)
    held_F = ahead.ahead(0)
    assert held_F is not None
    assert torch.allclose(held_F, plain.kept[0] / 4, rtol=0, atol=ATOL)


def test_what_a_reducer_drops_stays_with_those_who_sent_it() -> None:
    """Four members send 64 of each 4096; a reducer returns 64 of the up to 256 that it has been sent."""
    members = [feedback() for _ in range(4)]
    applied, wanted = torch.zeros(ELEMS), torch.zeros(ELEMS)
    for number in range(6):
        own = [vector(10 * number + index) for index in range(4)]
        wanted += weighted_mean(own, [1.0] * 4)
        sent = [member.compress(0, each) for member, each in zip(members, own, strict=True)]
        exact = weighted_mean(sent, [1.0] * 4)
        kept = exact.abs() >= exact.abs().kthvalue(ELEMS - 3 * 64 + 1).values
        average = torch.where(kept, exact, torch.zeros(()))
        assert int((average != 0).sum()) < int((exact != 0).sum())
        applied += average
        for member in members:
            member.settle(0, average, included=True)
    late = weighted_mean([member.kept[0] for member in members], [1.0] * 4)
    assert torch.allclose(applied + late, wanted, rtol=0, atol=ATOL)


def test_a_round_without_us_changes_nothing() -> None:
    member = feedback()
    member.settle(0, vector(9), included=True)  # nothing was sent
    first = member.compress(0, vector(1))
    member.settle(0, first, included=True)
    before = member.kept[0].clone()
    member.compress(0, vector(2))
    member.settle(0, vector(3), included=False)
    assert torch.equal(member.kept[0], before)
    member.compress(0, vector(2))
    member.forget_sent()
    member.settle(0, vector(3), included=True)
    assert torch.equal(member.kept[0], before)


def test_making_a_contribution_again_does_not_count_what_is_kept_twice() -> None:
    member = feedback()
    sent = member.compress(0, vector(1))
    member.settle(0, sent, included=True)
    once = member.compress(0, vector(2))
    assert torch.equal(member.compress(0, vector(2)), once)


def test_things_that_take_turns_have_residuals_of_their_own_and_old_ones_fade() -> None:
    member = feedback(decay=0.5)
    for key in (0, 1):
        own = vector(key)
        sent = member.compress(key, own)
        member.settle(key, sent, included=True)
        assert torch.allclose(member.kept[key], own - sent, rtol=0, atol=ATOL)
    left = member.kept[0].clone()
    sent = member.compress(0, torch.zeros(ELEMS))
    member.settle(0, sent, included=True)
    assert torch.allclose(member.kept[0] + sent, left / 2, rtol=0, atol=ATOL)


def test_contributions_are_not_written_to() -> None:
    member, own = feedback(), vector(1)
    before = own.clone()
    member.compress(0, own)
    assert torch.equal(own, before)


@pytest.mark.parametrize("decay", [0.0, -0.1, 1.5])
def test_a_decay_that_makes_no_sense_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError):
        FeedbackSettings("topk64", 4096, decay)


@pytest.mark.parametrize("step_ahead", [-0.1, 1.5])
def test_steps_ahead_that_make_no_sense_are_refused(step_ahead: float) -> None:
    with pytest.raises(ConfigError, match="step_ahead"):
        FeedbackSettings("topk64", 4096, 0.9, step_ahead)


def test_only_the_outer_rule_without_mixing_steps_ahead() -> None:
    ahead = FeedbackSettings("topk64", 4096, 0.9, 0.5)
    with pytest.raises(ConfigError, match="mixing"):
        OuterSettings(feedback=ahead, mixing=0.5)
    loop = Loop(ScriptedPeer())
    with pytest.raises(ConfigError, match="gradient rule"):
        CollaborativeOptimizer(loop.model, loop.inner, peer=loop.peer, target_batch_samples=8, rule=GradientSettings(feedback=ahead))


def test_a_contribution_that_was_never_sent_is_not_settled() -> None:
    """It was made, its round failed, what it was made of was dropped, and the next round is one of nothing."""
    loop = Loop(ScriptedPeer(deque([aborted, applied()])))
    rule = OuterSettings(inner_batch_samples=4, feedback=FeedbackSettings("topk64", 4096))
    loop.opt = CollaborativeOptimizer(loop.model, loop.inner, peer=loop.peer, target_batch_samples=8, rule=rule, clock=lambda: 0.0)
    assert isinstance(loop.peer, ScriptedPeer)
    loop.peer.closing = True
    assert loop.batch(0) is StepStatus.ABORTED
    loop.peer.closing = True
    assert loop.batch(1, scale=math.nan) is StepStatus.APPLIED
    feedback = loop.opt._outgoing.feedback
    assert feedback is not None
    assert feedback.kept == {}
