"""Bytes of a member's memory, on the device that computes and beside it, and the least costly way to make a run fit.

On the device are weights, gradients, by the outer rule the inner optimizer's states and the sums of an inner batch, and what a pass keeps;
all but the last are exact. What a pass keeps is that of BLOOM, as autograd holds it: other models of the same shape come close.

Letters: N parameters, L layers, h width, H heads, T tokens, V words.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from protocols.planning.values import Settings

FP32_BYTES = 4
BLOCK_ELEMS = 256
"""Elements of 8-bit states that share one fp32 maximum."""
SMALL_ELEMS = 4096
"""Tensors of fewer elements keep fp32 states."""
OVERHEAD_BYTES = 3 * 2**28
"""Of a device: what its driver takes and what allocators cannot use. An estimate."""

_BF16_BYTES = 2
_ROUND_COPIES = 4
"""Contribution, what came of it, the result, and the parts of the blocks that a member reduces: of what is averaged."""
_LAYER_BYTES = {False: (64, 4), True: (36, 6)}
"""By whether bf16 computes: bytes that a layer keeps for T h, and for H T^2."""
_END_BYTES = 12
"""For T V: the loss keeps a third, the rest are logits and their gradients; and for T h, in all layers together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """What a member may choose for itself, to need less of its device's memory.

    Args:
        states: of the inner optimizer.
        offload: states in main memory, steps on the CPU.
        recompute: layers are computed again in the backward pass.
    """

    states: Literal["fp32", "8bit"] = "fp32"
    offload: bool = False
    recompute: bool = False

    @property
    def flags(self) -> str:
        """As `swarm-peer join` has them."""
        chosen = (
            (self.states == "8bit", "--optimizer-states 8bit"),
            (self.offload, "--offload-optimizer"),
            (self.recompute, "--recompute-activations"),
        )
        return " ".join(flag for wanted, flag in chosen if wanted)


