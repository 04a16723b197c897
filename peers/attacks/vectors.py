"""Attacks on contributions by name, and those that an attacker can carry out knowing nothing but its own gradient.

Sources: Gorbunov et al. 2022 (BTARD, arXiv 2106.11257, section 4.1) for the scales of 1000, Karimireddy et al. 2022 (arXiv 2006.09365) for
bit and label flips. Attacks that look at the honest members are in `omniscient.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch

from peers.attacks.omniscient import Alie, FreeRider, InnerProduct01, InnerProduct06, InnerProduct11, Mimic, MinMax
from peers.attacks.view import AttackView, VectorAttack
from protocols.errors import ConfigError

SCALE = 1000.0
"""By how much loud attacks exceed an honest gradient (BTARD, section 4.1)."""

DELAY_EPOCHS = 30
"""Age of a delayed gradient. BTARD takes 1000 of 25000 steps; this is as much of a short run as hurts."""

CLAIMED_SAMPLES = 1e6
CLAIMED_FACTOR = 10.0


class SignFlip(VectorAttack):
    """-1000 g."""

    name = "sign_flip"

    def contribution(self, view: AttackView) -> tuple[torch.Tensor, float]:
        """See `VectorAttack.contribution`."""
        return -SCALE * view.own_D, view.own_weight


class BitFlip(VectorAttack):
    """-g: the sign bit of every element."""

    name = "bit_flip"

    def contribution(self, view: AttackView) -> tuple[torch.Tensor, float]:
        """See `VectorAttack.contribution`."""
        return -view.own_D, view.own_weight


class ConstantDirection(VectorAttack):
    """One random direction for all colluders and all epochs, 1000 times as long as the attacker's gradient."""

    name = "constant_direction"

    def __init__(self) -> None:
        self._unit_D: torch.Tensor | None = None

    def contribution(self, view: AttackView) -> tuple[torch.Tensor, float]:
        """See `VectorAttack.contribution`."""
        if self._unit_D is None or self._unit_D.shape != view.own_D.shape:
            direction_D = torch.from_numpy(view.rng.standard_normal(view.own_D.numel(), dtype=np.float32))
            self._unit_D = direction_D / direction_D.norm()
        return self._unit_D * (SCALE * view.own_D.norm()), view.own_weight


class LabelFlip(VectorAttack):
    """An honest gradient of the wrong task: own samples, flipped labels."""

    name = "label_flip"

    def contribution(self, view: AttackView) -> tuple[torch.Tensor, float]:
        """See `VectorAttack.contribution`."""
        return view.label_flipped(), view.own_weight


class DelayedGradient(VectorAttack):
    """The gradient at a state that is several epochs old; the oldest there is until so many have passed.

    Args:
        delay_epochs: how old.
    """

    name = "delayed_gradient"

    def __init__(self, delay_epochs: int = DELAY_EPOCHS) -> None:
        self._delay = delay_epochs

    def contribution(self, view: AttackView) -> tuple[torch.Tensor, float]:
        """See `VectorAttack.contribution`."""
        if not view.past:
            return view.own_D, view.own_weight
        return view.past[-min(self._delay, len(view.past))], view.own_weight


class NotANumber(VectorAttack):
    """NaN and Inf in turn: one accepted element of them spoils a mean."""

    name = "nan"

    def contribution(self, view: AttackView) -> tuple[torch.Tensor, float]:
        """See `VectorAttack.contribution`."""
        vector_D = torch.full_like(view.own_D, float("nan"))
        vector_D[1::2] = float("inf")
        return vector_D, view.own_weight


class WrongWeight(VectorAttack):
    """An honest gradient that claims more samples: a million in even epochs, ten times the truth in odd ones, which no limit forbids."""

    name = "wrong_weight"

    def contribution(self, view: AttackView) -> tuple[torch.Tensor, float]:
        """See `VectorAttack.contribution`."""
        return view.own_D, CLAIMED_FACTOR * view.own_weight if view.epoch % 2 else CLAIMED_SAMPLES


class WrongSamples(VectorAttack):
    """An honest gradient on samples of the attacker's own choice instead of those that were drawn for it."""

    name = "wrong_samples"

    def contribution(self, view: AttackView) -> tuple[torch.Tensor, float]:
        """See `VectorAttack.contribution`."""
        return view.wrong_samples(), view.own_weight


VECTOR_ATTACKS: Mapping[str, type[VectorAttack]] = MappingProxyType(
    {
        attack.name: attack
        for attack in (
            SignFlip, ConstantDirection, LabelFlip, DelayedGradient, InnerProduct01, InnerProduct06, InnerProduct11, Alie, Mimic, MinMax,
            BitFlip, NotANumber, FreeRider, WrongWeight, WrongSamples,
        )
    }
)  # fmt: skip
"""All attacks on contributions by name, in the order of tables."""


def vector_attack_named(name: str) -> VectorAttack:
    """A new attack, to be shared by the colluders of one run.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in VECTOR_ATTACKS:
        raise ConfigError(f"there is no attack {name!r}: choose one of {', '.join(VECTOR_ATTACKS)}")
    return VECTOR_ATTACKS[name]()
