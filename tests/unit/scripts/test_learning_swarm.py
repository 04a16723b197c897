"""Whole nodes that learn by the outer rule on virtual time: they go on when members vanish, networks fail, and targets rise."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import torch

from peers.averaging.trust_rules import EPOCHS_WORTH, TrustRules
from peers.simulation import run_simulated
from protocols.runspec import OptimizerSection
from scripts.learning.learner import Learner
from scripts.learning.swarm import Learning, LearningSwarm
from scripts.learning.task import OUTER, small_task
from swarm.models.vocabulary import BYTE_VOCABULARY
from swarm.optim import FeedbackSettings, GradientSettings
from swarm.optim.inner import InnerMemory, inner_optimizer, kind_of
from tests.helpers.attack_scene import time_passes

MEMBERS = 3
TARGET = 12 * MEMBERS
LIMIT_S = 600.0


def task(**changes: object) -> Learning:
    learning = replace(small_task(target_samples=TARGET, until_samples=10**9), step_s=1.0)
    return replace(learning, **changes)  # type: ignore[arg-type]


class Scene(LearningSwarm):
    """A swarm to which a test does things."""

    async def play(self, script: Callable[[Scene], Awaitable[None]]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._count):
                self._join(tasks)
            await self.until(lambda: self._accepted() >= TARGET)
            await script(self)
            for member in list(self.members):
                self._end(member)

    async def until(self, condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
        async with asyncio.timeout(limit_s):
            while not condition():
                await time_passes(0.05)

    def vanish(self, member: Learner) -> None:
        """Without a word, and for good."""
        self.cut(member)
        self._end(member)

    def cut(self, member: Learner) -> None:
        self._network.partition({member.peer}, {other.peer for other in self.members} - {member.peer})

    def heal(self) -> None:
        self._network.heal()

    def bans(self) -> int:
        return sum(len(member.node._settings.ledger.bans) for member in self.members)


def play(learning: Learning, members: int, script: Callable[[Scene], Awaitable[None]]) -> None:
    torch.set_num_threads(1)
    scene = Scene(learning, members)
    run_simulated(scene.play(script), 0, limit_s=10 * LIMIT_S)


def test_members_that_learn_hold_the_same_bytes() -> None:
    async def script(scene: Scene) -> None:
        def agree() -> bool:
            return len({member.optimizer.epoch for member in scene.members}) == 1 and scene.members[0].optimizer.epoch >= 3

        await scene.until(agree)
        assert len({member.optimizer.state_hash for member in scene.members}) == 1
        flat = [member.parameters() for member in scene.members]
        assert all(torch.equal(each, flat[0]) for each in flat)

    play(task(), MEMBERS, script)


@pytest.mark.parametrize("codec", ["topk64", "rd20"])
def test_members_that_send_a_fifth_of_a_bit_hold_the_same_bytes_and_learn(codec: str) -> None:
    losses: list[float] = []

    async def script(scene: Scene) -> None:
        async with asyncio.TaskGroup() as tasks:
            await scene.until(lambda: min(member.optimizer.epoch for member in scene.members) >= 2)
            scene._join(tasks)  # fetches a state, and keeps residuals of its own from then on
            newcomer = scene.members[-1]
            await scene.until(lambda: newcomer.optimizer.epoch >= 6 and len({member.optimizer.epoch for member in scene.members}) == 1)
            assert len({member.optimizer.state_hash for member in scene.members}) == 1
            assert newcomer.optimizer._outgoing.feedback is not None
            assert newcomer.optimizer._outgoing.feedback.kept
            scene._measure(newcomer)
            losses.append(scene.found.loss)
            scene._end(newcomer)

    feedback = FeedbackSettings(codec, task().block_elems, 0.9)
    play(task(codec=codec, rule=replace(OUTER, outer_learning_rate=2.0, momentum=0.0, feedback=feedback)), MEMBERS, script)
    assert losses[0] < 0.9 * math.log(BYTE_VOCABULARY)


def test_the_others_go_on_when_half_of_them_vanish_in_a_round() -> None:
    async def script(scene: Scene) -> None:
        await scene.until(lambda: all(member.optimizer.averaging for member in scene.members))
        scene.vanish(scene.members[0])
        (left,) = scene.members
        epoch = left.optimizer.epoch
        await scene.until(lambda: left.optimizer.epoch >= epoch + 2)

    play(replace(task(), link=replace(task().link, bandwidth_bytes_per_s=6e5)), 2, script)


@pytest.mark.parametrize("rule", [OUTER, GradientSettings(overlap=True)])
def test_nobody_is_banned_for_what_it_computed_while_the_network_was_down(rule: GradientSettings) -> None:
    async def script(scene: Scene) -> None:
        await scene.until(lambda: all(member.optimizer.averaging for member in scene.members))
        for member in scene.members:
            scene.cut(member)
        await time_passes(90.0)
        scene.heal()
        epoch = max(member.optimizer.epoch for member in scene.members)
        await scene.until(lambda: min(member.optimizer.epoch for member in scene.members) >= epoch + 2)
        assert scene.bans() == 0
        assert len(scene.members) == MEMBERS

    trust = TrustRules(most_samples=EPOCHS_WORTH * TARGET, probation_epochs=0)
    play(task(rule=rule, trust=trust), MEMBERS, script)


def test_newcomers_fetch_the_state_and_count() -> None:
    async def script(scene: Scene) -> None:
        async with asyncio.TaskGroup() as tasks:
            scene._join(tasks)
            newcomer = scene.members[-1]
            await scene.until(lambda: newcomer.optimizer.epoch >= 2 and newcomer.computed_samples > TARGET)
            assert newcomer.optimizer.state_hash in {member.optimizer.state_hash for member in scene.members[:-1]}
            scene._end(newcomer)

    play(task(), MEMBERS, script)


def test_members_that_save_memory_train_with_those_that_do_not() -> None:
    """One with fp32 states, one with 8 bits, one whose states are in main memory: all hold the same anchor."""
    memories = [InnerMemory(), InnerMemory("8bit"), InnerMemory(offload=True)]
    made: list[torch.optim.Optimizer] = []

    def inner(model: torch.nn.Module) -> torch.optim.Optimizer:
        made.append(inner_optimizer(OptimizerSection(learning_rate=4e-3), model.parameters(), memories[len(made)]))
        return made[-1]

    async def script(scene: Scene) -> None:
        def agree() -> bool:
            return len({member.optimizer.epoch for member in scene.members}) == 1 and scene.members[0].optimizer.epoch >= 4

        await scene.until(agree)
        assert len({member.optimizer.state_hash for member in scene.members}) == 1
        assert all(member.computed_samples > TARGET for member in scene.members)
        assert all(optimizer.state for optimizer in made)

    play(task(inner_optimizer=inner), MEMBERS, script)
    assert [kind_of(optimizer) for optimizer in made] == ["AdamW", "EightBitAdamW", "AdamW"]