SAVINGS = {
    "outer": (
        Saving(),
        Saving(states="8bit"),
        Saving(states="8bit", recompute=True),
        Saving(offload=True),
        Saving(offload=True, recompute=True),
    ),
    "gradient": (Saving(), Saving(recompute=True)),
}
"""By rule, from the least costly in time to the costliest: by the gradient rule no states are on the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What an inner optimizer steps.

    Args:
        parameters: N.
        small_parameters: of these, in tensors of fewer than `SMALL_ELEMS`.
        staged_elems: that an offloaded optimizer copies through main memory at a time.
        moments: numbers that the optimizer keeps of each parameter.
        outer_moments: those that the outer optimizer keeps.
    """

    parameters: int
    small_parameters: int = 0
    staged_elems: int = 0
    moments: int = 2
    outer_moments: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model and its samples, as far as activations depend on them: L, h, H, V and T."""

    layers: int
    width: int
    heads: int
    words: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Activations:
    """What a forward and backward pass takes beside weights and gradients.

    Args:
        fixed_bytes: however many samples: bf16 copies of weights.
        bytes_per_sample: for each.
    """

    fixed_bytes: float = 0.0
    bytes_per_sample: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Bytes on the device that computes.

    Args:
        weights, gradients: of the model.
        sums: of an inner batch's gradients, where it takes several micro-batches.
        states: of the inner optimizer.
        activations: of one micro-batch.
    """

    weights: float
    gradients: float
    sums: float
    states: float
    activations: float

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(getattr(self, field.name) for field in fields(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """Bytes in main memory.

    Args:
        shared: what all members hold alike: the anchor.
        shared_states: of the optimizer that steps it.
        gathered: by the gradient rule the accumulator, and parameters to replay others' contributions with.
        states: of an offloaded inner optimizer, the sums of its gradients, and what it copies through.
        rounds: vectors and parts of a round.
        copies: of a state while it is saved or given away.
    """

    shared: float
    shared_states: float
    gathered: float
    states: float
    rounds: float
    copies: float

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(getattr(self, field.name) for field in fields(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to train, and what it takes.

    Args:
        saving: what the member chooses.
        device, host: what it needs then.
        most_samples: largest micro-batch that its device has room for, 0: none; None where the device is not known.
    """

    saving: Saving
    device: DeviceMemory
    host: HostMemory
    most_samples: int | None


def activations(shape: Shape, parameters: int, *, bf16: bool, recompute: bool = False) -> Activations:
    """What a pass keeps.

    Args:
        shape: of the model and a sample.
        parameters: N.
        bf16: whether it computes under bf16 autocast, which keeps such a copy of every weight.
        recompute: layers keep their input alone, and one at a time all of it.
    """
    per_width, per_score = _LAYER_BYTES[bf16]
    layer = shape.tokens * (per_width * shape.width + per_score * shape.heads * shape.tokens)
    kept = layer + shape.layers * FP32_BYTES * shape.tokens * shape.width if recompute else shape.layers * layer
    at_once = shape.width * (shape.words + 12 * shape.width) if recompute else parameters
    end = _END_BYTES * shape.tokens * (shape.words + shape.width)
    return Activations(float(_BF16_BYTES * min(at_once, parameters) * bf16), float(kept + end))


def states_bytes(trained: Trained, states: Literal["fp32", "8bit"]) -> float:
    """Of an optimizer, wherever they are."""
    if states == "fp32":
        return FP32_BYTES * trained.moments * trained.parameters
    blocked = trained.parameters - trained.small_parameters
    return trained.moments * (blocked * (1 + FP32_BYTES / BLOCK_ELEMS) + FP32_BYTES * trained.small_parameters)


def device_memory(trained: Trained, found: Activations, settings: Settings, saving: Saving, micro_batch_samples: int) -> DeviceMemory:
    """What a member needs on its device.

    Args:
        trained: by its optimizer.
        found: of a pass, with the same `recompute` as `saving`.
        settings: rule and inner batch.
        saving: the member's choice.
        micro_batch_samples: of a pass.
    """
    own, size_bytes = settings.rule == "outer" and not saving.offload, float(FP32_BYTES * trained.parameters)
    return DeviceMemory(
        weights=size_bytes,
        gradients=size_bytes,
        sums=size_bytes if own and micro_batch_samples < settings.inner_batch_samples else 0.0,
        states=states_bytes(trained, saving.states) if own else 0.0,
        activations=found.fixed_bytes + micro_batch_samples * found.bytes_per_sample,
    )


def host_memory(trained: Trained, settings: Settings, saving: Saving, averaged_elems: int) -> HostMemory:
    """What a member needs beside its device.

    Args:
        trained, settings, saving: as for `device_memory`.
        averaged_elems: of the vector that one epoch averages.
    """
    outer, size_bytes = settings.rule == "outer", float(FP32_BYTES * trained.parameters)
    own_states = states_bytes(trained, saving.states) if outer else 0.0
    shared_states = size_bytes * (trained.outer_moments if outer else trained.moments)
    return HostMemory(
        shared=size_bytes,
        shared_states=shared_states,
        gathered=0.0 if outer else 2 * size_bytes,
        states=own_states + FP32_BYTES * (trained.parameters + trained.staged_elems) if outer and saving.offload else 0.0,
        rounds=float(FP32_BYTES * _ROUND_COPIES * averaged_elems),
        copies=max(size_bytes + shared_states, size_bytes + own_states),
    )


def most_samples(trained: Trained, found: Activations, settings: Settings, saving: Saving, device_bytes: float) -> int:
    """The largest micro-batch that a device has room for, up to an inner batch or the target of an epoch; 0: not even one sample fits."""
    limit = settings.inner_batch_samples if settings.rule == "outer" else settings.target_samples
    free = device_bytes - OVERHEAD_BYTES
    if device_memory(trained, found, settings, saving, limit).total <= free:
        return limit
    room = free - device_memory(trained, found, settings, saving, 0).total
    if room < 0 or not found.bytes_per_sample:
        return 0
    return min(int(room // found.bytes_per_sample), limit - 1)


def kept_bytes(trained: Trained, saving: Saving, inner_batch_samples: int) -> int:
    """What stays on a device between passes by the outer rule, beside the weights: for whoever looks how large a pass may be."""
    sums = FP32_BYTES * trained.parameters if inner_batch_samples > 1 else 0
    return 0 if saving.offload else round(sums + states_bytes(trained, saving.states))


def choices(
    trained: Trained, shape: Shape, settings: Settings, micro_batch_samples: int, device_bytes: float | None, *, bf16: bool, audited: bool
) -> tuple[Choice, ...]:
    """Every way to train, from the least costly in time to the costliest.

    Args:
        trained, shape: of the run.
        settings: of the run.
        micro_batch_samples: of a pass; an inner batch at most.
        device_bytes: memory of the device; None: not known.
        bf16: whether it computes in bf16.
        audited: whether members compute each other's inner steps again: then nobody's states have 8 bits.
    """
    fragments = settings.fragments if settings.rule == "outer" else 1
    samples = min(micro_batch_samples, settings.inner_batch_samples) if settings.rule == "outer" else micro_batch_samples
    found = []
    for saving in SAVINGS[settings.rule]:
        if audited and saving.states == "8bit":
            continue
        kept = activations(shape, trained.parameters, bf16=bf16, recompute=saving.recompute)
        device = device_memory(trained, kept, settings, saving, samples)
        host = host_memory(trained, settings, saving, -(-trained.parameters // fragments))
        most = None if device_bytes is None else most_samples(trained, kept, settings, saving, device_bytes)
        found.append(Choice(saving=saving, device=device, host=host, most_samples=most))
    return tuple(found)


def cheapest_that_fits(found: tuple[Choice, ...]) -> Choice | None:
    """The first with room for a sample; None: there is none, or the device is not known."""
    return next((choice for choice in found if choice.most_samples), None)
