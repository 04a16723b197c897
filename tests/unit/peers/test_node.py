"""Whole nodes on the simulator: epochs advance together, and members may come, go, fall behind and die."""

from __future__ import annotations

import pytest
import torch

from peers.bridge import Contribution, RoundStatus
from peers.interfaces import Handlers, merged
from peers.node import PROGRESS_EVERY_S
from peers.simulation import run_simulated
from protocols.ids import Epoch
from protocols.record_keeping import RecordReader, record_key
from tests.helpers.node_swarm import NodeSwarm, Trainee, state, world

TARGET = 100


def same_state(members: list[Trainee]) -> bool:
    return len({member.held.state_hash for member in members if member.held}) == 1 and all(member.held for member in members)


def test_epochs_advance_together_to_the_same_state() -> None:
    async def main() -> None:
        async with NodeSwarm(TARGET) as swarm:
            members = [swarm.add(number, held=state(0)) for number in range(3)]
            await swarm.until(lambda: all(member.epoch >= 4 for member in members))
            for epoch in range(1, 4):
                rounds = [outcome for member in members for outcome in member.applied if outcome.epoch == epoch]
                assert len(rounds) == 3
                assert {outcome.status for outcome in rounds} == {RoundStatus.APPLIED}
                assert len({outcome.weight for outcome in rounds}) == 1
                assert {peer for outcome in rounds for peer in outcome.contributors} == {member.peer for member in members}
            await swarm.until(lambda: same_state(members), limit_s=3.0)

    run_simulated(main(), limit_s=300)


def test_an_epoch_closes_when_the_swarm_has_reached_its_target() -> None:
    async def main() -> None:
        async with NodeSwarm(TARGET) as swarm:
            members = [swarm.add(0, held=state(0), samples_per_tick=1), swarm.add(1, held=state(0), samples_per_tick=4)]
            await swarm.until(lambda: all(member.epoch >= 5 for member in members))
            for outcome in members[0].applied[1:]:  # in the first, they have yet to find each other
                assert TARGET * 0.8 <= outcome.weight <= TARGET * 1.5

    run_simulated(main(), limit_s=300)


def test_a_swarm_that_has_not_reached_its_target_waits() -> None:
    async def main() -> None:
        async with NodeSwarm(10**6) as swarm:
            members = [swarm.add(number, held=state(0)) for number in range(2)]
            await swarm.pass_time(30.0)
            assert [member.outcomes for member in members] == [[], []]
            assert members[0].handle.view().samples > 1000

    run_simulated(main(), limit_s=60)


def test_a_member_alone_closes_its_epochs_alone() -> None:
    async def main() -> None:
        async with NodeSwarm(TARGET) as swarm:
            only = swarm.add(0, held=state(0), samples_per_tick=20)
            await swarm.until(lambda: only.epoch >= 3)
            assert {outcome.status for outcome in only.applied} == {RoundStatus.ALONE}

    run_simulated(main(), limit_s=60)


def test_only_a_founder_begins_alone() -> None:
    async def main() -> None:
        async with NodeSwarm(TARGET) as swarm:
            first = swarm.add(0, held=state(0), samples_per_tick=20, founder=False)
            await swarm.pass_time(20.0)
            assert first.outcomes == []
            second = swarm.add(1, held=state(0), founder=False)
            await swarm.until(lambda: first.epoch >= 2 and second.epoch >= 2)
            await swarm.until(lambda: same_state([first, second]), limit_s=10.0)

    run_simulated(main(), limit_s=120)


def test_a_newcomer_without_a_state_fetches_it_and_takes_part() -> None:
    async def main() -> None:
        async with NodeSwarm(TARGET) as swarm:
            old = [swarm.add(number, held=state(7, 3.0)) for number in range(2)]
            await swarm.until(lambda: old[0].epoch >= 9)
            new = swarm.add(2)
            assert new.held is None
            await swarm.until(lambda: any(new.peer in outcome.contributors for outcome in old[0].applied))
            await swarm.until(lambda: same_state([*old, new]), limit_s=10.0)

    run_simulated(main(), limit_s=300)


@pytest.mark.parametrize("epoch", [2, 6, 9])
def test_a_member_with_a_state_of_its_own_takes_over_the_majoritys(epoch: int) -> None:
    """One that is behind, one that is at the same epoch with other numbers, and one that is ahead: nobody follows it."""

    async def main() -> None:
        async with NodeSwarm(TARGET) as swarm:
            old = [swarm.add(number, held=state(6, 3.0)) for number in range(3)]
            odd = swarm.add(3, held=state(epoch, 9.0))
            await swarm.until(lambda: same_state([*old, odd]) and odd.epoch > 6)
            lowest = min(member.epoch for member in old)
            await swarm.until(lambda: old[0].epoch >= lowest + 2)
            assert odd.peer in old[0].applied[-1].contributors

    run_simulated(main(), limit_s=300)


def test_average_tells_a_member_with_an_old_state_that_it_is_behind() -> None:
    async def main() -> None:
        async with NodeSwarm(TARGET) as swarm:
            old = [swarm.add(number, held=state(6, 3.0)) for number in range(3)]
            await swarm.until(lambda: old[0].epoch >= 8)
            late = swarm.add(3, held=state(2, 1.0), trains=False)
            await swarm.until(lambda: len(late.node.roster.others()) == 3)
            assert late.held is not None
            contribution = Contribution(Epoch(2), torch.zeros(100), 4.0, late.held.state_hash)
            assert (await late.node.average(contribution)).status is RoundStatus.BEHIND
            snapshot = await late.node.fetch_state()
            assert snapshot.epoch >= 8
            assert snapshot.state_hash in {member.held.state_hash for member in old if member.held}
            assert snapshot.damaged_piece() is None

    run_simulated(main(), limit_s=300)


