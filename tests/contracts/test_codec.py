"""What every codec promises (`protocols/codecs/base.py`)."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from protocols.codecs import CODEC_NAMES, Codec, both_ways, codec_named
from protocols.codecs.full import all_finite
from protocols.parts import TILE_ELEMS, read_part

ALL = [codec for name in CODEC_NAMES for codec in both_ways(name)]
EACH_CODEC = pytest.mark.parametrize("codec", ALL, ids=lambda codec: codec.name)
FORMATS = {"fp32": "<f", "fp16": "<e"}
"""Codecs whose elements `struct` can write one by one."""
EACH_FORMAT = pytest.mark.parametrize("codec", [codec_named(name) for name in FORMATS], ids=list(FORMATS))

FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)
FLOATS = st.lists(FLOAT, min_size=1, max_size=40)
LARGEST = 3.4028234663852886e38
NOT_FINITE = [math.nan, math.inf, -math.inf]


@st.composite
def blocks(draw: st.DrawFn) -> torch.Tensor:
    """Blocks of some groups: numbers of one magnitude, which may be tiny or huge, and a few that have nothing to do with them."""
    elems = draw(st.integers(1, 1200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    with np.errstate(over="ignore", under="ignore"):
        values_E = np.ldexp(rng.standard_normal(elems), draw(st.integers(-150, 127))).astype(np.float32)
    values_E[rng.random(elems) < draw(st.sampled_from([0.0, 0.3, 0.97]))] = 0
    for place, value in draw(st.lists(st.tuples(st.integers(0, elems - 1), FLOAT), max_size=5)):
        values_E[place] = value
    return torch.from_numpy(np.nan_to_num(values_E, posinf=LARGEST, neginf=-LARGEST))


def fp32(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def spread(elems: int) -> torch.Tensor:
    """Numbers between -1 and 1 that are the same on any machine."""
    return torch.from_numpy((np.arange(elems, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(8)).astype(np.float32) / 2**23 - 1)


def encoded(codec: Codec, block_E: torch.Tensor) -> bytes:
    return bytes(codec.encode(block_E))


def check_round_trip(codec: Codec, block_E: torch.Tensor) -> None:
    before_E, data = block_E.clone(), encoded(codec, block_E)
    assert data == encoded(codec, block_E.clone())
    assert torch.equal(block_E, before_E)
    assert len(data) in codec.lengths(block_E.numel())
    decoded_E = codec.decode(data, block_E.numel())
    assert decoded_E.dtype == torch.float32
    assert decoded_E.shape == block_E.shape
    assert float((decoded_E.double() - block_E.double()).abs().max()) <= codec.worst_error(block_E)
    assert encoded(codec, decoded_E) == data


@EACH_CODEC
@given(values=FLOATS)
@example(values=[0.0, -0.0, 1e-45, -1e-45, 6e-8, 65504.0, 65519.9, 65520.0, LARGEST, -LARGEST])
@example(values=[1e-45, -1e-45])
@example(values=[-0.0])
def test_encoding_is_deterministic_bounded_and_a_projection(codec: Codec, values: list[float]) -> None:
    check_round_trip(codec, fp32(values))


@EACH_CODEC
@given(block_E=blocks())
def test_so_it_is_with_many_groups_of_any_magnitude(codec: Codec, block_E: torch.Tensor) -> None:
    check_round_trip(codec, block_E)


@EACH_CODEC
@pytest.mark.parametrize("elems", [1, 2, 255, 256, 257, TILE_ELEMS - 1, TILE_ELEMS, TILE_ELEMS + 1, 2 * TILE_ELEMS + 4099])
def test_so_it_is_at_the_edges_of_groups_and_tiles(codec: Codec, elems: int) -> None:
    check_round_trip(codec, spread(elems))


@EACH_CODEC
@given(values=FLOATS, buffer=st.sampled_from([bytes, bytearray, memoryview]))
def test_any_buffer_decodes_alike(codec: Codec, values: list[float], buffer: type[bytes] | type[bytearray] | type[memoryview]) -> None:
    data = encoded(codec, fp32(values))
    assert encoded(codec, codec.decode(buffer(data), len(values))) == data


@EACH_CODEC
def test_bytes_decode_from_anywhere_in_a_message(codec: Codec) -> None:
    data = encoded(codec, spread(1000))
    for offset in range(5):
        message = bytearray(bytes(offset) + data)
        assert encoded(codec, codec.decode(memoryview(message)[offset:], 1000)) == data


@EACH_CODEC
@pytest.mark.parametrize("elems", [0, 1, 1000, TILE_ELEMS, 2 * TILE_ELEMS + 4099])
def test_decoding_in_place_or_tile_by_tile_is_decoding(codec: Codec, elems: int) -> None:
    data = encoded(codec, spread(elems))
    decoded_E = codec.decode(data, elems)
    placed = torch.full((elems + 2,), 7.0)
    codec.decode_into(data, placed[1:-1])
    assert torch.equal(placed[1:-1], decoded_E)
    assert placed[0] == placed[-1] == 7.0
    part, tile_by_tile = codec.open(data, elems), torch.full((elems,), 7.0)
    for start in reversed(range(0, elems, TILE_ELEMS)):
        read_part(part, start, tile_by_tile[start : start + TILE_ELEMS])
    assert torch.equal(tile_by_tile, decoded_E)


@EACH_CODEC
def test_nothing_is_written_where_bytes_are_refused(codec: Codec) -> None:
    placed = torch.full((10,), 7.0)
    with pytest.raises(ValueError, match="NaN or infinite" if len(codec.lengths(10)) == 1 else "."):
        codec.decode_into(b"\xff" * codec.max_encoded_bytes(10), placed)
    assert bool((placed == 7.0).all())


@EACH_CODEC
@given(data=st.binary(max_size=64), elems=st.integers(0, 16))
def test_any_bytes_are_refused_or_are_the_encoding_of_what_they_decode_to(codec: Codec, data: bytes, elems: int) -> None:
    try:
        decoded_E = codec.decode(data, elems)
    except ValueError:
        return
    assert decoded_E.shape == (elems,)
    assert encoded(codec, decoded_E) == data


@EACH_CODEC
@given(block_E=blocks(), place=st.integers(0, 2**32), change=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_makes_another_encoding(codec: Codec, block_E: torch.Tensor, place: int, change: int) -> None:
    data = bytearray(encoded(codec, block_E))
    data[place % len(data)] ^= change
    try:
        decoded_E = codec.decode(data, block_E.numel())
    except ValueError:
        return
    assert bool(torch.isfinite(decoded_E).all())
    assert encoded(codec, decoded_E) == data


@EACH_FORMAT
@given(data=st.binary(max_size=64), elems=st.integers(0, 16))
def test_numbers_are_refused_only_for_a_reason(codec: Codec, data: bytes, elems: int) -> None:
    try:
        codec.decode(data, elems)
    except ValueError:
        size = codec.max_encoded_bytes(1)
        items = [data[i : i + size] for i in range(0, len(data), size)]
        assert len(data) != elems * size or not all(math.isfinite(struct.unpack(FORMATS[codec.name], one)[0]) for one in items)


@EACH_FORMAT
@pytest.mark.parametrize("number", NOT_FINITE)
@pytest.mark.parametrize("position", [0, 500, 999])
def test_one_number_that_is_not_finite_is_enough_to_refuse(codec: Codec, number: float, position: int) -> None:
    items = [struct.pack(FORMATS[codec.name], 0.5)] * 1000
    items[position] = struct.pack(FORMATS[codec.name], number)
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec.decode(b"".join(items), 1000)


@EACH_FORMAT
def test_opposite_infinities_do_not_cancel(codec: Codec) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec.decode(struct.pack("<2" + FORMATS[codec.name][1], math.inf, -math.inf), 2)


@EACH_CODEC
@pytest.mark.parametrize("change_bytes", [-1, 1, -2, 2, 4])
def test_another_length_is_refused(codec: Codec, change_bytes: int) -> None:
    exact = encoded(codec, torch.ones(8))
    data = (exact + bytes(8))[: len(exact) + change_bytes]
    with pytest.raises(ValueError, match="were expected" if len(codec.lengths(8)) == 1 else "."):
        codec.decode(data, 8)


@EACH_CODEC
@pytest.mark.parametrize("elems", [1, 8, 5000])
def test_no_length_beyond_the_bound_is_looked_at(codec: Codec, elems: int) -> None:
    with pytest.raises(ValueError, match=rf"{codec.max_encoded_bytes(elems) + 1} bytes where .* were expected"):
        codec.decode(bytes(codec.max_encoded_bytes(elems) + 1), elems)
    with pytest.raises(ValueError, match=r"^0 bytes where .* were expected"):
        codec.decode(b"", elems)


@EACH_CODEC
def test_an_empty_block_is_empty(codec: Codec) -> None:
    assert encoded(codec, torch.empty(0)) == b""
    assert codec.decode(b"", 0).numel() == 0
    assert codec.worst_error(torch.empty(0)) == 0


@EACH_CODEC
def test_a_slice_with_steps_and_a_graph_encodes_like_its_copy(codec: Codec) -> None:
    strided = torch.arange(20.0, requires_grad=True)[::2]
    assert encoded(codec, strided) == encoded(codec, strided.detach().clone())
    assert codec.worst_error(strided) == codec.worst_error(strided.detach().clone())


@EACH_CODEC
def test_zeros_stay_zeros(codec: Codec) -> None:
    assert torch.equal(codec.decode(codec.encode(torch.zeros(1000)), 1000), torch.zeros(1000))


@EACH_CODEC
def test_the_number_of_threads_changes_nothing(codec: Codec) -> None:
    block_E, threads = spread(3 * TILE_ELEMS), torch.get_num_threads()
    found = set()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.add(encoded(codec, block_E))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_fp16_saturates_instead_of_becoming_infinite() -> None:
    codec = codec_named("fp16")
    values = fp32([65504, 65520, 1e30, -1e30, 3.4e38])
    assert codec.decode(codec.encode(values), 5).tolist() == [65504, 65504, 65504, -65504, 65504]


def test_fp16_rounds_to_nearest_even() -> None:
    codec = codec_named("fp16")
    values = fp32([2048 + 1, 2048 + 3, 1 + 2**-11, 1 + 3 * 2**-11])
    assert codec.decode(codec.encode(values), 4).tolist() == [2048, 2052, 1, 1 + 2 * 2**-10]


def test_bf16_saturates_instead_of_becoming_infinite() -> None:
    codec, largest = codec_named("bf16"), 2.0**128 - 2.0**120
    assert codec.decode(codec.encode(fp32([LARGEST, -LARGEST, largest])), 3).tolist() == [largest, -largest, largest]


def test_bf16_rounds_to_nearest_even_and_keeps_subnormal_numbers() -> None:
    codec = codec_named("bf16")
    values = fp32([256 + 1, 256 + 3, 1 + 2**-8, -1 - 3 * 2**-8, 2.0**-133, 3 * 2.0**-134, 2.0**-134, 1e-45])
    expected = [256, 260, 1, -1 - 2 * 2**-7, 2.0**-133, 2 * 2.0**-133, 0, 0]
    assert codec.decode(codec.encode(values), 8).tolist() == expected


@given(values=FLOATS)
def test_bf16_is_what_torch_means_by_it(values: list[float]) -> None:
    normal_E = fp32([value for value in values if 2.0**-126 <= abs(value) < 3e38])
    expected_E = normal_E.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(codec_named("bf16").decode(codec_named("bf16").encode(normal_E), normal_E.numel()), expected_E)


def test_finite_vectors_whose_sum_overflows_are_finite() -> None:
    assert all_finite(torch.full((10,), 3e38))
    assert codec_named("fp32").decode(codec_named("fp32").encode(torch.full((10,), 3e38)), 10).numel() == 10


def test_an_unknown_codec_is_refused_by_name() -> None:
    known = "fp32, fp16, bf16, int8, int4, e3m0, adaptive-int8, topk64, topk128, topk32-152, rd20, rd50, rd100"
    with pytest.raises(ValueError, match=f"unknown codec 'int3'; known: {known}"):
        codec_named("int3")


@EACH_CODEC
@given(block_E=blocks())
def test_error_norm_bounds_what_a_round_trip_changes_by_the_block_or_by_what_is_left_of_it(codec: Codec, block_E: torch.Tensor) -> None:
    decoded_E = codec.decode(encoded(codec, block_E), block_E.numel())
    changed = float(torch.linalg.vector_norm(decoded_E.double() - block_E.double()))
    assert changed <= codec.error_norm(block_E) * (1 + 1e-6)
    if float(block_E.abs().max()) <= 65504:  # what was cut off cannot be seen any more
        assert changed <= codec.error_norm(decoded_E) * (1 + 1e-6)


@EACH_CODEC
def test_one_huge_element_is_no_excuse_for_the_others(codec: Codec) -> None:
    block_E = 1e-3 * spread(2**16 + 7)
    usual = codec.error_norm(block_E)
    block_E[5] = 1.0
    assert codec.error_norm(block_E) <= 2 * usual + 1.5
