"""How the container test judges what three peers say of themselves."""

from __future__ import annotations

import dataclasses
import json

import pytest

from scripts.containers.commands import Finished
from scripts.containers.swarm import Glance, same_state
from tests.unit.swarm.status_builder import a_member, a_status


def _with(hashes: dict[int, str]) -> Glance:
    return Glance(hashes=hashes)


def test_same_state_is_the_newest_epoch_that_all_share() -> None:
    glances = [_with({3: "a", 4: "b", 5: "c"}), _with({4: "b", 5: "c", 6: "d"}), _with({2: "z", 3: "a", 4: "b"})]
    assert same_state(glances) == 4
    assert same_state(glances[:2]) == 5
    assert same_state(glances[:1]) == 5


def test_different_hashes_after_one_epoch_are_not_the_same_state() -> None:
    assert same_state([_with({3: "a", 4: "b"}), _with({3: "a", 4: "x"})]) == 3
    assert same_state([_with({4: "b"}), _with({4: "x"})]) is None


def test_a_hash_counts_only_at_its_own_epoch() -> None:
    assert same_state([_with({4: "b"}), _with({5: "b"})]) is None


def test_a_silent_peer_shares_nothing() -> None:
    assert same_state([_with({4: "b"}), Glance()]) is None


def test_a_glance_reads_what_a_peer_really_writes() -> None:
    status = a_status(members=(a_member(), a_member(peer="another")))
    glance = Glance.from_json(status.to_json())
    assert (glance.epoch, glance.members, glance.samples, glance.loss, glance.state) == (
        status.epoch,
        2,
        status.samples_total,
        status.loss,
        status.state,
    )
    assert glance.hashes == {entry.epoch: entry.state_hash for entry in status.hashes}


def test_a_peer_without_a_loss_yet_is_not_silent() -> None:
    glance = Glance.from_json(dataclasses.replace(a_status(), loss=None).to_json())
    assert glance.loss is None
    assert glance != Glance()


@pytest.mark.parametrize(
    "text", ["", "No peer has ever run here.", "[]", "null", json.dumps({"epoch": 3}), json.dumps({"epoch": "three", "members": []})]
)
def test_anything_else_reads_as_silence(text: str) -> None:
    assert Glance.from_json(text) == Glance()


def test_last_words_are_the_last_lines_of_both_streams() -> None:
    said = Finished(1, "\n".join(f"line {number}" for number in range(40)), "\ncould not\n").last_words.splitlines()
    assert said[-1] == "could not"
    assert "line 39" in said
    assert "line 0" not in said
