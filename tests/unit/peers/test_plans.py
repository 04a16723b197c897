"""A leader's plan: what can be seen to be wrong is refused before anything expensive."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from peers.averaging.context import MemberContext
from peers.averaging.plans import checked_plan, first_plan
from peers.simulation import run_simulated
from peers.testing import FixedDirectory, KeyNotary, make_key
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.errors import RemoteProtocolError
from protocols.ids import Epoch, PeerId
from protocols.messages import Join, SealedJoin, parse
from protocols.proto.swarm.v1 import control_pb2 as pb
from tests.helpers.averaging_swarm import STATE_HASH, rules

SIZE_ELEMS = 1000
COUNT = 4


class CountingNotary(KeyNotary):
    """Counts the signatures that it is to verify."""

    opened = 0

    def open(self, kind: str, sealed: bytes) -> tuple[PeerId, bytes]:
        self.opened += 1
        return super().open(kind, sealed)


@pytest.mark.parametrize(
    ("counted", "sound"), [(0, False), (COUNT - 1, False), (COUNT, True), (2 * COUNT - 1, True), (2 * COUNT, False), (2**32 - 1, False)]
)
def test_a_leader_counts_everybody_in_its_plan_and_has_more_than_half_of_them(counted: int, sound: bool) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            notary = CountingNotary(make_key(1))
            transport = SimulatedTransport(SimulatedNetwork(0, LinkSpec()), notary.peer)
            context = MemberContext(notary.peer, transport, FixedDirectory(notary.peer, {}), notary, rules(), tasks)
            join = Join(Epoch(0), STATE_HASH, 1.0, 1000)
            notaries = [KeyNotary(make_key(number)) for number in range(COUNT)]
            joins = tuple(SealedJoin(one.peer, join, one.seal("join", join.encode())) for one in notaries)
            plan = replace(first_plan(context, joins, SIZE_ELEMS, COUNT, 0), counted=counted)
            message, leader = parse(pb.Plan, plan.encode(), None), joins[0].peer
            if sound:
                assert checked_plan(context, joins[1], SIZE_ELEMS, message, leader) == plan
                return
            with pytest.raises(RemoteProtocolError, match="counts") as caught:
                checked_plan(context, joins[1], SIZE_ELEMS, message, leader)
            assert caught.value.peer == leader
            assert notary.opened == 0

    run_simulated(main())
