"""A transformer over bytes small enough that many members' gradients fit into one core's cache, as a function of one flat vector.

Pre-norm, one layer, causal attention, tied embedding. A leading letter N holds N vectors of parameters, each with a window of its own:
gradients of many members, even at different states, take one call. The bits of each do not depend on what else is in the call.

Letters: N vectors, D parameters, T tokens of input, C channels, V values of a byte.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

V = 256
C = 16
HEADS = 2
T = 32

_SHAPES = {"embedding": (V, C), "position": (T, C), "qkv": (C, 3 * C), "out": (C, C), "up": (C, 4 * C), "down": (4 * C, C)}
D = sum(math.prod(shape) for shape in _SHAPES.values())
"""Parameters: 7680."""

_CHUNK = 32
"""Windows at once: more leave the cache and are slower."""


def initial_params(seed: int) -> torch.Tensor:
    """Parameters to start from, params_D fp32."""
    generator = torch.Generator().manual_seed(seed)
    scales = {"embedding": 0.05, "position": 0.05, "out": 0.3 * C**-0.5, "down": 0.3 * (4 * C) ** -0.5}
    parts = [torch.randn(math.prod(shape), generator=generator) * scales.get(name, C**-0.5) for name, shape in _SHAPES.items()]
    return torch.cat(parts)


def window_losses(params_ND: torch.Tensor, inputs_NT: torch.Tensor, targets_NT: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each window under its own parameters, losses_N in nats a byte."""
    count = len(inputs_NT)
    weights = _weights(params_ND)
    rows_N1 = V * torch.arange(count).unsqueeze(1)
    embedded_NTC = functional.embedding(inputs_NT + rows_N1, weights["embedding"].reshape(-1, C))
    state_NTC = embedded_NTC + weights["position"]
    query, key, value = torch.bmm(_normed(state_NTC), weights["qkv"]).view(count, T, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
    mixed_NTC = functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).reshape(count, T, C)
    state_NTC = state_NTC + torch.bmm(mixed_NTC, weights["out"])
    state_NTC = state_NTC + torch.bmm(functional.gelu(torch.bmm(_normed(state_NTC), weights["up"])), weights["down"])
    logits_NTV = torch.bmm(_normed(state_NTC), weights["embedding"].transpose(1, 2))
    losses = functional.cross_entropy(logits_NTV.reshape(-1, V), targets_NT.reshape(-1), reduction="none")
    return losses.view(count, T).mean(dim=1)


def window_gradients(params_ND: torch.Tensor, inputs_NT: torch.Tensor, targets_NT: torch.Tensor) -> torch.Tensor:
    """Gradient of each window's loss by its own parameters, gradients_ND.

    Args:
        params_ND: one row for each window; may be an expanded view.
        inputs_NT, targets_NT: int64 bytes.
    """
    gradients_ND = torch.empty(len(inputs_NT), D)
    for start in range(0, len(inputs_NT), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        leaf_ND = params_ND[chunk].clone().requires_grad_()
        loss = window_losses(leaf_ND, inputs_NT[chunk], targets_NT[chunk]).sum()
        (gradients_ND[chunk],) = torch.autograd.grad(loss, leaf_ND)
    return gradients_ND


def _weights(params_ND: torch.Tensor) -> dict[str, torch.Tensor]:
    sizes = [math.prod(shape) for shape in _SHAPES.values()]
    parts = torch.split(params_ND, sizes, dim=1)
    return {name: part.reshape(-1, *shape) for (name, shape), part in zip(_SHAPES.items(), parts, strict=True)}


def _normed(state_NTC: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(state_NTC, (C,))
