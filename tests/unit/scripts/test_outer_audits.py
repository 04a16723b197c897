"""Whole nodes that learn by the outer rule and audit each other: who lies about its contribution or its inner state is thrown out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
import torch

from peers.averaging.trust_rules import EPOCHS_WORTH, TrustRules
from peers.expulsion import Expelled
from peers.inner_shelf import InnerShelf
from peers.simulation import run_simulated
from peers.state_snapshot import StateSnapshot
from peers.training_peer import InnerStates, Replayed, ReplayRequest
from protocols.ids import Epoch
from protocols.record_keeping import seal_presence
from protocols.trust.offences import Offence
from scripts.learning.learner import Learner
from scripts.learning.swarm import Learning
from scripts.learning.task import OUTER, small_task
from swarm.optim import GradientSettings
from swarm.optim.inner_record import InnerRecord
from swarm.optim.outer_rule import OuterRule
from tests.unit.scripts.test_learning_swarm import Scene

MEMBERS = 5
TARGET = 12 * MEMBERS
LIMIT_S = 3000.0
TRUST = TrustRules(most_samples=EPOCHS_WORTH * TARGET, probation_epochs=0, auditors=2)


def task(rule: GradientSettings = OUTER) -> Learning:
    return replace(small_task(target_samples=TARGET, until_samples=10**9, rule=rule), step_s=1.0, trust=TRUST)  # type: ignore[arg-type]


def record_of(member: Learner) -> InnerRecord:
    rule = member.optimizer._rule
    assert isinstance(rule, OuterRule)
    assert rule._record is not None
    return rule._record


class Poisoner(InnerRecord):
    """Commits to an inner state that no samples lead to, and goes on from it."""

    def end(self, epoch: Epoch) -> InnerStates:
        if epoch >= 2:
            for kept in self._own.optimizer.state.values():
                kept["exp_avg"].add_(0.05)
        return super().end(epoch)


class Swapper(InnerRecord):
    """Says that it began with another state than its last contribution ended with."""

    def end(self, epoch: Epoch) -> InnerStates:
        said = super().end(epoch)
        if epoch < 3 or said.start is None:
            return said
        other = StateSnapshot.of([("optim/x/exp_avg", torch.ones(3))], epoch=epoch, accepted_samples=0, meta={})
        return replace(said, start=other)


class Hider(InnerShelf):
    """Shows its own inner states to nobody."""

    def find(self, root: bytes) -> StateSnapshot | None:
        return next((kept for kept in self._borrowed if kept.state_hash == root), None)


class Lost(InnerShelf):
    """As `happens` when somebody asks for a state that we have shown to nobody yet."""

    happens: Callable[[], None]

    def find(self, root: bytes) -> StateSnapshot | None:
        if any(own.snapshot.state_hash == root for own in self._own):
            self.happens()
        return super().find(root)


def poisons(member: Learner) -> None:
    record_of(member).__class__ = Poisoner


class Forger(InnerShelf):
    """Says of every state that its last contribution ended with it."""

    def plan_of(self, root: bytes) -> bytes:
        return super().plan_of(root) or next(reversed(self._plans.values()))


class Inventor(InnerShelf):
    """Says of every state that it is of a round that nobody was in."""

    def plan_of(self, root: bytes) -> bytes:
        return super().plan_of(root) or bytes(32)


def swaps(member: Learner) -> None:
    record_of(member).__class__ = Swapper
    member.node._inner.__class__ = Forger


def invents(member: Learner) -> None:
    record_of(member).__class__ = Swapper
    member.node._inner.__class__ = Inventor


def hides(member: Learner) -> None:
    member.node._inner.__class__ = Hider


def flips(member: Learner) -> None:
    """Contributes the opposite of what it computed."""
    rule = member.optimizer._rule
    honest = rule.contribution

    def contribution(epoch: Epoch, state_hash: bytes) -> object:
        brought = honest(epoch, state_hash)
        return replace(brought, vector=-brought.vector) if epoch >= 2 else brought

    rule.contribution = contribution  # type: ignore[method-assign,assignment]


class Trial(Scene):
    """A scene that goes on without whoever is thrown out."""

    @staticmethod
    async def _live(learner: Learner) -> None:
        with suppress(Expelled):
            await Scene._live(learner)


LIES: dict[str, tuple[Callable[[Learner], None], set[Offence]]] = {
    "flips": (flips, {Offence.CONTRIBUTION}),
    "poisons": (poisons, {Offence.INNER_STATE}),
    "swaps": (swaps, {Offence.EQUIVOCATION}),
    "invents": (invents, {Offence.INNER_STATE}),
    "hides": (hides, {Offence.WITHHELD_STATE}),
}


def passed(member: Learner) -> int:
    averager = member.node._averager
    assert averager is not None
    assert averager.guarding is not None
    return sum(averager.guarding.auditing.passed.values())


def found(scene: Scene) -> list[dict[object, Offence]]:
    return [{ban.accused: ban.offence for ban in member.node._settings.ledger.bans} for member in scene.members[1:]]


def play(learning: Learning, script: Callable[[Scene], object], members: int = MEMBERS) -> None:
    torch.set_num_threads(1)
    scene = Trial(learning, members)
    run_simulated(scene.play(script), 0, limit_s=10 * LIMIT_S)  # type: ignore[arg-type]


@pytest.mark.parametrize("lie", LIES)
def test_a_liar_is_thrown_out_and_nobody_else(lie: str) -> None:
    begin, offences = LIES[lie]

    async def script(scene: Scene) -> None:
        liar = scene.members[0]
        begin(liar)
        await scene.until(lambda: all(liar.peer in bans for bans in found(scene)), limit_s=LIMIT_S)
        assert all(set(bans) == {liar.peer} and set(bans.values()) <= offences for bans in found(scene))

    play(task(), script)


@pytest.mark.parametrize("rule", [OUTER, replace(OUTER, fragments=2, mixing=0.25), GradientSettings(overlap=True)])
def test_honest_members_pass_their_audits(rule: GradientSettings) -> None:
    async def script(scene: Scene) -> None:
        await scene.until(lambda: min(member.optimizer.epoch for member in scene.members) >= 7, limit_s=LIMIT_S)
        assert sum(passed(member) for member in scene.members) >= 8
        assert scene.bans() == 0

    play(task(rule), script)


class Behind(Trial):
    """The first member cannot be dialled."""

    def _make(self, number: int) -> Learner:
        member = super()._make(number)
        if number == 0:
            settings = member.node._settings
            member.node._settings = replace(settings, presence=replace(settings.presence, role="client"))
        return member


def test_a_member_that_nobody_can_dial_is_not_banned_for_a_state_that_nobody_gets() -> None:
    async def script(scene: Scene) -> None:
        await scene.until(lambda: max(member.optimizer.epoch for member in scene.members) >= 10, limit_s=LIMIT_S)
        assert scene.bans() == 0

    torch.set_num_threads(1)
    scene = Behind(task(), MEMBERS)
    run_simulated(scene.play(script), 0, limit_s=10 * LIMIT_S)


def restarts(scene: Scene, member: Learner) -> None:
    """Another process answers under the same address, and knows nothing of what the one before it has committed to."""
    node, shelf = member.node, member.node._inner
    shelf._own.clear()
    rule = member.optimizer._rule
    assert isinstance(rule, OuterRule)
    record_of(member).take_over()
    rule._start_anew()
    presence = replace(node._settings.presence, started_at=node._clock.now())
    node._settings = replace(node._settings, presence=presence)
    record = seal_presence(replace(presence, address=node.address), node._sealer, node._clock.now())
    member.tasks.append(asyncio.get_running_loop().create_task(node._store_record(record)))


FAILURES: dict[str, Callable[[Scene, Learner], None]] = {
    "cut off": lambda scene, member: scene.cut(member),
    "restarted": restarts,
}


@pytest.mark.parametrize("failure", FAILURES)
def test_nobody_is_banned_for_a_state_that_is_lost(failure: str) -> None:
    async def script(scene: Scene) -> None:
        asked: list[Learner] = []

        def fail(member: Learner) -> None:
            if not asked:
                asked.append(member)
                FAILURES[failure](scene, member)

        for member in scene.members:
            member.node._inner.__class__ = Lost
            member.node._inner.happens = partial(fail, member)  # type: ignore[attr-defined]
        await scene.until(lambda: bool(asked), limit_s=LIMIT_S)
        others = [member for member in scene.members if member not in asked]
        epoch = max(member.optimizer.epoch for member in others)
        await scene.until(lambda: min(member.optimizer.epoch for member in others) >= epoch + 4, limit_s=LIMIT_S)
        assert scene.bans() == 0

    play(replace(task(), step_s=30.0), script)  # epochs long enough for others to give up waiting


def chaotic(member: Learner) -> None:
    """Its replays are a tenth off, each in another direction: as where a high rate makes of rounding errors what it likes."""
    averager = member.node._averager
    assert averager is not None
    assert averager.guarding is not None
    auditing, dice = averager.guarding.auditing, torch.Generator().manual_seed(member.node._me.public_key[0])
    steady = auditing._replayer

    async def replayer(request: ReplayRequest) -> Replayed | None:
        found = await steady(request)
        if found is None:
            return None
        noise_D = torch.randn(found.vector.shape, generator=dice)
        return replace(found, vector=found.vector + noise_D * (0.1 * found.vector.norm() / noise_D.norm()))

    auditing._replayer = replayer


def test_nobody_is_found_guilty_where_replays_do_not_agree_with_themselves() -> None:
    async def script(scene: Scene) -> None:
        for member in scene.members:
            chaotic(member)
        epoch = max(member.optimizer.epoch for member in scene.members)
        await scene.until(lambda: min(member.optimizer.epoch for member in scene.members) >= epoch + 6, limit_s=LIMIT_S)
        assert not any(member.node._averager.guarding.court.judged for member in scene.members)  # type: ignore[union-attr]
        assert scene.bans() == 0

    play(task(), script)
