"""Optimizers of the outer step. The "gradient" that they are given is how far members went: anchor - local, averaged.

    nesterov, fedavgm               b <- mu b + D;  x <- x - lr (D + mu b), or x - lr b                 torch's SGD
    fedadam, fedyogi, fedadagrad    m <- b1 m + (1 - b1) D;  v as below;  x <- x - lr m / (sqrt(v) + eps)

    fedadam      v <- b2 v + (1 - b2) D^2
    fedyogi      v <- v - (1 - b2) D^2 sign(v - D^2)
    fedadagrad   v <- v + D^2

DiLoCo (arXiv 2311.08105) has nesterov with 0.7 and 0.9; the adaptive ones are algorithm 2 of Reddi et al. (arXiv 2003.00295), without bias
correction. Every operation is elementwise, so members that apply the same bytes hold the same bytes after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

if TYPE_CHECKING:
    from swarm.optim.settings import OuterSettings

OuterName = Literal["nesterov", "fedavgm", "fedadam", "fedyogi", "fedadagrad"]
OUTER_NAMES: tuple[OuterName, ...] = get_args(OuterName)


class AdaptiveOuter(torch.optim.Optimizer):
    """FedAdam, FedYogi and FedAdagrad.

    Args:
        params: the anchor.
        kind: which of them.
        lr: server learning rate.
        betas: of the mean and of the squares; FedAdagrad has no use for the second.
        eps: tau of the paper, the degree of adaptivity: small is more.
    """

    def __init__(self, params: Iterable[torch.Tensor], kind: OuterName, *, lr: float, betas: tuple[float, float], eps: float) -> None:
        self._squares = _SQUARES[kind]
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, _closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # nothing is evaluated here
        """Step every parameter that has a gradient."""
        for group in self.param_groups:
            (beta1, beta2), lr, eps = group["betas"], group["lr"], group["eps"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                state: dict[str, Any] = self.state[param]
                if not state:
                    state["mean"], state["squares"] = torch.zeros_like(param), torch.zeros_like(param)
                mean, squares = state["mean"], state["squares"]
                mean.mul_(beta1).add_(param.grad * (1 - beta1))
                self._squares(squares, param.grad * param.grad, beta2)
                param.sub_(mean * lr / (squares.sqrt() + eps))


def _adam(squares: torch.Tensor, new: torch.Tensor, beta2: float) -> None:
    squares.mul_(beta2).add_(new * (1 - beta2))


def _yogi(squares: torch.Tensor, new: torch.Tensor, beta2: float) -> None:
    squares.sub_(new * (squares - new).sign_() * (1 - beta2))


def _adagrad(squares: torch.Tensor, new: torch.Tensor, _beta2: float) -> None:
    squares.add_(new)


_SQUARES: dict[str, Callable[[torch.Tensor, torch.Tensor, float], None]] = {"fedadam": _adam, "fedyogi": _yogi, "fedadagrad": _adagrad}


def outer_optimizer(params: Iterable[torch.Tensor], settings: OuterSettings) -> torch.optim.Optimizer:
    """The optimizer of the outer step that the settings name.

    Args:
        params: the anchor, fp32 on the CPU.
        settings: its name and numbers.
    """
    name, rate, momentum = settings.optimizer, settings.outer_learning_rate, settings.momentum
    if name in _SQUARES:
        return AdaptiveOuter(params, name, lr=rate, betas=(momentum, settings.beta2), eps=settings.eps)
    return torch.optim.SGD(params, lr=rate, momentum=momentum, nesterov=name == "nesterov" and momentum > 0, foreach=False)
