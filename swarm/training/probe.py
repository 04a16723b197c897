"""Which device to train on, and how many samples it takes in one forward and backward pass.

On CUDA the answer is the largest number that fits the memory: double until it does not, then bisect. On a CPU memory hardly ever is the
limit, but a peer must hear that an epoch closes: one pass may take about half a second and half of the free memory.
"""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from protocols.errors import ExitCode, UserError
from swarm.models.memory import available_memory_bytes
from swarm.training.gradients import accumulate_gradients, device_of

_log = logging.getLogger(__name__)

MAX_CUDA_SAMPLES = 4096
MAX_CPU_SAMPLES = 64
CPU_PASS_S = 0.5
"""Longest pass on a CPU, in seconds."""
CPU_PROBE_S = 1.5
"""After so many seconds of probing a CPU, the best so far is taken."""
CPU_MEMORY_SHARE = 0.5
"""Part of the free memory that one pass may take."""
_WORTH_DOUBLING = 0.95
"""A larger micro-batch must cost less than this part of the time per sample of the best smaller one: beyond the caches it costs more."""


class DeviceError(UserError):
    """This machine's device cannot train this model."""

    exit_code = ExitCode.DEVICE


@dataclass(frozen=True, slots=True)
class Probe:
    """What probing found.

    Args:
        micro_batch_samples: samples in one pass.
        seconds_per_sample: as measured in the last pass of that size.
    """

    micro_batch_samples: int
    seconds_per_sample: float


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to train on; "auto" takes CUDA where there is one.

    Raises:
        DeviceError: CUDA is wanted and torch finds none.
    """
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise DeviceError("No CUDA device was found: check the driver and that torch is a CUDA build, or choose --device cpu.")
    return torch.device("cuda" if wanted != "cpu" and found else "cpu")


def probe_micro_batch(model: nn.Module, sequence_length: int, reserved_bytes: int = 0) -> Probe:
    """Find the micro-batch for this model where it lies. Leaves the parameters as they were and their gradients None.

    Args:
        model: on the device that will train it.
        sequence_length: tokens predicted in a window.
        reserved_bytes: of the device's memory, that will be needed beside parameters, gradients and a pass.

    Raises:
        DeviceError: not even one sample fits.
    """
    trial = _Trial(model, sequence_length, reserved_bytes)
    try:
        if device_of(model).type == "cuda":
            with _taken(reserved_bytes, device_of(model)):
                samples = largest_that_fits(trial.fits, MAX_CUDA_SAMPLES)
        else:
            samples = fastest_within(trial.seconds, trial.fits_memory)
    finally:
        trial.clean()
    if samples == 0:
        raise DeviceError(
            f"One sample of {sequence_length} tokens does not fit the memory of {device_of(model)}: close other programs, save memory with"
            " --optimizer-states 8bit, --offload-optimizer or --recompute-activations (swarm-peer plan says what they save), choose a"
            " smaller preset, or join as a helper, which needs no training device."
        )
    probe = Probe(samples, trial.last_s[samples] / samples)
    _log.info("micro-batch found samples=%d milliseconds_per_sample=%.2f", samples, probe.seconds_per_sample * 1e3)
    return probe


def largest_that_fits(fits: Callable[[int], bool], limit: int) -> int:
    """Largest number up to `limit` that fits, if fitting is monotone; 0 when not even 1 does. Doubles, then bisects."""
    good, size = 0, 1
    while size <= limit and fits(size):
        good, size = size, size * 2
    bad = min(size, limit + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def fastest_within(seconds: Callable[[int], float | None], fits_memory: Callable[[int], bool]) -> int:
    """Number of samples with the least time per sample among 1, 2, 4, ... within the bounds of a CPU; 0 when not even 1 can be done.

    Args:
        seconds: time of one pass, None when it failed for lack of memory.
        fits_memory: whether a pass of this size should be tried at all.
    """
    best, best_s_per_sample, spent_s = 0, float("inf"), 0.0
    size = 1
    while size <= MAX_CPU_SAMPLES and fits_memory(size):
        pass_s = seconds(size)
        if pass_s is None or (best and pass_s > CPU_PASS_S):
            break
        if pass_s / size < best_s_per_sample * _WORTH_DOUBLING:
            best, best_s_per_sample = size, pass_s / size
        elif size >= 4 * best:
            break
        spent_s += pass_s
        if 2 * pass_s > CPU_PASS_S or spent_s + 2 * pass_s > CPU_PROBE_S:
            break
        size *= 2
    return best


@contextmanager
def _taken(size_bytes: int, device: torch.device) -> Iterator[None]:
    """Memory that is in use meanwhile.

    Raises:
        DeviceError: there is not as much.
    """
    try:
        taken = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:
        raise DeviceError(
            f"The inner optimizer needs {size_bytes / 2**30:.1f} GiB on {device}, which are not free: use --optimizer-states 8bit or"
            " --offload-optimizer, or join as a helper, which needs no training device."
        ) from None
    try:
        yield
    finally:
        del taken


class _Trial:
    """Runs passes on made-up tokens and remembers what they took."""

    def __init__(self, model: nn.Module, sequence_length: int, reserved_bytes: int) -> None:
        self._model = model
        self._reserved_bytes = reserved_bytes
        self._window = sequence_length + 1
        self._device = device_of(model)
        self._bytes_per_sample = 0.0
        self.last_s: dict[int, float] = {}

    def seconds(self, samples: int) -> float | None:
        tokens_BT = torch.arange(samples * self._window).remainder(256).view(samples, self._window)
        if not self.last_s and not self._pass(tokens_BT[:1]):
            return None  # the first pass of all also allocates gradients and loads kernels: not to be measured
        peak_before = _peak_memory_bytes()
        begin = time.perf_counter()
        if not self._pass(tokens_BT):
            return None
        self.last_s[samples] = time.perf_counter() - begin
        self._bytes_per_sample = max(self._bytes_per_sample, (_peak_memory_bytes() - peak_before) / samples)
        return self.last_s[samples]

    def fits(self, samples: int) -> bool:
        return self.seconds(samples) is not None

    def fits_memory(self, samples: int) -> bool:
        return samples * self._bytes_per_sample <= CPU_MEMORY_SHARE * (available_memory_bytes() - self._reserved_bytes)

    def clean(self) -> None:
        self._model.zero_grad(set_to_none=True)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _pass(self, tokens_BT: torch.Tensor) -> bool:
        try:
            accumulate_gradients(self._model, tokens_BT)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        except torch.OutOfMemoryError:
            fitted = False
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):  # what torch's CPU allocator says; it has no type of its own
                raise
            fitted = False
        else:
            fitted = True
        if not fitted:
            self.clean()  # only here: until the exception is gone, its frames keep the tensors alive
        return fitted


def _peak_memory_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
