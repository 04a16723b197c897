"""Held-out loss: the same windows every time, so that two numbers of one run can be compared."""

from __future__ import annotations

import torch
from torch import nn

from swarm.data.dataset import Dataset
from swarm.training.gradients import LossSum, window_losses

DEFAULT_WINDOWS = 128
"""Windows measured: 128 of 128 bytes cost about half a second of one core with the `tiny` preset."""


def held_out_loss(model: nn.Module, dataset: Dataset, *, windows: int = DEFAULT_WINDOWS, micro_batch_samples: int = 16) -> float:
    """Mean loss on held-out text, in nats per byte. Touches neither gradients nor the model's mode.

    Args:
        model: causal language model on one device.
        dataset: whose held-out bytes are measured.
        windows: at most so many windows, spread evenly over the held-out bytes; bounds the cost.
        micro_batch_samples: windows in one forward pass.
    """
    tokens_BT = dataset.held_out_sample(windows)
    was_training = model.training
    model.eval()
    total = LossSum()
    try:
        with torch.inference_mode():
            for part_BT in torch.split(tokens_BT, micro_batch_samples):
                total += LossSum(float(window_losses(model, part_BT).sum()), len(part_BT))
    finally:
        model.train(was_training)
    return total.mean
