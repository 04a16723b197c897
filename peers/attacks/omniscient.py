"""Attacks that are made from what the honest members contribute.

Letters: G honest members, D elements of a contribution. mu and sigma are mean and standard deviation over the honest members.
"""

from __future__ import annotations

from collections.abc import Hashable
from statistics import NormalDist
from typing import ClassVar

import torch

from peers.attacks.view import AttackView, VectorAttack

_MIMIC_WARM_UP_EPOCHS = 10
_MIN_MAX_FIRST_GAMMA = 10.0
_MIN_MAX_TOLERANCE = 1e-5


class InnerProduct(VectorAttack):
    """-epsilon mu: inner-product manipulation (Xie et al. 2020, arXiv 1903.03936). Who sees nobody takes its own gradient for mu."""

    epsilon: ClassVar[float]

    def contribution(self, view: AttackView) -> tuple[torch.Tensor, float]:
        """See `VectorAttack.contribution`."""
        return -self.epsilon * view.honest_mean(), view.own_weight


class InnerProduct01(InnerProduct):
    """Too small to be noticed by its norm."""

    name, epsilon = "ipm_0.1", 0.1


class InnerProduct06(InnerProduct):
    """Enough to halve the mean with 7 attackers of 16."""

    name, epsilon = "ipm_0.6", 0.6


class InnerProduct11(InnerProduct):
    """About as long as an honest mean, and against it."""

    name, epsilon = "ipm_1.1", 1.1


def alie_z(n: int, f: int) -> float:
    """How many standard deviations "a little is enough" moves away from the mean (Baruch et al. 2019, arXiv 1902.06156, algorithm 3).

    s = floor(n/2 + 1) - f honest members must be won over for a majority; z is the largest shift that so many of the n - f exceed in the
    same direction: the normal quantile of (n - f - s) / (n - f). With a majority of attackers one is enough. 0.765 for (16, 7).

    Returns:
        z; 0 where there are too few honest members to hide among.
    """
    honest = n - f
    if honest < 2:
        return 0.0
    supporters = min(max(n // 2 + 1 - f, 1), honest - 1)
    return NormalDist().inv_cdf((honest - supporters) / honest)


class Alie(VectorAttack):
    """mu - z sigma, "a little is enough": within the spread of honest members in every element. `z` is the one of the last contribution."""

    name = "alie"
    needs_view = True

    def __init__(self) -> None:
        self.z = 0.0

    def contribution(self, view: AttackView) -> tuple[torch.Tensor, float]:
        """See `VectorAttack.contribution`."""
        honest_GD = view.others()
        self.z = alie_z(view.n, view.f)
        return honest_GD.mean(dim=0) - self.z * honest_GD.std(dim=0, correction=0), view.own_weight


class Mimic(VectorAttack):
    """All colluders copy one honest member, so that it counts f + 1 times (Karimireddy et al. 2022, arXiv 2006.09365, appendix B).

    While it warms up, power iteration over the epochs finds the direction of the largest variance among honest members, and the member
    that lies furthest out along it so far is copied; afterwards always the same, or the next one if it has gone.
    """

    name = "mimic"
    needs_view = True

    def __init__(self) -> None:
        self._epochs = 0
        self._seen_epoch: int | None = None
        self._direction_D: torch.Tensor | None = None
        self._reach: dict[Hashable, float] = {}

    def contribution(self, view: AttackView) -> tuple[torch.Tensor, float]:
        """See `VectorAttack.contribution`."""
        honest_GD = view.others()
        ids = view.honest_ids or tuple(range(len(honest_GD)))
        if view.epoch != self._seen_epoch and self._epochs < _MIMIC_WARM_UP_EPOCHS:
            self._look(view, honest_GD, ids)
        chosen = max(range(len(ids)), key=lambda row: abs(self._reach.get(ids[row], 0.0)))
        return honest_GD[chosen], view.own_weight

    def _look(self, view: AttackView, honest_GD: torch.Tensor, ids: tuple[Hashable, ...]) -> None:
        self._seen_epoch, self._epochs = view.epoch, self._epochs + 1
        deviations_GD = honest_GD - honest_GD.mean(dim=0)
        if self._direction_D is None:
            start_D = torch.from_numpy(view.rng.standard_normal(honest_GD.shape[1])).float()
            self._direction_D = start_D / start_D.norm()
        moved_D = deviations_GD.T @ (deviations_GD @ self._direction_D)
        if moved_D.norm() > 0:
            mixed_D = (self._epochs - 1) / self._epochs * self._direction_D + moved_D / (self._epochs * moved_D.norm())
            self._direction_D = mixed_D / mixed_D.norm().clamp_min(1e-30)
        for member, reach in zip(ids, (deviations_GD @ self._direction_D).tolist(), strict=True):
            self._reach[member] = self._reach.get(member, 0.0) + reach


class MinMax(VectorAttack):
    """mu - gamma sigma, no further from any honest member than two of them are apart (Shejwalkar and Houmansadr, NDSS 2021)."""

    name = "min_max"
    needs_view = True

    def contribution(self, view: AttackView) -> tuple[torch.Tensor, float]:
        """See `VectorAttack.contribution`."""
        honest_GD = view.others()
        mean_D = honest_GD.mean(dim=0)
        push_D = -honest_GD.std(dim=0, correction=0)
        return mean_D + min_max_gamma(honest_GD, push_D) * push_D, view.own_weight


def min_max_gamma(honest_GD: torch.Tensor, push_D: torch.Tensor) -> float:
    """Largest gamma, up to 20, with max_i |mu + gamma p - g_i| <= max_ij |g_i - g_j|, by the paper's halving search from 10."""
    rows_GD = honest_GD.double()
    deviations_GD = rows_GD.mean(dim=0) - rows_GD
    direction_D = push_D.double()
    squares_G, along_G, push_square = (deviations_GD**2).sum(dim=1), deviations_GD @ direction_D, direction_D @ direction_D
    widest_square = float(torch.pdist(rows_GD).square().max()) if len(rows_GD) > 1 else 0.0
    best, gamma, step = 0.0, _MIN_MAX_FIRST_GAMMA, _MIN_MAX_FIRST_GAMMA
    while step > _MIN_MAX_TOLERANCE:
        step /= 2
        if float((squares_G + 2 * gamma * along_G + gamma**2 * push_square).max()) <= widest_square:
            best, gamma = gamma, gamma + step
        else:
            gamma -= step
    return best


class FreeRider(VectorAttack):
    """Computes nothing and sends another member's contribution as its own."""

    name = "free_rider"
    needs_view = True

    def contribution(self, view: AttackView) -> tuple[torch.Tensor, float]:
        """See `VectorAttack.contribution`."""
        honest_GD = view.others()
        return honest_GD[int(view.rng.integers(len(honest_GD)))], view.own_weight
