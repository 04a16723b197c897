"""The sparse codecs: against a plain encoder written from SPEC.md, their rate, their bounds, and what is no encoding."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from protocols.codecs import codec_named
from protocols.codecs.largest import CHUNK_ELEMS, largest_places
from protocols.codecs.topk import TopKCodec
from protocols.parts import TILE_ELEMS

TWO, EIGHT = TopKCodec("two", slots=64, value_bits=2), TopKCodec("eight", slots=128, value_bits=4)
each_codec = pytest.mark.parametrize("codec", [TWO, EIGHT, TopKCodec("four", slots=700, value_bits=3)], ids=["two", "eight", "four"])
each_named = pytest.mark.parametrize(("name", "bits", "slots"), [("topk64", 0.1640625, 64), ("topk128", 0.375, 128)])
LARGEST = 3.4028234663852886e38


def normal(elems: int, seed: int = 7) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(elems, dtype=np.float32))


@st.composite
def blocks(draw: st.DrawFn, most: int = 9000) -> torch.Tensor:
    """Blocks that are hard to halve: numbers of few magnitudes, of nearly one magnitude, of many, with ties and with holes."""
    elems, rng = draw(st.integers(1, most)), np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.0, 2.0**-10, 2.0**-8, 0.1, 3.0, 60.0]))
    exponents_E = spread * rng.standard_normal(elems) + draw(st.sampled_from([-126.0, -20.0, 0.0, 100.0]))
    values_E = np.exp2(np.clip(exponents_E, -148, 127.99))
    if (different := draw(st.integers(0, 12))) and draw(st.booleans()):
        values_E = values_E[rng.integers(0, min(different, elems), elems)]
    values_E *= rng.choice([-1.0, 1.0], elems)
    values_E[rng.random(elems) < draw(st.sampled_from([0.0, 0.5, 0.99]))] = 0
    return torch.from_numpy(values_E.astype(np.float32))


# As SPEC.md has it, one element after the other


def bit_field(numbers: list[tuple[int, int]]) -> bytes:
    """Numbers of so many bits each, the lowest bit first."""
    bits = [number >> bit & 1 for number, width in numbers for bit in range(width)]
    return sum(bit << index for index, bit in enumerate(bits)).to_bytes(-(-len(bits) // 8), "little")


def rounded(magnitude: float) -> int:
    bits = int(struct.unpack("<I", struct.pack("<f", magnitude))[0])
    return min(bits + 2**14 >> 15, 0xFEFF)


def value(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits << 15))[0])


def parts_of(kept: list[int], depth: int) -> list[list[int]]:
    if not depth:
        return [kept]
    mean = sum(value(bits) for bits in kept) / max(len(kept), 1)
    lower, upper = [bits for bits in kept if value(bits) <= mean], [bits for bits in kept if value(bits) > mean]
    return parts_of(lower, depth - 1) + parts_of(upper, depth - 1)


def plain_record(chunk: list[float], slots: int, value_bits: int) -> bytes:
    ranked = sorted((index for index, x in enumerate(chunk) if abs(x) >= 2.0**-126), key=lambda index: (-abs(chunk[index]), index))
    places, count = sorted(ranked[:slots]), 2 ** (value_bits - 1)
    kept = [rounded(abs(chunk[place])) for place in places]
    becomes = {bits: bits for bits in kept}
    if len(becomes) > count:
        for part in parts_of(kept, value_bits - 1):
            mean = float(np.float32(sum(value(bits) for bits in part) / max(len(part), 1)))
            becomes.update({bits: rounded(mean) for bits in part})
    levels = sorted(set(becomes.values()))
    low = int(math.log2(len(chunk) // slots))
    uppers = [0] * (slots + (len(chunk) - 1 >> low))
    for index, place in enumerate(places):
        uppers[(place >> low) + index] = 1
    empty = [0] * (slots - len(places))
    lows = [place % 2**low for place in places] + empty
    codes = [2 * levels.index(becomes[bits]) + (chunk[place] < 0) for place, bits in zip(places, kept, strict=True)] + empty
    table = struct.pack(f"<{count}H", *levels, *[0] * (count - len(levels)))
    fields = [[(bit, 1) for bit in uppers], [(number, low) for number in lows], [(code, value_bits) for code in codes]]
    return table + b"".join(bit_field(field) for field in fields)


def plain(codec: TopKCodec, block_E: torch.Tensor) -> bytes:
    chunks = [block_E[start : start + 4096].tolist() for start in range(0, block_E.numel(), 4096)]
    return b"".join(plain_record(chunk, -(-len(chunk) * codec.slots // 4096), codec.value_bits) for chunk in chunks)


@each_codec
@given(block_E=blocks())
@example(block_E=torch.ones(5000))
@example(block_E=torch.arange(9000.0) % 7 - 3)
@example(block_E=torch.full((4100,), -LARGEST))
def test_bytes_are_those_of_the_plain_encoder(codec: TopKCodec, block_E: torch.Tensor) -> None:
    assert bytes(codec.encode(block_E)) == plain(codec, block_E)


@each_named
def test_the_named_ones_are_of_that_many_bits(name: str, bits: float, slots: int) -> None:
    codec = codec_named(name)
    assert codec.max_encoded_bytes(2**20) * 8 / 2**20 == bits
    block_E = normal(2**15)
    decoded_E = codec.decode(codec.encode(block_E), 2**15)
    assert (decoded_E != 0).view(-1, CHUNK_ELEMS).sum(1).tolist() == [slots] * 8


# What is kept


@pytest.mark.parametrize(("elems", "most"), [(4096, 64), (4096, 300), (4096, 4096), (1000, 17), (48, 3), (1, 1)])
def test_the_largest_are_those_of_a_sort(elems: int, most: int) -> None:
    source_NC = torch.cat([normal(3 * elems).round(decimals=1), torch.zeros(elems), torch.ones(elems)]).view(5, elems)
    expected = []
    for number, chunk in enumerate(source_NC.tolist()):
        ranked = sorted((index for index, x in enumerate(chunk) if x), key=lambda index, of=chunk: (-abs(of[index]), index))  # type: ignore[misc]
        expected += [number * elems + index for index in sorted(ranked[:most])]
    assert largest_places(source_NC, most).tolist() == expected


@each_codec
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("elems", [1, 3, 4096, 5000])
def test_what_is_not_finite_is_not_encoded(codec: TopKCodec, number: float, elems: int) -> None:
    block_E = torch.zeros(elems)
    block_E[elems // 2] = number
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec.encode(block_E)


def test_the_mass_that_is_kept_is_that_of_the_largest_with_little_lost_by_levels() -> None:
    block_E = normal(2**18)
    largest_NK = block_E.abs().view(-1, CHUNK_ELEMS).topk(64, sorted=False).values
    exact = float(block_E.square().sum() - largest_NK.square().sum())
    for bits, more in ((2, 1e-3), (4, 1e-4)):
        codec = TopKCodec("x", 64, bits)
        found = float((codec.decode(codec.encode(block_E), 2**18) - block_E).square().sum())
        assert exact <= found * (1 + 1e-6)
        assert found <= exact + more * float(block_E.square().sum())


def test_few_magnitudes_are_kept_as_they_are() -> None:
    block_E = torch.zeros(CHUNK_ELEMS)
    block_E[100:108] = torch.tensor([1.0, -2.0, 4.0, -8.0, 16.0, 32.0, 1e30, -1e-30]) * 1.5
    rounded_E = (block_E.view(torch.int32) + 2**14 >> 15 << 15).view(torch.float32)
    assert torch.equal(EIGHT.decode(EIGHT.encode(block_E), CHUNK_ELEMS), rounded_E)


@pytest.mark.parametrize("value_bits", [2, 3, 4])
def test_the_largest_number_there_is_stays_finite(value_bits: int) -> None:
    codec, block_E = TopKCodec("x", 64, value_bits), torch.full((5000,), LARGEST)
    decoded_E = codec.decode(codec.encode(block_E), 5000)
    assert float(decoded_E.max()) == (2 - 2**-8) * 2.0**127
    assert math.isfinite(codec.error_norm(block_E))


# Bounds


@each_codec
@given(block_E=blocks())
def test_bounds_hold_for_what_is_hard_to_halve(codec: TopKCodec, block_E: torch.Tensor) -> None:
    decoded_E = codec.decode(codec.encode(block_E), block_E.numel())
    error_E = (decoded_E.double() - block_E.double()).abs()
    assert float(error_E.max()) <= codec.worst_error(block_E)
    assert float(torch.linalg.vector_norm(error_E)) <= codec.error_norm(block_E) * (1 + 1e-9)
    assert codec.error_norm(decoded_E) == codec.error_norm(block_E)


@each_named
def test_the_bound_is_of_the_size_of_what_is_left_out(name: str, bits: float, slots: int) -> None:
    """Its price: whatever is not kept may be as large as what is."""
    codec, block_E = codec_named(name), normal(2**17)
    changed = float(torch.linalg.vector_norm(codec.decode(codec.encode(block_E), 2**17) - block_E))
    assert changed < codec.error_norm(block_E) < 2.9 * changed


# Reading


def test_a_tile_is_read_without_the_others() -> None:
    block_E = normal(3 * TILE_ELEMS + 5000)
    part = TWO.open(TWO.encode(block_E), block_E.numel())
    decoded_E = TWO.decode(TWO.encode(block_E), block_E.numel())
    for start, elems in ((TILE_ELEMS, TILE_ELEMS), (3 * TILE_ELEMS, 5000), (0, 2 * TILE_ELEMS)):
        out_T = torch.full((elems,), 7.0)
        part.read(start, out_T)
        assert torch.equal(out_T, decoded_E[start : start + elems])
    assert part.kept_P.size < block_E.numel() // 50


# What is no encoding. A record of 4096 elements: two levels, 16 bytes of upper bits, 48 of lower ones, 16 of codes.


def changed(place: int, to: bytes, block_E: torch.Tensor) -> bytes:
    data = bytes(TWO.encode(block_E))
    return data[:place] + to + data[place + len(to) :]


def one_kept() -> torch.Tensor:
    block_E = torch.zeros(CHUNK_ELEMS)
    block_E[70] = 1.0
    return block_E


@pytest.mark.parametrize(
    ("place", "to", "reason"),
    [
        (1, 0xFF, "a level is NaN or infinite"),
        (3, 0xFF, "a level is NaN or infinite"),
        (0, 0xFF00, "a level is subnormal"),
        (1, 0x00, "not used, or one that is not there"),
        (3, 0x01, "levels are not ascending"),
        (3, 0x80, "not used, or one that is not there"),
        (4, 0x06, "not ascending"),
        (4, 0x00, "an empty slot is not zero"),
        (21, 0x01, "an empty slot is not zero"),
        (68, 0x02, "not used, or one that is not there"),
        (68, 0x04, "an empty slot is not zero"),
        (83, 0x80, "an empty slot is not zero"),
        (19, 0x80, "an unused bit is not zero"),
    ],
)
def test_a_record_of_one_element_has_one_form(place: int, to: int, reason: str) -> None:
    data = changed(place, to.to_bytes(1 + (to > 0xFF), "big"), one_kept())
    with pytest.raises(ValueError, match=reason):
        TWO.decode(data, CHUNK_ELEMS)


def test_another_record_of_one_element_is_another_element() -> None:
    decoded_E = TWO.decode(changed(20, b"\x07", one_kept()), CHUNK_ELEMS)
    assert decoded_E.nonzero().tolist() == [[71]]


def test_positions_ascend_and_are_no_more_than_slots() -> None:
    block_E = torch.zeros(CHUNK_ELEMS)
    block_E[:2] = 1.0
    data = bytes(TWO.encode(block_E))
    swapped = bytearray(data)
    swapped[20:22] = bytes([1, 0])  # lower bits of both, the first one's first
    with pytest.raises(ValueError, match="not ascending"):
        TWO.decode(swapped, CHUNK_ELEMS)
    with pytest.raises(ValueError, match="more positions than slots"):
        TWO.decode(data[:4] + b"\xff" * 9 + data[13:], CHUNK_ELEMS)
    ends = bytearray(changed(4, b"\x00", one_kept()))
    ends[19] = 0x40  # bit 126 for the first position: beyond the chunk
    with pytest.raises(ValueError, match="beyond its chunk"):
        TWO.decode(ends, CHUNK_ELEMS)


@pytest.mark.parametrize(("slots", "value_bits"), [(0, 2), (4097, 2), (64, 1)])
def test_what_cannot_be_a_sparse_codec_is_none(slots: int, value_bits: int) -> None:
    with pytest.raises(ValueError, match="no sparse block"):
        TopKCodec("x", slots, value_bits)
