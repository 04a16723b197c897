"""JSON as it is read from others: what cannot be written again is refused."""

from __future__ import annotations

import pytest

from protocols.canonical import canonical_json, read_json


@pytest.mark.parametrize("text", [b"1e999", b"-1e999", b'{"a":[1E400]}', b"NaN", b"Infinity", b'{"a":-Infinity}'])
def test_there_are_no_infinities(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"too large|not a number"):
        read_json(text)


@pytest.mark.parametrize("number", [0.5, -1.7976931348623157e308, 5e-324, 1e22])
def test_finite_numbers_are_read(number: float) -> None:
    assert read_json(canonical_json([number])) == [number]
