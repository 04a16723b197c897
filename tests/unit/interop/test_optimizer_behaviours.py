"""Members that train together: what hivemind's `test_optimizer.py` asks of averaged gradients, of progress and of the whole optimizer.

There the optimizer runs with one peer. Here four members of unequal speed train over the simulated network, and a swarm of whole nodes runs
on virtual time. Stricter: after each epoch everybody's state has one hash.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import pytest
import torch

from peers.local import LocalPeer
from peers.simulation import run_simulated
from peers.training_peer import Contribution
from protocols.errors import RoundError
from swarm.optim import CollaborativeOptimizer, StepStatus
from tests.helpers.averaging_swarm import averaged, contribution, rules, same_bytes
from tests.helpers.group_roles import BringingSwarm
from tests.helpers.node_swarm import NodeSwarm, Trainee, state
from tests.helpers.scripted_peer import CLIPPED, MAKERS, ME, Loop, ScriptedPeer, aborted, applied

# Gradients


def averages(contributions: Sequence[Contribution], codec: str) -> list[torch.Tensor]:
    """What each member holds after a round over the network."""

    async def main() -> list[torch.Tensor]:
        async with BringingSwarm([mine.vector for mine in contributions], averaging=rules(codec, block_elems=10)) as swarm:
            states = {number: mine.state_hash for number, mine in enumerate(contributions)}
            weights = [mine.weight for mine in contributions]
            done = averaged(await swarm.round(epoch=contributions[0].epoch, weights=weights, states=states))
            assert {outcome.weight for outcome in done} == {sum(weights)}
            return [outcome.vector_D for outcome in done]

    return run_simulated(main())


def close_epoch(loops: Sequence[Loop], codec: str) -> None:
    """One round of all; the first call only finds out what each brings, and costs it nothing."""
    contributions = []
    for loop in loops:
        assert isinstance(loop.peer, ScriptedPeer)
        loop.peer.answers.append(aborted)
        loop.peer.closing = True
        assert loop.opt.follow(0.0).status is StepStatus.ABORTED
        contributions.append(loop.peer.contributions[-1])
    weight = sum(mine.weight for mine in contributions)
    for loop, average in zip(loops, averages(contributions, codec), strict=True):
        assert isinstance(loop.peer, ScriptedPeer)
        loop.peer.answers.append(applied(average, weight))
        loop.peer.closing = True
        assert loop.opt.follow(0.0).status is StepStatus.APPLIED


BATCHES = [1, 2, 3, 0]
"""Micro-batches of 4 samples that each member computes in an epoch; the last one is a helper."""


@pytest.mark.parametrize(("optimizer", "codec"), [*((name, "fp32") for name in MAKERS), ("adamw", "fp16"), ("momentum", "adaptive-int8")])
def test_three_epochs_of_unequal_members_are_those_of_one_with_all_the_data(optimizer: str, codec: str) -> None:
    """`test_grad_averager`, `test_state_averager` and `test_optimizer`: eight sets of options, three epochs."""
    loops, target = [Loop(ScriptedPeer(deque()), optimizer) for _ in BATCHES], 4 * sum(BATCHES)
    lone = Loop(LocalPeer(ME, target), optimizer)
    lone.opt = CollaborativeOptimizer(lone.model, lone.inner, peer=lone.peer, target_batch_samples=target, rule=CLIPPED)
    number = 0
    for epoch in range(3):
        for loop, count in zip(loops, BATCHES, strict=True):
            for _ in range(count):
                assert loop.batch(number) is StepStatus.ACCUMULATED
                lone.batch(number)
                number += 1
        close_epoch(loops, codec)
        assert len({loop.opt.state_hash for loop in loops}) == 1
        assert {(loop.opt.epoch, loop.opt.accepted_samples) for loop in loops} == {(epoch + 1, target * (epoch + 1))}
        assert lone.opt.epoch == epoch + 1
    assert number == 3 * sum(BATCHES)
    torch.testing.assert_close(loops[0].params(), lone.params(), rtol=0, atol=1e-6 if codec == "fp32" else 2e-2)


@pytest.mark.parametrize("odd", range(4))
@pytest.mark.parametrize("size_elems", [299, 301, 10, 1000])
def test_a_member_whose_vector_has_another_size_fails_and_the_others_average(odd: int, size_elems: int) -> None:
    """`test_grad_averager_wrong_shape`; with the right size it is in again."""

    async def main() -> None:
        right = [contribution(number, 300) for number in range(4)]
        swarm = BringingSwarm([*right[:odd], contribution(odd, size_elems), *right[odd + 1 :]])
        async with swarm:
            results = await swarm.round()
            assert isinstance(results[odd], RoundError)
            done = averaged(results)
            assert len(done) == 3
            assert same_bytes(done)
            exact_D = torch.stack([right[number].double() for number in range(4) if number != odd]).mean(dim=0)
            torch.testing.assert_close(done[0].vector_D.double(), exact_D, rtol=0, atol=1e-6)
            swarm.brought = right
            assert {outcome.weight for outcome in averaged(await swarm.round(epoch=1))} == {4.0}

    run_simulated(main(), seed=1, limit_s=120)


# Progress


TARGET, SPEEDS = 500, [1, 2, 3, 4]
"""Samples of an epoch, and of each member in a tenth of a second: five seconds an epoch."""


async def epoch_s(swarm: NodeSwarm, member: Trainee, epochs: int) -> float:
    """How long an epoch takes, on average over the next ones that are whole."""
    await swarm.until(lambda reached=member.epoch: member.epoch > reached)  # type: ignore[misc]
    reached = member.epoch + epochs
    return await swarm.until(lambda: member.epoch >= reached) / epochs


def test_samples_used_are_those_that_were_asked_for_and_epochs_follow_the_speed_of_the_swarm() -> None:
    """`test_progress_tracker` and `test_optimizer`: members of different speed, one of whom comes late, is fast and leaves; between 1.0 and
    1.2 times the target in each epoch. Everybody sees everybody's speed.
    """

    async def main() -> None:
        async with NodeSwarm(TARGET) as swarm:
            members = [swarm.add(number, held=state(0), samples_per_tick=speed) for number, speed in enumerate(SPEEDS)]
            await swarm.until(lambda: members[0].epoch >= 2)
            before_s = await epoch_s(swarm, members[0], 2)
            fast = swarm.add(4, samples_per_tick=6)
            await swarm.until(lambda: members[0].peer in {peer for outcome in fast.applied for peer in outcome.contributors})
            with_fast_s = await epoch_s(swarm, members[0], 3)
            seen = {shown.peer: shown.samples_per_s for shown in members[0].handle.view().members}
            assert sorted(seen, key=lambda peer: seen[peer]) == [member.peer for member in (*members, fast)]
            swarm.leave(fast)
            await swarm.until(lambda: bool(fast.running and fast.running.done()))
            after_s = await epoch_s(swarm, members[0], 2)
            assert 0.5 <= with_fast_s / before_s <= 0.95
            assert 1.05 <= after_s / with_fast_s <= 2.0
            used = [outcome.weight / TARGET for outcome in members[0].applied]
            assert len(used) >= 10
            assert 1.0 <= sum(used) / len(used) <= 1.2
            lowest, *others = sorted(used)
            assert lowest >= 0.5, "who leaves takes what it has counted along, at worst that of one epoch"
            assert all(1.0 <= one <= 1.2 for one in others), str(used)
            assert members[0].held is not None
            assert members[0].held.manifest.accepted_samples == pytest.approx(sum(used) * TARGET, abs=len(used))

    run_simulated(main(), limit_s=300)


@pytest.mark.parametrize("when", ["before they begin", "while they compute", "while they average"])
def test_a_swarm_that_is_told_to_stop_ends_cleanly_and_at_once(when: str) -> None:
    """`test_optimizer` ends with a shutdown of everybody; here nothing of them is left behind."""

    async def main() -> None:
        async with NodeSwarm(TARGET) as swarm:
            members = [swarm.add(number, held=state(0), samples_per_tick=speed) for number, speed in enumerate(SPEEDS)]
            if when == "while they compute":
                await swarm.pass_time(3.0)
            elif when == "while they average":
                await swarm.until(lambda: any(member.node._averager and member.node._averager._rounds.engaged for member in members))
            for member in members:
                swarm.leave(member)
            assert await swarm.until(lambda: all(member.running and member.running.done() for member in members)) < 5
            for member in members:
                assert member.running is not None
                assert member.running.exception() is None
                assert member.handle.stopping()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    run_simulated(main(), limit_s=60)