def test_a_member_that_leaves_is_not_waited_for() -> None:
    async def main() -> None:
        async with NodeSwarm(TARGET) as swarm:
            members = [swarm.add(number, held=state(0)) for number in range(3)]
            await swarm.until(lambda: all(member.epoch >= 3 for member in members))
            leaver, *rest = members
            swarm.leave(leaver)
            await swarm.until(lambda: bool(leaver.running and leaver.running.done()), limit_s=5.0)
            await swarm.pass_time(2.0)
            assert all(leaver.peer not in member.node.roster.live(member.node._held.epoch) for member in rest)
            reached = rest[0].epoch
            took_s = await swarm.until(lambda: all(member.epoch >= reached + 2 for member in rest))
            assert took_s < 7  # two epochs of two members that compute 80 samples a second, and no deadline in between
            assert leaver.peer not in rest[0].applied[-1].contributors

    run_simulated(main(), limit_s=300)


def test_a_member_that_dies_costs_one_deadline_and_no_state() -> None:
    async def main() -> None:
        async with NodeSwarm(TARGET) as swarm:
            members = [swarm.add(number, held=state(0)) for number in range(4)]
            await swarm.until(lambda: all(member.epoch >= 3 for member in members))
            victim, *rest = members
            swarm.kill(victim)
            reached = rest[0].epoch
            await swarm.until(lambda: all(member.epoch >= reached + 4 for member in rest), limit_s=60.0)
            await swarm.until(lambda: same_state(rest), limit_s=5.0)
            assert victim.peer not in rest[0].applied[-1].contributors

    run_simulated(main(), limit_s=300)


def test_a_member_that_nobody_can_dial_takes_part() -> None:
    async def main() -> None:
        async with NodeSwarm(TARGET) as swarm:
            members = [swarm.add(0, held=state(0)), swarm.add(1, held=state(0)), swarm.add(2, held=state(0), role="client")]
            await swarm.until(lambda: all(member.epoch >= 8 for member in members))
            contributed = [outcome for outcome in members[0].applied if members[2].peer in outcome.contributors]
            assert len(contributed) >= 6
            assert {outcome.status for outcome in members[2].applied[1:]} == {RoundStatus.APPLIED}
            await swarm.until(lambda: same_state(members), limit_s=5.0)

    run_simulated(main(), limit_s=300)


def test_clocks_that_differ_a_little_change_nothing() -> None:
    async def main() -> None:
        async with NodeSwarm(TARGET) as swarm:
            members = [swarm.add(number, held=state(0), error_s=error_s) for number, error_s in enumerate((-1.0, 0.0, 1.0))]
            await swarm.until(lambda: all(member.epoch >= 4 for member in members))
            assert len(members[0].applied[-1].contributors) == 3

    run_simulated(main(), limit_s=300)


def test_records_say_who_we_are_and_how_far() -> None:
    async def main() -> None:
        async with NodeSwarm(10**6) as swarm:
            member = swarm.add(0, held=state(5, 1.0, accepted_samples=321))
            await swarm.pass_time(3 * PROGRESS_EVERY_S)
            reader = RecordReader(world().run, world().authority_key)
            now = member.node._clock.now()
            store = swarm.records.stores[0]
            presences = await store.get(record_key(world().run, "presence"))
            records = await store.get(record_key(world().run, "progress"))
            presence = reader.presence(presences[str(member.peer)], now)
            progress = reader.progress(records[str(member.peer)], now)
            assert (presence.peer, presence.role, presence.address) == (member.peer, "trainer", member.node.address)
            assert presence.certificate_pem == world().chain(0).leaf_pem
            assert (progress.epoch, progress.accepted_samples, progress.phase) == (5, 321, "training")
            assert member.held is not None
            assert progress.state_hash == member.held.state_hash
            assert 0 < progress.samples <= member.samples
            swarm.leave(member)
            await swarm.until(lambda: bool(member.running and member.running.done()), limit_s=5.0)
            records = await store.get(record_key(world().run, "progress"))
            assert reader.progress(records[str(member.peer)], now).phase == "leaving"

    run_simulated(main(), limit_s=60)


def test_the_trainer_sees_the_swarm() -> None:
    async def main() -> None:
        async with NodeSwarm(10**6) as swarm:
            members = [swarm.add(number, held=state(3, 1.0)) for number in range(3)]
            await swarm.pass_time(5.0)
            view = members[0].handle.view()
            assert (view.epoch, view.target_samples, view.behind) == (3, 10**6, False)
            assert {shown.peer for shown in view.members} == {member.peer for member in members}
            assert view.samples == pytest.approx(3 * members[0].samples, rel=0.3)
            assert members[0].held is not None
            assert view.state_hash == members[0].held.state_hash

    run_simulated(main(), limit_s=60)


def test_handlers_of_all_parts_are_served() -> None:
    async def call(_peer: object, request: bytes) -> bytes:
        return request

    async def stream(_stream: object) -> None:
        return

    both = merged(Handlers(calls={"a": call}), Handlers(calls={"b": call}, streams={"c": stream}))
    assert set(both.calls) == {"a", "b"}
    assert set(both.streams) == {"c"}
