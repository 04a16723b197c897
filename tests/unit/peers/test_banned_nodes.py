"""Whole nodes and bans, on the simulator: who is banned learns why and ends, and no restart and no newcomer forgets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from peers.attacks.lone import HONEST_EPOCHS
from peers.ban_file import load_ledger, save_proofs
from peers.simulation import run_simulated
from protocols.errors import ExitCode, StateDirError
from protocols.trust.ledger import Ban
from protocols.trust.offences import Offence
from tests.helpers.node_swarm import NodeSwarm, state, world
from tests.helpers.proved_bans import LIAR, TRUST, a_proved_ban, with_a_liar
from tests.helpers.run_world import NOW, FixedClock, RunWorld, identity


def test_a_banned_member_learns_why_and_ends_and_the_others_go_on() -> None:
    async def main() -> None:
        async with NodeSwarm(trust=TRUST) as swarm:
            honest, liar = await with_a_liar(swarm)
            await swarm.until(lambda: liar.expelled is not None, limit_s=10.0)
            assert liar.expelled is not None
            assert liar.expelled.exit_code is ExitCode.REFUSED
            (view,) = honest[0].handle.view().banned
            assert (view.peer, view.epoch, view.reason) == (liar.peer, HONEST_EPOCHS, Offence.REDUCTION.sentence)
            assert f"since epoch {HONEST_EPOCHS}: {Offence.REDUCTION.sentence}" in str(liar.expelled)
            assert [ban.peer for ban in liar.handle.view().banned] == [liar.peer], "its own last status says so too"
            began = honest[0].epoch
            await swarm.until(lambda: all(member.epoch >= began + 3 for member in honest))
            assert all(liar.peer not in outcome.contributors for member in honest for outcome in member.applied[-2:])
            assert not any(member.expelled for member in honest)

    run_simulated(main(), limit_s=300)


def test_a_newcomer_learns_of_earlier_bans_and_believes_no_record_of_the_banned() -> None:
    async def main() -> None:
        async with NodeSwarm(trust=TRUST) as swarm:
            honest, liar = await with_a_liar(swarm)
            newcomer = swarm.add(7)
            await swarm.until(lambda: liar.peer in newcomer.ledger, limit_s=20.0)
            await swarm.until(lambda: newcomer.epoch >= honest[0].epoch > 0)
            assert liar.peer not in newcomer.node.roster.others()
            assert liar.peer not in {member.peer for member in newcomer.handle.view().members}

    run_simulated(main(), limit_s=300)


def test_who_comes_back_without_knowing_of_its_ban_is_refused_by_most_and_ends() -> None:
    async def main() -> None:
        async with NodeSwarm(trust=TRUST) as swarm:
            honest, liar = await with_a_liar(swarm)
            await swarm.until(lambda: liar.expelled is not None, limit_s=10.0)
            await swarm.pass_time(10.0)  # whoever wanted to show it the proof has done so, or given up
            again = swarm.add(LIAR, held=state(0))
            await swarm.until(lambda: again.expelled is not None, limit_s=40.0)
            assert "3 of 3 members of the run refuse this peer because it is banned" in str(again.expelled)
            assert all(member.expelled is None for member in honest)

    run_simulated(main(), limit_s=300)


def test_one_member_that_refuses_drives_nobody_out() -> None:
    async def main() -> None:
        async with NodeSwarm(trust=TRUST) as swarm:
            members = [swarm.add(number, held=state(0)) for number in range(4)]
            await swarm.until(lambda: all(member.epoch >= 2 for member in members))
            members[0].ledger.add(Ban(members[1].peer, Offence.MALFORMED, members[0].handle.view().epoch, b"an opinion of its own"))
            await swarm.pass_time(30.0)
            assert all(member.expelled is None for member in members)

    run_simulated(main(), limit_s=300)


def test_bans_outlive_the_process_and_only_proved_ones_do(tmp_path: Path) -> None:
    run, authority_key, clock = world().run, world().authority_key, FixedClock()
    assert load_ledger(tmp_path, run, authority_key, clock).bans == ()
    ban = a_proved_ban()
    made_up = Ban(identity(1).peer, Offence.MALFORMED, ban.epoch, ban.proof[:-1])
    save_proofs(tmp_path, [ban, made_up])
    clock.time = type(NOW)(NOW + 3600)  # round messages are no longer believed by then
    assert load_ledger(tmp_path, run, authority_key, clock).bans == (ban,)
    elsewhere = RunWorld(2)
    assert load_ledger(tmp_path, elsewhere.run, elsewhere.authority_key, clock).bans == ()


def test_a_damaged_file_of_bans_is_told(tmp_path: Path) -> None:
    (tmp_path / "bans").write_bytes(b"\xff\xff")
    with pytest.raises(StateDirError, match="bans is damaged"):
        load_ledger(tmp_path, world().run, world().authority_key, FixedClock())
