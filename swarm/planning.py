"""From a run file, and from this machine, to what `protocols.planning` needs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from protocols.planning import Machine, Settings, Workload
from protocols.planning.memory import Shape, Trained, activations
from protocols.runspec import RunSpec
from swarm.models.build import configuration, parameter_sizes

if TYPE_CHECKING:
    import torch

Progress = Callable[[float, str], None]
"""Called with the part that is done, from 0 to 1, and what is done now."""

PASSES_S = 10.0
"""How long micro-batches are repeated, once their size is found."""
_MOST_PASSES = 50
_CODEC_ELEMS = 2**22
_REPEATS = 3
_WORDS_S_PER_ELEM = 8e-9
"""Of a round besides the codec: hashing, encrypting, checking and averaging (docs/benchmarks.md)."""


def workload_of(spec: RunSpec, *, bf16: bool = True) -> Workload:
    """What a run trains: 6 N T floating-point operations a sample for N parameters and T tokens, and 12 L T^2 h for attention.

    Args:
        spec: of the run.
        bf16: whether devices compute in bf16, as CUDA does.

    Raises:
        ConfigError: the model's section makes no model.
    """
    shape, trained = shape_of(spec), trained_of(spec)
    parameters, tokens = trained.parameters, shape.tokens
    found = activations(shape, parameters, bf16=bf16)
    return Workload(
        parameters=parameters,
        flops_per_sample=6.0 * parameters * tokens + 12.0 * shape.layers * tokens**2 * shape.width,
        tokens_per_sample=tokens,
        activation_bytes_per_sample=found.bytes_per_sample,
        activation_bytes=found.fixed_bytes,
        moments=trained.moments,
        outer_moments=trained.outer_moments,
        parts=max(shape.layers, 1),
    )


def shape_of(spec: RunSpec) -> Shape:
    """Layers, width, heads, words and tokens of a run.

    Raises:
        ConfigError: the model's section makes no model.
    """
    config = configuration(spec.model.model_dump(exclude_none=True))
    return Shape(
        layers=_number(config, "num_hidden_layers", "n_layer", "num_layers"),
        width=_number(config, "hidden_size", "n_embd", "d_model"),
        heads=_number(config, "num_attention_heads", "n_head", "num_heads"),
        words=_number(config, "vocab_size"),
        tokens=spec.data.sequence_length,
    )


def trained_of(spec: RunSpec) -> Trained:
    """What a run's optimizers step.

    Raises:
        ConfigError: the model's section makes no model.
    """
    from swarm.optim.inner import trained_by

    return trained_by(spec, parameter_sizes(spec.model.model_dump(exclude_none=True)))


def _number(config: Mapping[str, Any], *names: str) -> int:
    """The first of these keys that holds a number; 0 if none does: then its share is left out."""
    return next((config[name] for name in names if isinstance(config.get(name), int)), 0)


def settings_of(spec: RunSpec) -> Settings:
    """What planning may change, as the run file has it."""
    return Settings(
        rule=spec.optimizer.rule,
        target_samples=spec.optimizer.target_batch_samples,
        inner_batch_samples=spec.outer.inner_batch_samples,
        fragments=spec.outer.fragments,
        codec=spec.averaging.codec,
        error_feedback=spec.averaging.error_feedback,
        step_ahead=spec.averaging.step_ahead,
        block_elems=spec.averaging.block_elems,
        max_group=spec.averaging.max_group,
        overlap=spec.averaging.overlap,
        verify=spec.trust.verify,
        auditors=spec.trust.auditors,
    )


def measured_machine(spec: RunSpec, device: Literal["auto", "cpu", "cuda"], progress: Progress) -> Machine:
    """This machine: real micro-batches of the run's model on its device, the run's codec, and one update. It takes half a minute at most
    for a model that suits the machine.

    Raises:
        ConfigError: the model's section makes no model.
        DeviceError: the device is not there, or not even one sample fits.
        UserError: the model does not fit the memory.
    """
    from swarm.models.build import build_model
    from swarm.training.probe import choose_device, probe_micro_batch

    progress(0.0, "building the model")
    where = choose_device(device)
    memory_bytes = _memory_bytes(where)  # before the model takes its part
    model = build_model(spec.model.model_dump(exclude_none=True), spec.run.seed).to(where)
    progress(0.1, "finding the micro-batch")
    found = probe_micro_batch(model, spec.data.sequence_length)
    sample_s = _sample_s(model, found.micro_batch_samples, spec.data.sequence_length, progress)
    progress(0.8, f"encoding and decoding {spec.averaging.codec}")
    processing = processing_s_per_elem(spec.averaging.codec, _CODEC_ELEMS)
    progress(0.9, "updating the shared state")
    update_s_per_elem = _update_s_per_elem(model, spec)
    progress(1.0, "done")
    return Machine(
        flops_per_s=workload_of(spec).flops_per_sample / sample_s,
        micro_batch_samples=found.micro_batch_samples,
        processing_s_per_elem=processing,
        update_s_per_elem=update_s_per_elem,
        memory_bytes=memory_bytes,
        bf16=where.type == "cuda",
    )


def _memory_bytes(device: torch.device) -> int:
    import torch

    from swarm.models.memory import available_memory_bytes

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory_bytes()


def _sample_s(model: torch.nn.Module, samples: int, sequence_length: int, progress: Progress) -> float:
    """Median over passes of the same size."""
    import statistics

    import torch

    from swarm.training.gradients import accumulate_gradients, device_of

    tokens_BT = torch.arange(samples * (sequence_length + 1)).remainder(256).view(samples, -1)
    begin, taken_s = time.perf_counter(), []
    for number in itertools.count(1):
        before = time.perf_counter()
        accumulate_gradients(model, tokens_BT)
        if device_of(model).type == "cuda":
            torch.cuda.synchronize()
        taken_s.append(time.perf_counter() - before)
        done = max((time.perf_counter() - begin) / PASSES_S, number / _MOST_PASSES)
        progress(0.3 + 0.5 * min(done, 1.0), f"micro-batches of {samples}")
        if done >= 1:
            break
    return statistics.median(taken_s) / samples


def processing_s_per_elem(codec: str, elems: int) -> float:
    """What a round takes of this machine's processor, per element: encoding what is contributed and what is reduced, the two decodings,
    and everything else by what was measured elsewhere.

    Args:
        codec: its name.
        elems: of a vector to try it on.

    Raises:
        ValueError: unknown codec.
    """
    import torch

    from protocols.codecs import codec_named

    known, block_E, taken_s = codec_named(codec), torch.randn(elems), []
    for _ in range(_REPEATS):
        before = time.perf_counter()
        for way in (known, known.results):
            way.decode(bytes(way.encode(block_E)), elems)
        taken_s.append(time.perf_counter() - before)
    return _WORDS_S_PER_ELEM + min(taken_s) / elems


def _update_s_per_elem(model: torch.nn.Module, spec: RunSpec) -> float:
    """The run's own optimizer and rule, in a swarm of one."""
    import torch

    from peers.local import LocalPeer
    from protocols.ids import PUBLIC_KEY_BYTES, PeerId
    from swarm.optim.collaborative import CollaborativeOptimizer
    from swarm.runtime import make_optimizer, rule_settings

    peer = LocalPeer(PeerId(bytes(PUBLIC_KEY_BYTES)), 1)
    optimizer = CollaborativeOptimizer(model, make_optimizer(spec, model), peer=peer, target_batch_samples=1, rule=rule_settings(spec))
    taken_s = []
    for _ in range(_REPEATS):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-6)
        before = time.perf_counter()
        outcome = optimizer.step(samples=1)
        while not outcome.status.closed_epoch:  # with overlap the result is taken later
            outcome = optimizer.follow(0.0)
        taken_s.append(time.perf_counter() - before)
    return min(taken_s) / sum(parameter.numel() for parameter in model.parameters())
