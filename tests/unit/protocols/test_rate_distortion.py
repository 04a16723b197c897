"""One step and entropy coding: the paper's code bit by bit, the reference figures of papers.md I.3, and ours beside the entropy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from protocols import rans, rate_distortion
from scripts.bench import rates

NUMBERS = st.lists(st.one_of(st.just(0), st.integers(-3, 3), st.integers(-(2**31) + 1, 2**31 - 1)), max_size=400)


def normal(elems: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).standard_normal(elems))


# The paper's code


@pytest.mark.parametrize(
    ("numbers", "bits"),
    [([0, 0, 3, 0, -1], "011 0 011 010 1 1"), ([1], "1 0 1"), ([0, 0, 0], ""), ([0, -5, 0], "010 1 00101"), ([], "")],
)
def test_runs_signs_and_magnitudes_are_written_one_after_the_other(numbers: list[int], bits: str) -> None:
    """The first one is the test vector of papers.md I.3: 12 bits."""
    found = rate_distortion.gamma_bits(np.array(numbers, dtype=np.int64))
    assert "".join(map(str, found)) == bits.replace(" ", "")


@given(numbers=NUMBERS)
def test_runs_and_gamma_codes_are_read_back(numbers: list[int]) -> None:
    bits = rate_distortion.gamma_bits(np.array(numbers, dtype=np.int64))
    filled = np.concatenate([bits, np.zeros(5, dtype=np.uint8)])
    assert rate_distortion.numbers_of_gamma(filled, len(numbers)).tolist() == numbers


@pytest.mark.parametrize(("bits", "elems"), [("101", 0), ("1", 3), ("10", 3), ("01", 3), ("011", 3), ("1001", 3), ("0100010", 1)])
def test_what_ends_too_early_or_goes_too_far_is_refused(bits: str, elems: int) -> None:
    with pytest.raises(ValueError, match=r"too early|more numbers"):
        rate_distortion.numbers_of_gamma(np.array([int(bit) for bit in bits], dtype=np.uint8), elems)


# The table


@pytest.mark.parametrize("distribution", list(rates.REFERENCE))
@pytest.mark.parametrize("step", [0.25, 0.5, 1.0, 2.0, 2.5, 3.75, 5.0])
def test_the_reference_is_reproduced_and_ours_is_within_two_percent_of_the_entropy(distribution: str, step: float) -> None:
    row = rates.rate(distribution, step, rates.samples(distribution, seed=1, count=2**18))
    assert row["mse"] == pytest.approx(row["reference"]["mse"], rel=0.02)
    for name in ("gamma_bits", "entropy"):
        assert row[name] == pytest.approx(row["reference"][name], rel=0.03, abs=0.006)
    assert row["entropy"] < row["bits"] < 1.02 * row["entropy"]
    assert row["bits"] < 0.88 * row["gamma_bits"]


def test_all_rows_are_shown_beside_the_reference() -> None:
    rows = [rates.rate("normal", step, rates.samples("normal", seed=1, count=1000)) for step in (1.0, 5.0)]
    assert rates.table(rows).row_count == 2


# Ours


@given(numbers=NUMBERS, repeat=st.sampled_from([1, 40]))
@example(numbers=[255, 254, -255, 256, 0], repeat=1)
@example(numbers=[1], repeat=1)
@example(numbers=[-1], repeat=40)
def test_what_is_encoded_is_decoded(numbers: list[int], repeat: int) -> None:
    numbers_E = np.array(numbers * repeat, dtype=np.int64)
    data = rate_distortion.encode(numbers_E)
    assert data == rate_distortion.encode(numbers_E.copy())
    assert rate_distortion.decode(data, numbers_E.size).tolist() == numbers_E.tolist()


@given(data=st.binary(max_size=80), elems=st.integers(0, 20))
def test_any_bytes_are_refused_or_decode_to_that_many_numbers(data: bytes, elems: int) -> None:
    try:
        assert rate_distortion.decode(data, elems).shape == (elems,)
    except ValueError:
        return


@given(place=st.integers(0, 2**32), change=st.integers(1, 255), step=st.sampled_from([0.5, 3.0, 9.0]))
def test_a_changed_byte_is_refused_or_makes_other_numbers(place: int, change: int, step: float) -> None:
    numbers_E = rate_distortion.quantised(normal(3000), step)
    data = bytearray(rate_distortion.encode(numbers_E))
    data[place % len(data)] ^= change
    try:
        found_E = rate_distortion.decode(bytes(data), 3000)
    except ValueError:
        return
    assert found_E.shape == (3000,)


@pytest.mark.parametrize("cut", [1, 4, 7, 100])
def test_an_encoding_that_was_cut_off_is_refused(cut: int) -> None:
    data = rate_distortion.encode(rate_distortion.quantised(normal(3000), 1.0))
    with pytest.raises(ValueError, match=r"short|missing|add up|left over|as many"):
        rate_distortion.decode(data[:-cut], 3000)
    with pytest.raises(ValueError, match=r"not as many|short|left over"):
        rate_distortion.decode(data + bytes(cut), 3000)


def test_zeros_take_six_bytes() -> None:
    data = rate_distortion.encode(np.zeros(10**6, dtype=np.int64))
    assert len(data) == 6
    assert not rate_distortion.decode(data, 10**6).any()


@pytest.mark.parametrize(
    ("number", "step", "reason"),
    [
        (float("nan"), 1.0, "NaN"),
        (float("inf"), 1.0, "infinite"),
        (1e30, 1.0, "too many steps"),
        (1.0, 0.0, "a step of 0"),
        (1.0, -1.0, "a step"),
    ],
)
def test_what_cannot_be_quantised_is_refused(number: float, step: float, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        rate_distortion.quantised(torch.tensor([0.0, number]), step)


def test_a_number_beyond_32_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        rate_distortion.encode(np.array([2**31]))


# Frequencies


@given(counts=st.lists(st.integers(0, 10**9), min_size=2, max_size=256).filter(any))
def test_shares_add_up_and_none_is_zero(counts: list[int]) -> None:
    shares_A = rans.frequencies(np.array(counts, dtype=np.int64))
    assert int(shares_A.sum()) == 2**rans.SCALE_BITS
    assert int(shares_A.min()) >= 1


@pytest.mark.parametrize("shares", [[65536], [0, 65536], [65535, 2], [256] * 257])
def test_what_are_no_shares_is_refused(shares: list[int]) -> None:
    with pytest.raises(ValueError, match="add up"):
        rans.Alphabet(np.array(shares, dtype=np.int64))
