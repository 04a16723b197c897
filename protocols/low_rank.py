"""PowerSGD (Vogels, Karimireddy, Jaggi, arXiv 1905.13727): a matrix as a product of two thin ones, found by one step of the power method.

One round, with M the gradient plus what earlier rounds left out: P = M Q, averaged over members; P orthonormal; Q = M^T P, averaged. All
apply P Q^T, each keeps M - P Q^T for the next round (error feedback), and Q begins that one (warm start). Members that join need Q.

What all must find alike, `orthonormal` and `product`, is plain multiplication and addition in a fixed order; P = M Q and Q = M^T P are a
member's own and may be computed as is quickest.

Legend: M x N matrix, R its rank here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Exact = NDArray[np.float64]

_VANISHED = 1e-9
"""A column of which so little is left without the others lies among them: what is left is rounding."""


def worth_it(rows: int, columns: int, rank: int, share: float = 0.5) -> bool:
    """Whether the factors have at most such a share of the matrix's elements (hivemind's rule)."""
    return rank * (rows + columns) <= share * rows * columns


def first_factor(matrix_MN: Matrix, start_NR: Matrix) -> Matrix:
    """P = M Q; to be averaged."""
    return (matrix_MN.astype(np.float64) @ start_NR.astype(np.float64)).astype(np.float32)


def second_factor(matrix_MN: Matrix, basis_MR: Matrix) -> Matrix:
    """Q = M^T P with P orthonormal; to be averaged, and the start of the next round."""
    return (matrix_MN.astype(np.float64).T @ basis_MR.astype(np.float64)).astype(np.float32)


def orthonormal(factor_MR: Matrix) -> Matrix:
    """Orthonormal columns that span what the given ones do; a column that lies in the span of those before it becomes 0.

    Gram and Schmidt's method in fp64, each column twice, so that rounding of the first time is removed.
    """
    columns_RM: list[Exact] = []
    for column_M in factor_MR.T.astype(np.float64):
        length = np.sqrt(_dot(column_M, column_M))
        left_M = column_M / length if length > 0 else column_M
        for _ in range(2):
            for other_M in columns_RM:
                left_M = left_M - _dot(other_M, left_M) * other_M
            if _dot(left_M, left_M) <= _VANISHED**2:
                left_M = np.zeros_like(left_M)
        left = np.sqrt(_dot(left_M, left_M))
        columns_RM.append(left_M / left if left > 0 else left_M)
    return np.stack(columns_RM, axis=1).astype(np.float32)


def product(basis_MR: Matrix, factor_NR: Matrix) -> Matrix:
    """P Q^T: one outer product after the other, in fp32."""
    found_MN = np.zeros((len(basis_MR), len(factor_NR)), dtype=np.float32)
    for basis_M, factor_N in zip(basis_MR.T, factor_NR.T, strict=True):
        found_MN += basis_M[:, None] * factor_N
    return found_MN


def left_out(matrix_MN: Matrix, approximation_MN: Matrix) -> Matrix:
    """What the next round adds to its gradient."""
    return matrix_MN - approximation_MN


def _dot(one: Exact, other: Exact) -> float:
    """Sum of products from the first to the last: `cumsum` has one order, `sum` and `dot` have the machine's."""
    return float(np.cumsum(one * other)[-1]) if one.size else 0.0
