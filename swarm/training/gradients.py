"""One micro-batch: tokens in, gradients added to the parameters, loss out.

A sample is one window. Its loss is the mean cross-entropy of its tokens, in nats; a micro-batch adds the *sum* over its samples, so that
after any number of micro-batches a member's contribution is the accumulated gradient divided by its samples, however they were cut.

Letters: B samples, T tokens in a window, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class LossSum:
    """What one or several micro-batches came to.

    Args:
        nats: sum over samples of the mean loss per token.
        samples: how many.
    """

    nats: float = 0.0
    samples: int = 0

    def __add__(self, other: LossSum) -> LossSum:
        return LossSum(self.nats + other.nats, self.samples + other.samples)

    @property
    def mean(self) -> float:
        """Nats per token; not a number before the first sample."""
        return self.nats / self.samples if self.samples else math.nan

    @property
    def is_finite(self) -> bool:
        """False when a loss overflowed: the gradients that came with it must not be contributed."""
        return math.isfinite(self.nats)


def accumulate_gradients(model: nn.Module, tokens_BT: torch.Tensor, *, bf16: bool | None = None) -> LossSum:
    """Forward and backward of one micro-batch; adds d(sum of losses)/d(parameter) to every `.grad`.

    By itself, CUDA runs the forward pass under bf16 autocast, with the loss in fp32; on a CPU everything is fp32. Nothing random: the
    result depends on parameters, tokens and precision only (up to the device's order of summation).

    Args:
        model: causal language model on one device, as `swarm.models.build.build_model` makes it.
        tokens_BT: int64 on any device; each window predicts its tokens 1 to T - 1.
        bf16: whether to autocast; None: as the device does by itself.

    Raises:
        ValueError: no sample, or a window of fewer than two tokens.
    """
    losses_B = window_losses(model, tokens_BT, bf16=bf16)
    total = losses_B.sum()
    total.backward()  # type: ignore[no-untyped-call]
    return LossSum(float(total.detach()), len(losses_B))


def window_losses(model: nn.Module, tokens_BT: torch.Tensor, *, bf16: bool | None = None) -> torch.Tensor:
    """Mean loss of each window.

    Args:
        model: as `accumulate_gradients`.
        tokens_BT, bf16: as `accumulate_gradients`.

    Returns:
        losses_B, fp32 on the model's device, in nats per token.

    Raises:
        ValueError: as `accumulate_gradients`.
    """
    if tokens_BT.dim() != 2 or tokens_BT.shape[0] < 1 or tokens_BT.shape[1] < 2:
        raise ValueError(f"a micro-batch holds at least one window of at least two tokens, not {tuple(tokens_BT.shape)}")
    device = device_of(model)
    tokens_BT = tokens_BT.to(device, non_blocking=True)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda" if bf16 is None else bf16):
        logits_BTV = model(input_ids=tokens_BT[:, :-1], use_cache=False).logits
    losses_N = nn.functional.cross_entropy(logits_BTV.float().flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none")
    return losses_N.view(len(tokens_BT), -1).mean(dim=1)


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; all must be on one device."""
    return next(model.parameters()).device
