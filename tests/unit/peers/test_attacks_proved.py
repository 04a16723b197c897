"""Lies that statements or everybody's own eyes prove: banned within two epochs, and the result is right all the same."""

from __future__ import annotations

import pytest

from peers.simulation import run_simulated
from tests.helpers.attack_scene import Played, Scene, aggregate_of, parts_left_out, play, right_bytes

EVERYBODY = tuple(range(8))
SCENE = Scene()


def played(attack: str, offence: str) -> Played:
    return run_simulated(play(attack, SCENE, 3, until=lambda found: found.everybody_bans(offence)), seed=0, limit_s=10000)


@pytest.mark.parametrize("attack", ["lying_reducer", "lying_reducer_0.001", "lying_reducer_0.01", "lying_reducer_1"])
def test_a_false_aggregate_is_put_right_and_its_reducers_are_out(attack: str) -> None:
    found = played(attack, "reduction")
    assert found.everybody_bans("reduction")
    assert found.epochs == 2
    left_out = parts_left_out(found, epoch=1)
    assert left_out is not None
    assert sorted(number for number in left_out if number is not None) == sorted(SCENE.attackers), (
        "each reduces one block, without its part"
    )


@pytest.mark.parametrize("far", [(0,), (2, 3)])
def test_who_looks_after_the_reducer_was_banned_puts_the_same_right(far: tuple[int, ...]) -> None:
    """By then its own part cannot be had from it."""
    scene = Scene(attackers=(1,), victims=(), far=far)
    found = run_simulated(play("lying_reducer", scene, 2), seed=0, limit_s=10000)
    assert found.everybody_bans("reduction")
    left_out = parts_left_out(found, epoch=1)
    assert left_out is not None
    assert [number for number in left_out if number is not None] == [1]


@pytest.mark.parametrize(("attack", "offence"), [("two_faced_reducer", "equivocation"), ("equivocate", "equivocation")])
def test_two_statements_where_one_is_due_convict_their_signer(attack: str, offence: str) -> None:
    found = played(attack, offence)
    assert found.everybody_bans(offence)
    assert found.epochs == 2
    assert right_bytes(found, aggregate_of(EVERYBODY), epoch=1)


def test_whoever_keeps_back_its_share_of_the_coin_is_out_and_the_coin_goes_on() -> None:
    found = played("withhold_coin", "withheld-coin")
    assert found.everybody_bans("withheld-coin")
    assert found.epochs <= 3
    assert right_bytes(found, aggregate_of(EVERYBODY), epoch=1)


def test_whoever_accuses_honest_members_is_out_though_a_bare_majority_is_honest() -> None:
    found = played("false_accuser", "false-accusation")
    assert found.everybody_bans("false-accusation")
    assert found.epochs == 2
    assert right_bytes(found, aggregate_of(EVERYBODY), epoch=1)


@pytest.mark.parametrize("attack", ["nan", "replay", "forge"])
def test_what_breaks_the_protocol_towards_most_of_a_group_is_left_out_and_banned(attack: str) -> None:
    found = played(attack, "malformed")
    assert found.everybody_bans("malformed")
    assert found.epochs == 2
    held = found.results[1]
    assert len(held) == len(SCENE.honest)
    assert len({vector_D.numpy().tobytes() for vector_D in held}) == 1


def test_a_million_samples_are_a_claim_that_nobody_believes() -> None:
    found = played("wrong_weight", "absurd-claim")
    assert found.everybody_bans("absurd-claim")
    assert found.epochs <= 3


def test_an_epoch_far_beyond_the_swarm_is_a_claim_that_nobody_believes() -> None:
    found = played("huge_epoch", "absurd-claim")
    assert found.everybody_bans("absurd-claim")
    assert found.epochs <= 3
