"""Inputs as hypothesis draws them: any bytes, or edits of known inputs, which it can shrink."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from scripts.fuzzing.mutations import Mutator
from scripts.fuzzing.target import Target

_MAX_PLAIN_BYTES = 512
_Edit = tuple[float, int, bytes]


def inputs(target: Target, pool: tuple[bytes, ...] = ()) -> st.SearchStrategy[bytes]:
    """A third each: anything; a known input with a few places overwritten; a known input as our own engine mutates it."""
    known = st.sampled_from(pool or tuple(target.seeds()))
    edit = st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8))
    edited = st.builds(_edited, known, st.lists(edit, min_size=1, max_size=4))
    mutated = st.builds(
        lambda data, seed: Mutator(random.Random(seed), target.form, target.input_bytes).mutated([data]), known, st.integers(0)
    )
    return st.one_of(st.binary(max_size=_MAX_PLAIN_BYTES), edited, mutated)


def _edited(data: bytes, edits: list[_Edit]) -> bytes:
    for where, removed, added in edits:
        at = round(where * len(data))
        data = data[:at] + added + data[at + removed :]
    return data
