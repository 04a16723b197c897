"""Members that know nothing of each other's links measure them in rounds: who ends up reducing how much, on the simulated network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Self

import pytest

from peers.bandwidth import Bandwidth
from peers.simulation import run_simulated
from peers.transport.simulated import LinkSpec
from protocols.bandwidth import ALIKE, FREE_EPOCHS, HEADROOM, assigned_reducers
from protocols.ids import Epoch, PeerId
from protocols.messages import MAX_BANDWIDTH_BYTES_PER_S, Join, SealedJoin
from protocols.partition import least_time_s, reducer_shares
from tests.helpers.averaging_swarm import STATE_HASH, SimulatedSwarm, averaged, rules, same_bytes

MB = 10**6
SIZE_ELEMS = 2**19
BLOCK_ELEMS = 2**12
BLOCKS = SIZE_ELEMS // BLOCK_ELEMS
VECTOR_BYTES = 4 * SIZE_ELEMS


class Liar(Bandwidth):
    """Claims a terabyte per second."""

    def offered(self, join: Join, group: Set[PeerId]) -> Join:
        """Whatever it has measured."""
        honest = super().offered(join, group)
        return replace(honest, bandwidth_bytes_per_s=MAX_BANDWIDTH_BYTES_PER_S)


class MeasuredSwarm(SimulatedSwarm):
    """Links of given speeds, bytes per second each way; the members in `liars` lie."""

    def __init__(self, speeds: Sequence[float], liars: Sequence[int] = ()) -> None:
        self.links = [Liar() if number in liars else Bandwidth() for number in range(len(speeds))]
        self.speeds = speeds
        super().__init__(len(speeds), averaging=rules(block_elems=BLOCK_ELEMS, round_timeout_s=120.0))

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self

    def bandwidth_of(self, number: int) -> Bandwidth:
        """One of `links`."""
        return self.links[number]

    def join_of(self, number: int) -> SealedJoin:
        """What a member would say in the next round."""
        everybody = {member.peer for member in self.members}
        join = self.links[number].offered(Join(Epoch(99), STATE_HASH, 1.0, MAX_BANDWIDTH_BYTES_PER_S), everybody)
        return SealedJoin(self.members[number].peer, join, b"")

    def shares(self) -> list[float]:
        """Share of the vector that each would reduce in the next round."""
        counts = Counter(assigned_reducers([self.join_of(number) for number in range(len(self.links))], BLOCKS, BLOCK_ELEMS))
        return [counts[number] / BLOCKS for number in range(len(self.links))]

    async def rounds(self, number: int, first_epoch: int = 0) -> None:
        """That many rounds of everybody, who may all reduce as much as they can."""
        for member, speed in zip(self.members, self.speeds, strict=True):
            self.network.set_host(member.peer, LinkSpec(latency_s=0.01, bandwidth_bytes_per_s=speed))
        everything = [MAX_BANDWIDTH_BYTES_PER_S] * len(self.members)
        for epoch in range(first_epoch, first_epoch + number):
            outcomes = await self.round(SIZE_ELEMS, epoch=epoch, bandwidths=everything)
            assert same_bytes(averaged(outcomes)), outcomes
            assert len(averaged(outcomes)) == len(self.members)


@pytest.mark.parametrize(
    "speeds",
    [
        [4 * MB, 4 * MB, 4 * MB, 4 * MB],
        [8 * MB, 8 * MB, 2 * MB, 2 * MB],
        [8 * MB, 4 * MB, 4 * MB, 2 * MB],
        [1 * MB, 8 * MB, 3 * MB, 3 * MB],
    ],
    ids=str,
)
def test_members_converge_to_the_right_shares_within_three_rounds(speeds: list[int]) -> None:
    async def main() -> None:
        async with MeasuredSwarm(speeds) as swarm:
            await swarm.rounds(3)
            estimates = [link.meter.estimate_bytes_per_s for link in swarm.links]
            best = least_time_s(VECTOR_BYTES, speeds)
            n = len(speeds)
            found = max(VECTOR_BYTES * (1 + (n - 2) * share) / speed for share, speed in zip(swarm.shares(), speeds, strict=True))
            assert found <= 1.1 * best, (estimates, swarm.shares(), [float(share) for share in reducer_shares(speeds)])

    run_simulated(main())


@pytest.mark.parametrize("speeds", [[2 * MB] * 4, [1 * MB, 4 * MB, 4 * MB, 4 * MB], [4 * MB, 1 * MB, 1 * MB, 1 * MB]], ids=str)
def test_a_liar_attracts_hardly_more_than_its_link_deserves(speeds: list[int]) -> None:
    async def main() -> None:
        async with MeasuredSwarm(speeds, liars=[0]) as swarm:
            assert swarm.shares() == [0.25] * 4  # nobody has seen anybody yet
            await swarm.rounds(4)
            a_bit_faster = [int(HEADROOM * speeds[0] / ALIKE), *speeds[1:]]
            assert swarm.shares()[0] <= float(reducer_shares(a_bit_faster)[0]) + 0.08

    run_simulated(main())


def test_members_whose_links_become_faster_grow_into_them() -> None:
    async def main() -> None:
        async with MeasuredSwarm([2 * MB] * 4) as swarm:
            await swarm.rounds(2)
            assert swarm.shares() == [0.25] * 4
            swarm.speeds = [8 * MB, 8 * MB, 2 * MB, 2 * MB]
            await swarm.rounds(FREE_EPOCHS - 2, first_epoch=2)
            assert swarm.shares() == [0.25] * 4  # as long as streams are timed by what links were
            await swarm.rounds(FREE_EPOCHS + 1, first_epoch=FREE_EPOCHS)
            assert swarm.shares() == [0.5, 0.5, 0.0, 0.0]

    run_simulated(main())
