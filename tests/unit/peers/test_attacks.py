"""What attackers contribute: each attack's formula, and what it needs to know."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from peers.attacks.omniscient import Alie, Mimic, alie_z, min_max_gamma
from peers.attacks.vectors import DELAY_EPOCHS, VECTOR_ATTACKS, DelayedGradient, WrongWeight, vector_attack_named
from peers.attacks.view import AttackView
from protocols.errors import ConfigError, LocalProtocolError

NAMES = [
    *("sign_flip", "constant_direction", "label_flip", "delayed_gradient", "ipm_0.1", "ipm_0.6", "ipm_1.1", "alie", "mimic", "min_max"),
    *("bit_flip", "nan", "free_rider", "wrong_weight", "wrong_samples"),
]
OWN_D = torch.tensor([3.0, -4.0, 0.0])
FLIPPED_D, WRONG_D = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])


def view(
    honest_GD: torch.Tensor | None = None,
    *,
    own_D: torch.Tensor = OWN_D,
    epoch: int = 0,
    past: Sequence[torch.Tensor] = (),
    n: int = 16,
    f: int = 7,
    ids: tuple[int, ...] = (),
    rng: np.random.Generator | None = None,
) -> AttackView:
    return AttackView(
        epoch, own_D, 4.0, n, f, rng or np.random.default_rng(0), lambda: FLIPPED_D, lambda: WRONG_D, past, honest_GD, ids
    )  # fmt: skip


def honest(seed: int = 0, members: int = 9, elems: int = 200) -> torch.Tensor:
    return torch.randn(members, elems, generator=torch.Generator().manual_seed(seed)) + 0.1


def sent(name: str, seen: AttackView) -> list[float]:
    vector_D, weight = vector_attack_named(name).contribution(seen)
    assert weight == 4.0
    return vector_D.tolist()


def test_every_attack_has_its_name() -> None:
    assert list(VECTOR_ATTACKS) == NAMES
    with pytest.raises(ConfigError, match=r"sign_flip, constant_direction"):
        vector_attack_named("flip")


def test_what_a_lone_process_can_do() -> None:
    assert sent("sign_flip", view()) == [-3000.0, 4000.0, 0.0]
    assert sent("bit_flip", view()) == [-3.0, 4.0, 0.0]
    assert sent("label_flip", view()) == FLIPPED_D.tolist()
    assert sent("wrong_samples", view()) == WRONG_D.tolist()
    assert sent("ipm_0.6", view()) == pytest.approx([-1.8, 2.4, 0.0])


@pytest.mark.parametrize("name", NAMES)
def test_needs_view_says_who_can_attack_alone(name: str) -> None:
    attack = vector_attack_named(name)
    if attack.needs_view:
        with pytest.raises(LocalProtocolError):
            attack.contribution(view())
    else:
        vector_D, _ = attack.contribution(view())
        assert vector_D.shape == OWN_D.shape


@pytest.mark.parametrize("name", NAMES)
def test_attacks_write_to_nothing_they_see(name: str) -> None:
    honest_GD, own_D = honest(), honest(1)[0]
    seen = view(honest_GD.clone(), own_D=own_D.clone())
    vector_D, _ = vector_attack_named(name).contribution(seen)
    assert vector_D.dtype == torch.float32
    assert torch.equal(seen.own_D, own_D)
    assert torch.equal(seen.others(), honest_GD)


def test_constant_direction_is_shared_and_stays() -> None:
    here, there = vector_attack_named("constant_direction"), vector_attack_named("constant_direction")
    first_D, _ = here.contribution(view(rng=np.random.default_rng(5)))
    later_D, _ = here.contribution(view(epoch=1, own_D=2 * OWN_D, rng=np.random.default_rng(9)))
    other_D, _ = there.contribution(view(rng=np.random.default_rng(5)))
    assert first_D.norm().item() == pytest.approx(5000.0)
    assert torch.equal(first_D, other_D)
    assert torch.allclose(later_D, 2 * first_D)


def test_delayed_gradient_is_as_old_as_it_says() -> None:
    past = [torch.full((3,), float(age)) for age in range(DELAY_EPOCHS + 5, 0, -1)]
    assert sent("delayed_gradient", view(past=past)) == [DELAY_EPOCHS] * 3
    assert sent("delayed_gradient", view(past=past[-4:])) == [4.0] * 3
    assert DelayedGradient(2).contribution(view(past=past))[0].tolist() == [2.0] * 3


@pytest.mark.parametrize(("name", "epsilon"), [("ipm_0.1", 0.1), ("ipm_0.6", 0.6), ("ipm_1.1", 1.1)])
def test_inner_product_points_against_the_mean(name: str, epsilon: float) -> None:
    honest_GD = honest()
    vector_D, _ = vector_attack_named(name).contribution(view(honest_GD))
    assert torch.allclose(vector_D, -epsilon * honest_GD.mean(dim=0))


@pytest.mark.parametrize(("n", "f", "z"), [(25, 5, 0.253), (16, 7, 0.765), (25, 11, 1.068), (20, 3, 0.074), (2, 1, 0.0), (3, 1, 0.0)])
def test_alie_strength_follows_from_the_numbers(n: int, f: int, z: float) -> None:
    assert alie_z(n, f) == pytest.approx(z, abs=6e-4)


def test_alie_needs_no_infinite_strength_with_a_majority() -> None:
    assert 0 < alie_z(16, 9) < 10


def test_alie_stays_within_the_spread() -> None:
    honest_GD = torch.tensor([[0.0, 5.0], [2.0, 5.0]])
    attack = Alie()
    vector_D, _ = attack.contribution(view(honest_GD))
    assert attack.z == pytest.approx(0.765, abs=6e-4)
    assert vector_D.tolist() == pytest.approx([1.0 - attack.z, 5.0])


def test_mimic_copies_the_member_furthest_along_the_widest_direction() -> None:
    attack, chosen = Mimic(), set()
    for epoch in range(30):
        honest_GD = 0.1 * honest(seed=epoch)
        honest_GD[4, :50] += 1.0  # one member's data is different
        for _ in range(7):
            vector_D, _ = attack.contribution(view(honest_GD, epoch=epoch, rng=np.random.default_rng(3)))
            chosen |= {row for row in range(9) if torch.equal(vector_D, honest_GD[row]) and epoch >= 5}
    assert chosen == {4}


def test_mimic_follows_members_and_not_rows() -> None:
    attack, honest_GD = Mimic(), 0.1 * honest()
    honest_GD[2] += 1.0
    attack.contribution(view(honest_GD, ids=tuple(range(9))))
    left_GD = honest_GD[1:]
    vector_D, _ = attack.contribution(view(left_GD, epoch=20, ids=tuple(range(1, 9))))
    assert torch.equal(vector_D, left_GD[1])
    without, _ = attack.contribution(view(honest_GD[:2], epoch=21, ids=(0, 1)))
    assert any(torch.equal(without, row_D) for row_D in honest_GD[:2])


def test_min_max_goes_as_far_as_honest_members_are_apart() -> None:
    honest_GD = honest()
    vector_D, _ = vector_attack_named("min_max").contribution(view(honest_GD))
    furthest = (honest_GD - vector_D).norm(dim=1).max().item()
    assert furthest == pytest.approx(torch.pdist(honest_GD).max().item(), rel=1e-3)
    assert min_max_gamma(honest_GD, -honest_GD.std(dim=0)) > 0.5


def test_min_max_of_equal_members_goes_nowhere() -> None:
    assert min_max_gamma(torch.ones(3, 4), -torch.ones(4)) < 1e-4


def test_nan_brings_both_kinds() -> None:
    vector_D, _ = vector_attack_named("nan").contribution(view())
    assert vector_D.isnan().any()
    assert vector_D.isinf().any()
    assert not vector_D.isfinite().any()


def test_free_rider_sends_what_somebody_else_computed() -> None:
    honest_GD = honest()
    vector_D, _ = vector_attack_named("free_rider").contribution(view(honest_GD))
    assert any(torch.equal(vector_D, row_D) for row_D in honest_GD)


def test_wrong_weight_claims_a_million_or_ten_times_as_much() -> None:
    claimed = [WrongWeight().contribution(view(epoch=epoch)) for epoch in (0, 1)]
    assert [weight for _, weight in claimed] == [1e6, 40.0]
    assert all(torch.equal(vector_D, OWN_D) for vector_D, _ in claimed)
