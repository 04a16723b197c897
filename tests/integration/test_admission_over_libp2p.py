"""Joining a run over real libp2p daemons: the joiner knows nothing but the invite."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvloop

from peers.admission_desk import ADMIT_CALL, SPEC_CALL, AdmissionService, spec_handler
from peers.clock import SystemClock
from peers.joining import join_run
from peers.libp2p_daemon import Libp2pOptions
from peers.libp2p_node import Libp2pNode
from protocols.admission import AdmissionDesk
from protocols.errors import InviteError
from protocols.ids import SwarmTime
from protocols.invite import make_invite, read_invite
from tests.helpers.run_world import DAY_S, RunWorld, identity

CLOCK = SystemClock()
LOOPBACK = Libp2pOptions(listen=("/ip4/127.0.0.1/tcp/0",))


def test_a_private_run_lets_in_as_many_as_the_invite_says(tmp_path: Path) -> None:
    world = RunWorld(not_before=CLOCK.now() - DAY_S, not_after=CLOCK.now() + DAY_S)
    desk = AdmissionDesk(world.run, world.authority_key, world.run_ca, world.authority)

    async def work() -> None:
        async with (
            asyncio.timeout(60),
            Libp2pNode.start(identity(1).seed, LOOPBACK, tmp_path / "r1") as coordinator,
            Libp2pNode.start(identity(2).seed, LOOPBACK, tmp_path / "r2") as volunteer,
            Libp2pNode.start(identity(3).seed, LOOPBACK, tmp_path / "r3") as late,
        ):
            await coordinator.serve(SPEC_CALL, spec_handler(world.signed_spec, world.run_ca, CLOCK))
            await coordinator.serve(ADMIT_CALL, AdmissionService(desk, tmp_path / "desk", CLOCK).admit)
            addresses = ("/ip4/127.0.0.1/tcp/1/p2p/" + str(identity(9).peer), *coordinator.addresses())
            written = world.invite(addresses=addresses, max_uses=1, expires_at=SwarmTime(CLOCK.now() + 600))
            invite = read_invite(make_invite(written, world.authority), CLOCK.now())
            document, credentials = await join_run(volunteer.call, invite, identity(2), tmp_path / "volunteer", CLOCK)
            assert document.signed_spec == world.signed_spec
            assert credentials.peer == identity(2).peer
            assert credentials.usable(identity(2), CLOCK.now())
            with pytest.raises(InviteError, match="1 peers"):
                await join_run(late.call, invite, identity(3), tmp_path / "late", CLOCK)

    uvloop.run(work())
