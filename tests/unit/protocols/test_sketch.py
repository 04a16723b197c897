"""Count-sketch: what is linear, what is unbiased, and what it costs (papers.md I.6)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocols.sketch import CountSketch, bitmap, mixed, places

SKETCH = CountSketch(rows=5, buckets=512, seed=9)


def sparse(elems: int, nonzeros: int, seed: int) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    vector_E = np.zeros(elems, dtype=np.float32)
    vector_E[random.choice(elems, nonzeros, replace=False)] = random.standard_normal(nonzeros)
    return vector_E


def test_the_sketch_of_a_sum_is_the_sum_of_the_sketches() -> None:
    vectors = [sparse(10_000, 300, seed) for seed in range(4)]
    total_RC = sum(SKETCH.sketch(vector_E) for vector_E in vectors)
    assert np.allclose(total_RC, SKETCH.sketch(np.sum(vectors, axis=0, dtype=np.float32)), atol=1e-5)


def test_a_few_elements_are_read_back_from_the_sum_of_all_members() -> None:
    vectors = [sparse(100_000, 30, seed) for seed in range(8)]
    bits = np.bitwise_or.reduce([bitmap(vector_E) for vector_E in vectors])
    wide = CountSketch(rows=7, buckets=4096, seed=1)
    found_E = wide.read(np.sum([wide.sketch(vector_E) for vector_E in vectors], axis=0), bits, 100_000)
    assert np.allclose(found_E, np.sum(vectors, axis=0), atol=1e-6)


def test_each_row_is_unbiased_with_the_variance_of_the_others_share_of_a_bucket() -> None:
    """papers.md I.6: estimator unbiased, variance in proportion to ||x||^2/c."""
    vector_E = sparse(2000, 400, 3)
    places_P = np.flatnonzero(vector_E)[:50]
    norm = float(np.square(vector_E.astype(np.float64)).sum())
    for buckets in (64, 256):
        sketches = [CountSketch(rows=20, buckets=buckets, seed=seed) for seed in range(60)]
        found = np.concatenate([one.estimates(one.sketch(vector_E), places_P) for one in sketches]) - vector_E[places_P]
        expected_P = (norm - np.square(vector_E[places_P].astype(np.float64))) / buckets
        assert float(np.abs(found.mean(0) / np.sqrt(expected_P / len(found))).max()) < 4.5
        assert found.var(0) == pytest.approx(expected_P, rel=0.3)
        assert float((found.var(0) / expected_P).mean()) == pytest.approx(1, abs=0.03)


def test_the_median_of_more_rows_is_closer() -> None:
    vector_E = sparse(50_000, 2000, 5)
    errors = []
    for rows in (1, 5, 15):
        sketch = CountSketch(rows=rows, buckets=4000, seed=2)
        errors.append(float(np.square(sketch.read(sketch.sketch(vector_E), bitmap(vector_E), 50_000) - vector_E).sum()))
    assert errors[0] > 2 * errors[1] > 2 * 1.3 * errors[2]


def test_what_is_sent_beside_a_list_of_places_and_values() -> None:
    elems, nonzeros = 10**6, 30_000
    assert CountSketch(rows=3, buckets=4000, seed=0).sent_bits(elems) == elems + 32 * 3 * 4000 < 64 * nonzeros


@given(places_P=st.lists(st.integers(0, 2**40), min_size=1, max_size=50, unique=True), seed=st.integers(0, 2**64 - 1))
def test_buckets_are_in_range_and_no_two_seeds_hash_alike(places_P: list[int], seed: int) -> None:
    where = np.array(places_P)
    buckets_P, signs_P = CountSketch(rows=1, buckets=7, seed=seed).where(0, where)
    assert set(buckets_P.tolist()) <= set(range(7))
    assert set(signs_P.tolist()) <= {-1.0, 1.0}
    assert np.unique(mixed(seed, where)).size == where.size
    assert (mixed(seed, where) != mixed(seed + 1, where)).all()


def test_hashes_are_the_same_on_any_machine() -> None:
    assert mixed(7, np.array([0, 1, 2**40])).tolist() == [7191089600892374487, 309689372594955804, 11363145223830680844]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="rows of"):
        CountSketch(rows=0, buckets=5, seed=0)
    with pytest.raises(ValueError, match="shape"):
        SKETCH.estimates(np.zeros((5, 511)), np.array([1]))
    with pytest.raises(ValueError, match="were expected"):
        places(np.zeros(3, dtype=np.uint8), 10)
    with pytest.raises(ValueError, match="beyond the vector"):
        places(np.array([0, 0x04], dtype=np.uint8), 10)
    assert SKETCH.read(np.zeros((5, 512)), bitmap(np.zeros(10, dtype=np.float32)), 10).tolist() == [0.0] * 10
