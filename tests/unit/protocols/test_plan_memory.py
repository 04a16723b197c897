"""Memory of a member from plain numbers: what each saving saves, and which one is recommended."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.planning.memory import (
    OVERHEAD_BYTES,
    SAVINGS,
    Activations,
    Saving,
    Shape,
    Trained,
    activations,
    cheapest_that_fits,
    choices,
    device_memory,
    kept_bytes,
    most_samples,
)
from protocols.planning.values import Settings

GIB = 2**30
N = 1_000_000
OUTER = Settings(rule="outer", inner_batch_samples=16)
TRAINED = Trained(parameters=N)
SHAPE = Shape(layers=12, width=768, heads=12, words=264, tokens=512)
PASS = Activations(1e6, 1e5)


def test_by_the_outer_rule_a_device_holds_five_copies_and_8_bits_a_quarter_of_two() -> None:
    plain = device_memory(TRAINED, PASS, OUTER, Saving(), 8)
    assert (plain.weights, plain.gradients, plain.sums, plain.states, plain.activations) == (4 * N, 4 * N, 4 * N, 8 * N, 1.8e6)
    assert plain.total == 20 * N + 1.8e6
    small = device_memory(TRAINED, PASS, OUTER, Saving(states="8bit"), 8)
    assert small.states == pytest.approx(2 * N * (1 + 4 / 256))
    assert device_memory(replace(TRAINED, small_parameters=N), PASS, OUTER, Saving(states="8bit"), 8).states == 8 * N
    off = device_memory(TRAINED, PASS, OUTER, Saving(offload=True), 8)
    assert (off.sums, off.states) == (0, 0)
    assert device_memory(TRAINED, PASS, OUTER, Saving(), 16).sums == 0, "one pass makes an inner batch"
    gradient = device_memory(TRAINED, PASS, Settings(), Saving(), 8)
    assert (gradient.sums, gradient.states) == (0, 0)


def test_what_is_taken_before_a_pass_is_looked_for() -> None:
    assert kept_bytes(TRAINED, Saving(), 16) == 12 * N
    assert kept_bytes(TRAINED, Saving(), 1) == 8 * N
    assert kept_bytes(TRAINED, Saving(states="8bit"), 1) == 2 * N + 2 * N * 4 // 256
    assert kept_bytes(TRAINED, Saving(offload=True), 16) == 0


@given(device_bytes=st.integers(1, 2**36), per_sample=st.integers(1, 2**30), inner=st.integers(1, 64), parameters=st.integers(1, 10**9))
def test_the_largest_micro_batch_fits_and_one_more_does_not(device_bytes: int, per_sample: int, inner: int, parameters: int) -> None:
    trained, kept = Trained(parameters=parameters), Activations(0.0, float(per_sample))
    settings = replace(OUTER, inner_batch_samples=inner)

    def fits(samples: int) -> bool:
        return device_memory(trained, kept, settings, Saving(), samples).total <= device_bytes - OVERHEAD_BYTES

    found = most_samples(trained, kept, settings, Saving(), device_bytes)
    assert 0 <= found <= inner
    assert found == 0 or fits(found)
    assert not any(fits(samples) for samples in range(found + 1, inner + 1))


def test_recomputing_keeps_what_goes_into_layers() -> None:
    for bf16 in (False, True):
        kept, again = activations(SHAPE, N, bf16=bf16), activations(SHAPE, N, bf16=bf16, recompute=True)
        assert again.bytes_per_sample < kept.bytes_per_sample / 4
    assert activations(SHAPE, N, bf16=True).fixed_bytes == 2 * N
    assert activations(SHAPE, N, bf16=False).fixed_bytes == 0


@pytest.mark.parametrize(
    ("gib", "flags"),
    [
        (4.0, ""),
        (2.6, "--optimizer-states 8bit"),
        (2.2, "--optimizer-states 8bit --recompute-activations"),
        (1.7, "--offload-optimizer --recompute-activations"),
        (1.4, None),
    ],
)
def test_the_least_costly_that_fits_is_recommended(gib: float, flags: str | None) -> None:
    trained = Trained(parameters=85_000_000)
    found = choices(trained, SHAPE, OUTER, 8, gib * GIB, bf16=True, audited=False)
    best = cheapest_that_fits(found)
    assert (best.saving.flags if best else None) == flags
    if best:
        assert best.most_samples
        assert all(not choice.most_samples for choice in found[: found.index(best)])


def test_an_unknown_device_gets_figures_and_no_advice() -> None:
    found = choices(TRAINED, SHAPE, OUTER, 8, None, bf16=True, audited=False)
    assert [choice.saving for choice in found] == list(SAVINGS["outer"])
    assert {choice.most_samples for choice in found} == {None}
    assert cheapest_that_fits(found) is None
    assert [choice.saving.flags for choice in choices(TRAINED, SHAPE, Settings(), 8, None, bf16=True, audited=False)] == [
        "",
        "--recompute-activations",
    ]


def test_main_memory_takes_what_the_device_does_not() -> None:
    plain, eight_bit, _, offload, _ = choices(TRAINED, SHAPE, OUTER, 8, None, bf16=True, audited=False)
    assert plain.host.states == eight_bit.host.states == 0
    assert offload.host.states == 12 * N, "two moments and the sums"
    assert plain.host.shared == plain.host.shared_states == 4 * N
    halves = choices(TRAINED, SHAPE, replace(OUTER, fragments=2), 8, None, bf16=True, audited=False)[0]
    assert halves.host.rounds == plain.host.rounds / 2


def test_where_inner_steps_are_computed_again_states_keep_their_bits() -> None:
    found = choices(TRAINED, SHAPE, OUTER, 8, None, bf16=True, audited=True)
    assert [choice.saving.flags for choice in found] == ["", "--offload-optimizer", "--offload-optimizer --recompute-activations"]
