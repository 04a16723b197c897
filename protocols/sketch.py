"""Count-sketch of sparse vectors: sums of sketches are sketches of sums, so sparse vectors add up without being sent as lists.

S2 Reducer (Ge et al., arXiv 2110.02140): each member sends the bits that say which elements are not 0, which are or-ed, and a sketch,
which is summed; then the elements that are not 0 anywhere are read from it. Charikar, Chen, Farach-Colton (ICALP 2002): element x_i adds
sign x_i to one bucket of each row; a row's bucket times the sign is x_i and a sum of others with random signs, whose variance is at most
||x||^2/C. The median of the rows is taken.

Buckets and signs follow from a seed and the place by integer arithmetic (the finaliser of splitmix64), on all machines alike.

Legend: E elements of a vector, P places, R rows of C buckets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Table = NDArray[np.float64]
Places = NDArray[np.int64]
Bits = NDArray[np.uint8]
Hashes = NDArray[np.uint64]

_STEP = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def mixed(seed: int, places_P: Places) -> Hashes:
    """64 bits for each place that look random."""
    found_P = (places_P.astype(np.uint64) + np.uint64(1)) * np.uint64(_STEP) + np.uint64(seed % 2**64)
    for down, factor in _ROUNDS:
        found_P = (found_P ^ (found_P >> np.uint64(down))) * np.uint64(factor)
    return found_P ^ (found_P >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class CountSketch:
    """What all members have in common.

    Args:
        rows: R.
        buckets: C, of each row.
        seed: of buckets and signs.
    """

    rows: int
    buckets: int
    seed: int

    def __post_init__(self) -> None:
        if self.rows < 1 or not 1 <= self.buckets < 2**32:
            raise ValueError(f"a sketch of {self.rows} rows of {self.buckets} buckets")

    def where(self, row: int, places_P: Places) -> tuple[Places, Table]:
        """Bucket and sign of each place."""
        seed = int(mixed(self.seed, np.array([row]))[0])
        hashes_P = mixed(seed, places_P)
        buckets_P = ((hashes_P >> np.uint64(32)) * np.uint64(self.buckets) >> np.uint64(32)).astype(np.int64)
        return buckets_P, 1.0 - 2.0 * (hashes_P & np.uint64(1)).astype(np.float64)

    def sketch(self, vector_E: Vector) -> Table:
        """R x C sums; those of several vectors may be added."""
        places_P = np.flatnonzero(vector_E)
        values_P = vector_E[places_P].astype(np.float64)
        table_RC = np.empty((self.rows, self.buckets))
        for row in range(self.rows):
            buckets_P, signs_P = self.where(row, places_P)
            table_RC[row] = np.bincount(buckets_P, signs_P * values_P, minlength=self.buckets)
        return table_RC

    def estimates(self, table_RC: Table, places_P: Places) -> Table:
        """What each row says of each place, R x P: unbiased.

        Raises:
            ValueError: a table of another shape.
        """
        if table_RC.shape != (self.rows, self.buckets):
            raise ValueError(f"a table of shape {table_RC.shape} where {(self.rows, self.buckets)} was expected")
        found_RP = np.empty((self.rows, places_P.size))
        for row in range(self.rows):
            buckets_P, signs_P = self.where(row, places_P)
            found_RP[row] = signs_P * table_RC[row, buckets_P]
        return found_RP

    def read(self, table_RC: Table, bitmap: Bits, elems: int) -> Vector:
        """The vector: medians where a bit is set, else 0."""
        places_P = places(bitmap, elems)
        vector_E = np.zeros(elems, dtype=np.float32)
        if places_P.size:
            vector_E[places_P] = np.median(self.estimates(table_RC, places_P), axis=0)
        return vector_E

    def sent_bits(self, elems: int) -> int:
        """Bitmap and table, 32 bits a bucket."""
        return elems + 32 * self.rows * self.buckets


def bitmap(vector_E: Vector) -> Bits:
    """Which elements are not 0, lowest bit first; those of several vectors may be or-ed."""
    return np.packbits(vector_E != 0, bitorder="little")


def places(bits: Bits, elems: int) -> Places:
    """Where bits are set.

    Raises:
        ValueError: another length, or a bit beyond the vector.
    """
    if bits.size != -(-elems // 8):
        raise ValueError(f"{bits.size} bytes where {-(-elems // 8)} were expected")
    found = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
    if found.size and int(found[-1]) >= elems:
        raise ValueError("a bit is set beyond the vector")
    return found
