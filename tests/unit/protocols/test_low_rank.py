"""PowerSGD: exact where the rank allows it, and nothing is lost in the long run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.low_rank import Matrix, first_factor, left_out, orthonormal, product, second_factor, worth_it


def normal(rows: int, columns: int, seed: int) -> Matrix:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def mean(matrices: list[Matrix]) -> Matrix:
    found_MN: Matrix = np.stack(matrices).mean(axis=0).astype(np.float32)
    return found_MN


def compressed(matrix_MN: Matrix, start_NR: Matrix) -> tuple[Matrix, Matrix]:
    """One member's round: what is applied, and the next start."""
    basis_MR = orthonormal(first_factor(matrix_MN, start_NR))
    factor_NR = second_factor(matrix_MN, basis_MR)
    return product(basis_MR, factor_NR), factor_NR


@given(rank=st.integers(1, 6), own=st.integers(0, 6), seed=st.integers(0, 2**32))
def test_a_matrix_of_no_higher_rank_is_exact(rank: int, own: int, seed: int) -> None:
    matrix_MN = normal(30, min(own, rank), seed) @ normal(min(own, rank), 20, seed + 1)
    found_MN, _ = compressed(matrix_MN, normal(20, rank, seed + 2))
    assert np.allclose(found_MN, matrix_MN, atol=1e-4 * max(1.0, float(np.abs(matrix_MN).max())))


@given(rows=st.integers(1, 40), rank=st.integers(1, 8), seed=st.integers(0, 2**32), exponent=st.integers(-30, 30))
def test_columns_are_orthonormal_or_zero(rows: int, rank: int, seed: int, exponent: int) -> None:
    factor_MR = normal(rows, rank, seed) * np.float32(2.0**exponent)
    factor_MR[:, rank // 2] = factor_MR[:, 0]
    basis_MR = orthonormal(factor_MR).astype(np.float64)
    lengths_R = np.diagonal(basis_MR.T @ basis_MR).round(6)
    assert set(lengths_R.tolist()) <= {0.0, 1.0}
    assert np.allclose(basis_MR.T @ basis_MR, np.diag(lengths_R), atol=1e-6)
    assert np.allclose(basis_MR @ (basis_MR.T @ factor_MR), factor_MR, atol=1e-5 * float(np.abs(factor_MR).max()))


def test_nothing_becomes_nothing() -> None:
    found_MN, factor_NR = compressed(np.zeros((5, 4), dtype=np.float32), normal(4, 2, 1))
    assert not found_MN.any()
    assert not factor_NR.any()


def test_a_warm_start_finds_the_largest_singular_vectors() -> None:
    matrix_MN, start_NR = normal(40, 30, 1) + 3 * normal(40, 2, 2) @ normal(2, 30, 3), normal(30, 2, 4)
    singular = np.linalg.svd(matrix_MN.astype(np.float64), compute_uv=False)
    best, errors = float(np.sqrt(np.square(singular[2:]).sum())), []
    for _ in range(6):
        found_MN, start_NR = compressed(matrix_MN, start_NR)
        errors.append(float(np.linalg.norm(found_MN - matrix_MN)))
    assert errors[-1] == pytest.approx(best, rel=1e-3)
    assert errors[0] > errors[-1]


def test_what_is_left_out_is_applied_later() -> None:
    """The sum of what was applied is the sum of the gradients less what is still left out."""
    gradients, start_NR = [normal(20, 15, seed) for seed in range(30)], normal(15, 3, 99)
    left_MN, applied_MN = np.zeros((20, 15), dtype=np.float32), np.zeros((20, 15), dtype=np.float64)
    for gradient_MN in gradients:
        matrix_MN = gradient_MN + left_MN
        found_MN, start_NR = compressed(matrix_MN, start_NR)
        left_MN = left_out(matrix_MN, found_MN)
        applied_MN += found_MN
    assert np.allclose(applied_MN + left_MN, np.sum(gradients, axis=0), atol=1e-4)
    assert float(np.linalg.norm(left_MN)) < float(np.linalg.norm(np.sum(gradients, axis=0))) * 2


def test_members_who_average_the_factors_apply_the_average() -> None:
    """Linear in the matrix once the basis is the same."""
    matrices, start_NR = [normal(20, 15, seed) for seed in range(4)], normal(15, 3, 9)
    basis_MR = orthonormal(mean([first_factor(one, start_NR) for one in matrices]))
    factor_NR = mean([second_factor(one, basis_MR) for one in matrices])
    expected_MN, _ = compressed(mean(matrices), start_NR)
    assert np.allclose(product(basis_MR, factor_NR), expected_MN, atol=1e-4)


@pytest.mark.parametrize(("rows", "columns", "rank", "worth"), [(100, 100, 25, True), (100, 100, 26, False), (1, 1000, 1, False)])
def test_factors_have_to_save_half(rows: int, columns: int, rank: int, worth: bool) -> None:
    assert worth_it(rows, columns, rank) is worth
