"""The micro-batch: the largest that fits on CUDA, the fastest within bounds on a CPU, one sentence where none fits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ExitCode
from swarm.models.build import build_model
from swarm.models.presets import PRESETS
from swarm.training import probe
from swarm.training.probe import DeviceError, choose_device, fastest_within, largest_that_fits, probe_micro_batch

SMALL = {"config": {**PRESETS["tiny"].huggingface(), "hidden_size": 16, "n_head": 2, "n_layer": 1}}


@given(st.integers(0, 5000), st.integers(1, 5000))
def test_the_largest_that_fits_is_found_in_few_trials(capacity: int, limit: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= capacity

    assert largest_that_fits(fits, limit) == min(capacity, limit)
    assert all(1 <= size <= limit for size in tried)
    assert len(tried) <= 26


def test_a_cpu_takes_the_fastest_size_within_its_bounds() -> None:
    def roomy(size: int) -> bool:
        return True

    assert fastest_within(lambda size: 0.001 + 0.0001 * size, roomy) == 64  # a fixed cost a pass: larger is better
    assert fastest_within(lambda size: 0.001 * size, roomy) == 1  # nothing gained by more
    assert fastest_within(lambda size: 0.01 + 0.01 * size, roomy) == 16  # 32 would take more than twice 0.17 s but less than 0.5 s
    assert fastest_within(lambda size: 3.0 * size, roomy) == 1  # slow, but it works
    assert fastest_within(lambda size: 0.001 + 0.0001 * size, lambda size: size <= 8) == 8
    assert fastest_within(lambda size: 0.001 + 0.0001 * size if size < 4 else None, roomy) == 2
    assert fastest_within(lambda size: None, roomy) == 0


def test_probing_leaves_parameters_and_no_gradients() -> None:
    model = build_model(SMALL, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = probe_micro_batch(model, 16)
    assert 1 <= found.micro_batch_samples <= probe.MAX_CPU_SAMPLES
    assert found.seconds_per_sample > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_device_too_small_for_one_sample_gets_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(probe, "accumulate_gradients", fail)
    with pytest.raises(DeviceError, match="One sample of 16 tokens does not fit") as caught:
        probe_micro_batch(build_model(SMALL, 1), 16)
    assert caught.value.exit_code is ExitCode.DEVICE


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(probe, "accumulate_gradients", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        probe_micro_batch(build_model(SMALL, 1), 16)


def test_devices_are_chosen_by_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(DeviceError, match="--device cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize(("reserved_bytes", "largest"), [(2**30, 1), (2**30 - 2**24, 8), (0, 64)])
def test_room_is_left_for_what_training_keeps(monkeypatch: pytest.MonkeyPatch, reserved_bytes: int, largest: int) -> None:
    """Where nothing is left, only the first pass is made, whose size nobody knows before; a sample takes 1 MiB, and half may be used."""
    sizes: list[int] = []

    def passes(_model: torch.nn.Module, tokens_BT: torch.Tensor) -> None:
        sizes.append(len(tokens_BT))

    monkeypatch.setattr(probe, "available_memory_bytes", lambda: 2**30)
    monkeypatch.setattr(probe, "_peak_memory_bytes", lambda: sum(sizes) * 2**20)
    monkeypatch.setattr(probe, "accumulate_gradients", passes)
    monkeypatch.setattr(
        probe, "fastest_within", lambda seconds, fits: largest_that_fits(lambda size: fits(size) and seconds(size) is not None, 64)
    )
    assert probe_micro_batch(build_model(SMALL, 1), 16, reserved_bytes).micro_batch_samples == largest
    assert max(sizes) == largest


def test_memory_that_is_not_there_is_told_with_what_helps() -> None:
    with probe._taken(2**20, torch.device("cpu")):
        pass

    def fail(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", fail)
        with pytest.raises(DeviceError, match="--optimizer-states 8bit"), probe._taken(2**30, torch.device("cpu")):
            pass
