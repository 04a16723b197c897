"""What every codec promises (`protocols/codecs/base.py`)."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from protocols.codecs import CODEC_NAMES, Codec, codec_named
from protocols.codecs.full import all_finite

EACH_CODEC = pytest.mark.parametrize("codec", [codec_named(name) for name in CODEC_NAMES], ids=CODEC_NAMES)
FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40)
NOT_FINITE = [math.nan, math.inf, -math.inf]


def fp32(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def encoded(codec: Codec, block_E: torch.Tensor) -> bytes:
    return bytes(codec.encode(block_E))


def item(codec: Codec, number: float) -> bytes:
    return struct.pack({4: "<f", 2: "<e"}[codec.encoded_bytes(1)], number)


@EACH_CODEC
@given(values=FLOATS)
@example(values=[0.0, -0.0, 1e-45, -1e-45, 6e-8, 65504.0, 65519.9, 65520.0, 3.4028234663852886e38, -3.4028234663852886e38])
def test_encoding_is_deterministic_bounded_and_a_projection(codec: Codec, values: list[float]) -> None:
    block_E = fp32(values)
    data = encoded(codec, block_E)
    assert data == encoded(codec, block_E.clone())
    assert torch.equal(block_E, fp32(values))
    assert len(data) == codec.encoded_bytes(len(values))
    decoded_E = codec.decode(data, len(values))
    assert decoded_E.dtype == torch.float32
    assert decoded_E.shape == block_E.shape
    assert float((decoded_E.double() - block_E.double()).abs().max()) <= codec.worst_error(block_E)
    assert encoded(codec, decoded_E) == data


@EACH_CODEC
@given(values=FLOATS, buffer=st.sampled_from([bytes, bytearray, memoryview]))
def test_any_buffer_decodes_alike(codec: Codec, values: list[float], buffer: type[bytes] | type[bytearray] | type[memoryview]) -> None:
    data = encoded(codec, fp32(values))
    assert encoded(codec, codec.decode(buffer(data), len(values))) == data


@EACH_CODEC
@given(data=st.binary(max_size=64), elems=st.integers(0, 16))
def test_any_bytes_are_refused_or_are_the_encoding_of_what_they_decode_to(codec: Codec, data: bytes, elems: int) -> None:
    try:
        decoded_E = codec.decode(data, elems)
    except ValueError:
        size = codec.encoded_bytes(1)
        items = [data[i : i + size] for i in range(0, len(data), size)]
        kind = {4: "<f", 2: "<e"}[size]
        assert len(data) != elems * size or not all(math.isfinite(struct.unpack(kind, one)[0]) for one in items)
        return
    assert decoded_E.shape == (elems,)
    assert encoded(codec, decoded_E) == data


@EACH_CODEC
@pytest.mark.parametrize("number", NOT_FINITE)
@pytest.mark.parametrize("position", [0, 500, 999])
def test_one_number_that_is_not_finite_is_enough_to_refuse(codec: Codec, number: float, position: int) -> None:
    items = [item(codec, 0.5)] * 1000
    items[position] = item(codec, number)
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec.decode(b"".join(items), 1000)


@EACH_CODEC
def test_opposite_infinities_do_not_cancel(codec: Codec) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec.decode(item(codec, math.inf) + item(codec, -math.inf), 2)


@EACH_CODEC
@pytest.mark.parametrize("change_bytes", [-1, 1, -2, 2, 4])
def test_another_length_is_refused(codec: Codec, change_bytes: int) -> None:
    data = (encoded(codec, torch.ones(8)) + bytes(8))[: codec.encoded_bytes(8) + change_bytes]
    with pytest.raises(ValueError, match="were expected"):
        codec.decode(data, 8)


@EACH_CODEC
def test_an_empty_block_is_empty(codec: Codec) -> None:
    assert encoded(codec, torch.empty(0)) == b""
    assert codec.decode(b"", 0).numel() == 0
    assert codec.worst_error(torch.empty(0)) == 0


@EACH_CODEC
def test_a_slice_with_steps_and_a_graph_encodes_like_its_copy(codec: Codec) -> None:
    strided = torch.arange(20.0, requires_grad=True)[::2]
    assert encoded(codec, strided) == encoded(codec, strided.detach().clone())


def test_fp16_saturates_instead_of_becoming_infinite() -> None:
    codec = codec_named("fp16")
    values = fp32([65504, 65520, 1e30, -1e30, 3.4e38])
    assert codec.decode(codec.encode(values), 5).tolist() == [65504, 65504, 65504, -65504, 65504]


def test_fp16_rounds_to_nearest_even() -> None:
    codec = codec_named("fp16")
    values = fp32([2048 + 1, 2048 + 3, 1 + 2**-11, 1 + 3 * 2**-11])
    assert codec.decode(codec.encode(values), 4).tolist() == [2048, 2052, 1, 1 + 2 * 2**-10]


def test_finite_vectors_whose_sum_overflows_are_finite() -> None:
    assert all_finite(torch.full((10,), 3e38))
    assert codec_named("fp32").decode(codec_named("fp32").encode(torch.full((10,), 3e38)), 10).numel() == 10


def test_an_unknown_codec_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown codec 'int3'; known: fp32, fp16"):
        codec_named("int3")
