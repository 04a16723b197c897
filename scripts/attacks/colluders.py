"""All attackers of one run together: they know what everybody contributes, and share one attack and one generator."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from peers.attacks.vectors import DELAY_EPOCHS
from peers.attacks.view import AttackView, VectorAttack
from protocols.ids import PeerId
from scripts.attacks.workload import Workload


class Colluders:
    """Turns what attackers would honestly contribute into what they send.

    Args:
        attack: what they do.
        workload: what is trained.
        seed: of their generator.
    """

    def __init__(self, attack: VectorAttack, workload: Workload, seed: int) -> None:
        self._attack = attack
        self._workload = workload
        self._rng = np.random.default_rng((seed, 2))
        self._past: dict[PeerId, deque[torch.Tensor]] = {}

    def remember(self, own: Mapping[PeerId, torch.Tensor]) -> None:
        """Keep what attackers honestly computed in an epoch, after it is over, attacked or not."""
        for peer, own_D in own.items():
            self._past.setdefault(peer, deque(maxlen=DELAY_EPOCHS)).append(own_D)

    def contributions(
        self, epoch: int, params_D: torch.Tensor, own: Mapping[PeerId, torch.Tensor], honest: Mapping[PeerId, torch.Tensor]
    ) -> dict[PeerId, tuple[torch.Tensor, float]]:
        """What the attackers send in an epoch.

        Args:
            epoch: its number.
            params_D: the state.
            own: what each attacker that is still a member would honestly contribute.
            honest: what the honest members contribute.

        Returns:
            Vector and claimed weight of each attacker.
        """
        honest_GD = torch.stack(list(honest.values()))
        sent = {}
        for peer, own_D in own.items():
            view = AttackView(
                epoch=epoch,
                own_D=own_D,
                own_weight=float(self._workload.samples),
                n=len(own) + len(honest),
                f=len(own),
                rng=self._rng,
                label_flipped=partial(self._workload.gradient, epoch, peer, 0, self._workload.samples, params_D, flipped=True),
                wrong_samples=partial(self._workload.favourite_gradient, params_D),
                past=tuple(self._past.get(peer, ())),
                honest_GD=honest_GD,
                honest_ids=tuple(honest),
            )
            sent[peer] = self._attack.contribution(view)
        return sent
