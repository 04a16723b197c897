"""False contributions, found by audits; collusion and silence, which only cost their authors."""

from __future__ import annotations

import pytest

from peers.simulation import run_simulated
from tests.helpers.attack_scene import Played, Scene, aggregate_of, play, right_bytes

LONGEST = 60


def played(attack: str, scene: Scene, epochs: int = LONGEST, offence: str = "contribution") -> Played:
    return run_simulated(play(attack, scene, epochs, until=lambda found: found.everybody_bans(offence)), seed=0, limit_s=1e5)


@pytest.mark.parametrize("attack", ["bit_flip", "free_rider", "ipm_0.1", "constant_direction"])
def test_a_contribution_that_its_samples_do_not_give_is_found_by_an_auditor(attack: str) -> None:
    found = played(attack, Scene(5, attackers=(1, 3), victims=(0,), auditors=2))
    assert found.everybody_bans("contribution")
    assert all(len({vector_D.numpy().tobytes() for vector_D in held}) == 1 for held in found.results)


def test_colluding_reducers_and_senders_fall_for_their_blocks_or_for_their_figures() -> None:
    def all_out(found: Played) -> bool:
        return all(set(bans) == set(found.scene.attackers) for bans in found.bans)

    found = run_simulated(play("collude", Scene(seed=1), LONGEST, until=all_out), seed=1, limit_s=1e5)
    assert all_out(found)
    assert {offence for bans in found.bans for offence in bans.values()} <= {"reduction", "check"}


def test_a_reducer_that_reports_no_figures_is_found_when_its_block_is_drawn() -> None:
    found = played("mute_reducer", Scene(5, attackers=(1, 3), victims=(0,)), offence="reduction")
    assert found.everybody_bans("reduction")


def test_silence_towards_some_frames_nobody_and_splits_nobody() -> None:
    found = played("selective_silence", Scene(), epochs=3)
    assert found.nobody_is_banned()
    assert all(len(held) == 5 and len({vector_D.numpy().tobytes() for vector_D in held}) == 1 for held in found.results)


def test_other_bytes_for_a_minority_are_put_right_though_nothing_proves_them() -> None:
    found = played("two_faced_unsigned", Scene(), epochs=3)
    assert found.nobody_is_banned()
    assert all(right_bytes(found, aggregate_of(tuple(range(8))), epoch) for epoch in range(3))
