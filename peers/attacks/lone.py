"""Attackers that are a process of their own and know no more than that process: for demonstrations and tests with real members."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from peers.attacks.protocol import PROTOCOL_ATTACKS, attacker_named
from peers.attacks.ring import Attacker, Ring
from peers.attacks.vectors import DELAY_EPOCHS, VECTOR_ATTACKS, vector_attack_named
from peers.attacks.view import AttackView
from protocols.errors import ConfigError, LocalProtocolError
from protocols.ids import Epoch, PeerId

HONEST_EPOCHS = 3
"""A lone attacker trains along before it begins, so that its group has found together."""

_NEEDS_SAMPLES = {"label_flip", "wrong_samples"}
_NEEDS_FRIENDS = {"two_faced_reducer", "two_faced_unsigned", "equivocate", "collude", "selective_silence"}
_VECTORS = tuple(name for name, attack in VECTOR_ATTACKS.items() if not attack.needs_view and name not in _NEEDS_SAMPLES)

LONE_ATTACKS: tuple[str, ...] = (*_VECTORS, *(name for name in PROTOCOL_ATTACKS if name not in _NEEDS_FRIENDS))
"""Attacks that need neither others' contributions, nor the data, nor somebody to pick on."""


class LoneVectorAttacker(Attacker):
    """Contributes what an attack makes of its own gradient.

    Args:
        name: in `LONE_ATTACKS`.
        me: who it is.
        ring: of itself alone.
    """

    def __init__(self, name: str, me: PeerId, ring: Ring) -> None:
        super().__init__(me, ring)
        self._attack = vector_attack_named(name)
        self._past: deque[torch.Tensor] = deque(maxlen=DELAY_EPOCHS)

    def contribution(self, epoch: Epoch, own_D: torch.Tensor, weight: float) -> tuple[torch.Tensor, float]:
        """See `Conduct.contribution`."""
        super().contribution(epoch, own_D, weight)
        view = AttackView(epoch, own_D, weight, 1, 1, self.ring.rng, _has_no_data, _has_no_data, tuple(self._past))
        if self._attack.name == "delayed_gradient":
            self._past.append(own_D.clone())
        return self._attack.contribution(view) if self.attacks and weight else (own_D, weight)


def lone_attacker(name: str, me: PeerId) -> Attacker:
    """How a member behaves that attacks all by itself, after `HONEST_EPOCHS`.

    Args:
        name: in `LONE_ATTACKS`.
        me: who it is.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in LONE_ATTACKS:
        raise ConfigError(f"there is no attack {name!r} for a member on its own: choose one of {', '.join(LONE_ATTACKS)}")
    ring = Ring(frozenset({me}), frozenset(), 0, np.random.default_rng(list(me.public_key)), Epoch(HONEST_EPOCHS))
    if name in VECTOR_ATTACKS:
        return LoneVectorAttacker(name, me, ring)
    return attacker_named(name, me, ring)


def _has_no_data() -> torch.Tensor:
    raise LocalProtocolError("an attacker on its own is not told how samples are computed")
