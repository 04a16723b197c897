"""Attackers in a process of their own: which attacks they can carry out, and when."""

from __future__ import annotations

import pytest
import torch

from peers.attacks.lone import HONEST_EPOCHS, LONE_ATTACKS, lone_attacker
from peers.attacks.vectors import VECTOR_ATTACKS
from protocols.errors import ConfigError
from protocols.ids import BlockIndex, Epoch
from tests.helpers.run_world import identity

ME = identity(1).peer
OWN_D = torch.linspace(-1.0, 1.0, 8)


@pytest.mark.parametrize("name", [name for name in LONE_ATTACKS if name in VECTOR_ATTACKS])
def test_an_attack_on_contributions_needs_nothing_but_our_own_gradient(name: str) -> None:
    attacker = lone_attacker(name, ME)
    own_D = OWN_D.clone()
    for epoch in range(HONEST_EPOCHS):
        sent_D, weight = attacker.contribution(Epoch(epoch), own_D, 8.0)
        assert torch.equal(sent_D, OWN_D)
        assert weight == 8.0
    sent_D, weight = attacker.contribution(Epoch(HONEST_EPOCHS), own_D * 2, 8.0)
    assert not (torch.equal(sent_D, OWN_D * 2) and weight == 8.0)
    assert torch.equal(own_D, OWN_D), "our own gradient is not written to"


def test_a_helper_has_nothing_to_attack_with() -> None:
    sent_D, weight = lone_attacker("sign_flip", ME).contribution(Epoch(9), OWN_D, 0.0)
    assert sent_D is OWN_D
    assert weight == 0.0


def test_a_lying_reducer_lies_once_it_has_begun() -> None:
    attacker = lone_attacker("lying_reducer", ME)
    attacker.contribution(Epoch(0), OWN_D, 8.0)
    assert torch.equal(attacker.reduced(BlockIndex(0), OWN_D, 1.0), OWN_D)
    attacker.contribution(Epoch(HONEST_EPOCHS), OWN_D, 8.0)
    assert not torch.equal(attacker.reduced(BlockIndex(0), OWN_D, 1.0), OWN_D)


@pytest.mark.parametrize("name", ["mimic", "collude", "label_flip", "none of them"])
def test_attacks_that_take_more_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match="choose one of sign_flip"):
        lone_attacker(name, ME)
