"""The formats of the codecs, their error formulas, and what hivemind's own compression tests state, as deterministic tests."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from protocols.aggregation.mean import weighted_mean
from protocols.codecs import CODEC_NAMES, codec_named
from protocols.codecs.blockwise import BlockwiseCodec, scale_values
from protocols.codecs.linear import Int4Codec, Int8Codec
from protocols.codecs.policy import SMALL_BLOCK_ELEMS, SizeAdaptiveCodec
from protocols.parts import TILE_ELEMS
from protocols.runspec import AveragingSection

INTEGER = ["int8", "int4", "e3m0"]
SMALLEST, LARGEST = 2.0**-126, 3.4028234663852886e38


def blockwise(name: str) -> BlockwiseCodec:
    codec = codec_named(name)
    assert isinstance(codec, BlockwiseCodec)
    return codec


def fp32(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def decoded(name: str, block_E: torch.Tensor) -> torch.Tensor:
    codec = codec_named(name)
    return codec.decode(codec.encode(block_E), block_E.numel())


def normal(elems: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(7).standard_normal(elems, dtype=np.float32))


def many_magnitudes(elems: int) -> torch.Tensor:
    """Numbers between -2^30 and 2^30 that are the same on any machine: multiplied hashes, a thousand of each magnitude."""
    index_E = np.arange(elems, dtype=np.uint32)
    spread_E = (index_E * np.uint32(2654435761) >> np.uint32(8)).astype(np.float32) / np.float32(2**23) - np.float32(1)
    return torch.from_numpy(np.ldexp(spread_E, (index_E // 1000 % 61).astype(np.int32) - 30).astype(np.float32))


# Formats


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("fp32", "0000803f 000000bf 9a99993e 00000080 0ad7233c 0000c0bf"),
        ("fp16", "003c 00b8 cd34 0080 1f21 00be"),
        ("bf16", "803f 00bf 9a3e 0080 243c c0bf"),
        ("int8", "8478 54 d6 19 00 01 81"),
        ("int4", "257c b77c 8f 85 1a"),
        ("e3m0", "0079 007a 87 0e f5"),
        ("adaptive-int8", "0000803f 000000bf 9a99993e 00000080 0ad7233c 0000c0bf"),
        ("topk64", "807f 0000 02 01 01"),
        ("topk128", "807f 0000 0000 0000 0000 0000 0000 0000 02 01 01"),
        ("topk32-152", "807f 0000 02 01 01"),
        ("rd20", "03 9a7d 007f 807f 04000000 ff7f ff3f ff3f 8073ecb2e85880"),
        ("rd50", "03 9a7d 007f 807f 04000000 ff7f ff3f ff3f 8073ecb2e85880"),
        ("rd100", "03 9a7d 007f 807f 04000000 ff7f ff3f ff3f 8073ecb2e85880"),
    ],
)
def test_six_elements_byte_by_byte(name: str, encoding: str) -> None:
    assert bytes(codec_named(name).encode(fp32(1.0, -0.5, 0.3, -0.0, 0.01, -1.5))) == bytes.fromhex(encoding)


@pytest.mark.parametrize(
    ("name", "encoding", "decoding"),
    [
        ("fp32", "32914fe61d02d953f0b342580ae67e47", "32914fe61d02d953f0b342580ae67e47"),
        ("fp16", "4953e36e3802f1bf0d12ad3c6899f96f", "e021dc093272e6cd7ccc54291b30f354"),
        ("bf16", "8184ca0814cbada19f6ecd4b69fa93ae", "83a7933a3c7d2ff7793d9a5582a04b09"),
        ("int8", "ef70eae66dbedfcebe2c13550bea6f24", "dcc9bcc8d8f6072929c918147205b1c8"),
        ("int4", "35e4320b909241932017bb433d55ccd4", "97e7dddf4028ca830bd87de867d57a5a"),
        ("e3m0", "d45b882a86513b645954affae0eb04d7", "9eaa50dfea13139dfac936b3182453bb"),
        ("adaptive-int8", "ef70eae66dbedfcebe2c13550bea6f24", "dcc9bcc8d8f6072929c918147205b1c8"),
        ("topk64", "141892e7453ba512696164f95509b1f7", "1a3ea90ec54a7f910589667abf0ab62d"),
        ("topk128", "54547fcb61e9a3b71fcb4eefab8f5e14", "a2eed89e364a6468e05e8a8448dd1ef0"),
        ("topk32-152", "693c4ce0a35792ffe4009b2a8ac64739", "5daf7e795847b7c7d66b2707cfb8ba99"),
        ("rd20", "c5b6b08a07799a374c10165f4b1e8972", "d59d8f254f8f00fc3690d2ced819c682"),
        ("rd50", "fb089585cd9ccec2609fae49eef73b23", "fe7e56492a81c720312c18a5f0e4eef3"),
        ("rd100", "177392acd3a0b52f103be3430b4c7774", "b4d1157a42a1cac973ce0b7655f6c29a"),
    ],
)
def test_a_large_block_is_the_same_on_any_machine(name: str, encoding: str, decoding: str) -> None:
    block_E = many_magnitudes(2 * TILE_ELEMS + 4099)
    data = codec_named(name).encode(block_E)
    assert blake3(data).hexdigest()[:32] == encoding
    assert blake3(codec_named(name).decode(data, block_E.numel()).numpy().tobytes()).hexdigest()[:32] == decoding


@pytest.mark.parametrize(("name", "bits"), [("fp32", 32), ("fp16", 16), ("bf16", 16), ("int8", 8.0625), ("int4", 4.125), ("e3m0", 4.0625)])
def test_bits_of_an_element(name: str, bits: float) -> None:
    assert codec_named(name).max_encoded_bytes(2**20) * 8 / 2**20 == bits


def test_results_of_a_codec_of_two_ways_are_another_codecs() -> None:
    codec, block_E = codec_named("topk32-152"), many_magnitudes(2 * TILE_ELEMS + 4099)
    kept = [int(torch.count_nonzero(each.decode(each.encode(block_E[:8192]), 8192))) for each in (codec, codec.results)]
    assert kept == [2 * 32, 2 * 152]
    assert codec.results.results is codec.results
    data = codec.results.encode(block_E)
    assert blake3(data).hexdigest()[:32] == "14fd6f135037222a19b852a2d41c4d6f"
    assert blake3(codec.results.decode(data, block_E.numel()).numpy().tobytes()).hexdigest()[:32] == "dbffe86f830f65da14aa03c2e780ed14"


def test_every_codec_can_be_configured() -> None:
    assert {AveragingSection.model_validate({"codec": name}).codec for name in CODEC_NAMES} == set(CODEC_NAMES)


# Errors


@given(seed=st.integers(0, 2**32), exponent=st.integers(-149, 120))
@pytest.mark.parametrize(("name", "top", "group"), [("int8", 127, 256), ("int4", 7, 128)])
def test_a_linear_codec_is_off_by_half_a_step_of_the_group(name: str, top: int, group: int, seed: int, exponent: int) -> None:
    block_E = torch.from_numpy(np.ldexp(np.random.default_rng(seed).standard_normal(2 * group), exponent).astype(np.float32))
    error_E = (decoded(name, block_E).double() - block_E.double()).abs()
    for piece in (slice(0, group), slice(group, 2 * group)):
        step = max(SMALLEST, (1 + 2**-8) * float(block_E[piece].abs().max()) / top)
        assert float(error_E[piece].max()) <= (0.5 + 2**-16) * step


@given(seed=st.integers(0, 2**32), exponent=st.integers(-149, 116))
def test_e3m0_is_off_by_a_third_of_the_element_or_of_the_smallest_power(seed: int, exponent: int) -> None:
    block_E = torch.from_numpy(np.ldexp(np.random.default_rng(seed).standard_normal(256), exponent).astype(np.float32)).repeat(2)
    magnitude_E = block_E.double().abs()
    smallest = max(SMALLEST, float(magnitude_E.max()) / 48)
    error_E = (decoded("e3m0", block_E).double() - block_E.double()).abs()
    assert bool((error_E <= (magnitude_E / 3).clamp_min(0.75 * smallest)).all())


@pytest.mark.parametrize("scale", [1.0, 2.0**-126, 2.0**113])
def test_e3m0_goes_to_the_nearest_power(scale: float) -> None:
    block_E = fp32(64, 95.9, 49, 48, 47.99, 1.5, 1.4999, 1.0, 0.75, 0.7499, 0.5, 0, -0.49, -3.1, -64) * scale
    expected_E = fp32(64, 64, 64, 64, 32, 2, 1, 1, 1, 0, 0, 0, 0, -4, -64) * scale
    if scale == SMALLEST:  # what is subnormal is evenly spaced
        expected_E[8:11] = scale
    assert torch.equal(decoded("e3m0", torch.cat([block_E, block_E])), torch.cat([expected_E, expected_E]))


def test_e3m0_cuts_off_what_is_too_large() -> None:
    block_E = fp32(LARGEST, -LARGEST, 2.0**119, 1.4 * 2.0**118)
    assert decoded("e3m0", block_E).tolist() == [2.0**119, -(2.0**119), 2.0**119, 2.0**118]
    assert codec_named("e3m0").worst_error(block_E) >= LARGEST - 2.0**119


def test_e3m0_has_only_powers_of_two_as_scales() -> None:
    with pytest.raises(ValueError, match="no power of two"):
        codec_named("e3m0").decode(with_scales("e3m0", torch.ones(1000), 0x7F01), 1000)


def test_an_outlier_costs_only_its_own_group() -> None:
    block_E = normal(1024)
    block_E[300] = 1e6
    error_E = (decoded("int8", block_E) - block_E).abs()
    assert float(error_E[256:512].max()) > 1
    assert float(torch.cat([error_E[:256], error_E[512:]]).max()) < 0.02


@pytest.mark.parametrize("name", INTEGER)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("elems", [3, TILE_ELEMS, TILE_ELEMS + 500])
def test_what_is_not_finite_is_not_encoded(name: str, number: float, elems: int) -> None:
    block_E = torch.zeros(elems)
    block_E[elems // 2] = number
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec_named(name).encode(block_E)


# What is no encoding


def with_scales(name: str, block_E: torch.Tensor, bits: int) -> bytes:
    codec = blockwise(name)
    groups = codec.grouping.groups(block_E.numel())
    return struct.pack("<H", bits) * groups + bytes(codec.encode(block_E))[2 * groups :]


@pytest.mark.parametrize("name", INTEGER)
@pytest.mark.parametrize(
    ("bits", "reason"),
    [
        (0xFF00, "a scale is NaN or infinite"),
        (0xFF01, "a scale is NaN or infinite"),
        (0xFFFF, "a scale is NaN or infinite"),
        (0xFE80, "a scale is out of range"),  # finite, but not when multiplied
        (0x00FF, "a scale is out of range"),  # subnormal
        (0x0000, "a scale is out of range"),
    ],
)
def test_odd_scales_are_refused(name: str, bits: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        codec_named(name).decode(with_scales(name, torch.ones(1000), bits), 1000)


@pytest.mark.parametrize("name", INTEGER)
def test_the_largest_scale_decodes_to_finite_numbers(name: str) -> None:
    codec = blockwise(name)
    block_E = codec.decode(with_scales(name, torch.ones(1000), codec.largest_scale), 1000)
    assert bool(torch.isfinite(block_E).all())
    assert float(block_E.max()) == pytest.approx(codec.limit, rel=2**-8)
    assert float(block_E.max()) <= codec.limit
    with pytest.raises(ValueError, match="out of range"):
        codec.decode(with_scales(name, torch.ones(1000), codec.largest_scale + 1), 1000)


@pytest.mark.parametrize("name", INTEGER)
@pytest.mark.parametrize("elems", [1000, TILE_ELEMS + 1000])
def test_a_group_without_its_largest_code_needs_a_smaller_scale(name: str, elems: int) -> None:
    block_E = torch.ones(elems)
    block_E[-1:] = 0  # ends a group that is not full
    assert codec_named(name).decode(with_scales(name, block_E, 0x7F00), elems).numel() == elems
    block_E[300 : elems - 100] = 0
    with pytest.raises(ValueError, match="larger than its group needs"):
        codec_named(name).decode(with_scales(name, block_E, 0x7F00), elems)
    assert codec_named(name).decode(with_scales(name, block_E, 0x0100), elems).numel() == elems


@pytest.mark.parametrize(("name", "code"), [("int8", 0x80), ("int4", 0x07), ("int4", 0x70)])
@pytest.mark.parametrize("elems", [1000, TILE_ELEMS + 1000])
@pytest.mark.parametrize("place", [0, -1])
def test_codes_that_stand_for_nothing_are_refused(name: str, code: int, elems: int, place: int) -> None:
    data = bytearray(codec_named(name).encode(torch.ones(elems)))
    data[place if place < 0 else 2 * blockwise(name).grouping.groups(elems)] = code
    with pytest.raises(ValueError, match="stands for nothing"):
        codec_named(name).decode(data, elems)


@pytest.mark.parametrize("name", ["int4", "e3m0"])
@pytest.mark.parametrize("elems", [1, 7, TILE_ELEMS + 999])
def test_bits_that_belong_to_no_element_have_one_value(name: str, elems: int) -> None:
    data = bytearray(codec_named(name).encode(torch.ones(elems)))
    data[-1] ^= 0x10
    with pytest.raises(ValueError, match="stands for nothing"):
        codec_named(name).decode(data, elems)


def test_scales_are_rounded_up_and_by_less_than_one_part_in_256() -> None:
    magnitudes_G = np.abs(many_magnitudes(10_000).numpy()) + np.float32(1e-30)
    for codec in (Int8Codec(), Int4Codec()):
        exact_G = magnitudes_G.astype(np.float64) / codec.top
        scales_G = scale_values(codec.scales_for(magnitudes_G)).astype(np.float64)
        assert (scales_G >= exact_G * (1 - 2**-24)).all()
        assert (scales_G < exact_G * (1 + 2**-8)).all()


# The policy


def test_the_policy_chooses_by_the_number_of_elements_alone() -> None:
    codec = codec_named("adaptive-int8")
    assert codec.max_encoded_bytes(SMALL_BLOCK_ELEMS) == 4 * SMALL_BLOCK_ELEMS
    for block_E in (torch.zeros(SMALL_BLOCK_ELEMS + 1), normal(SMALL_BLOCK_ELEMS + 1)):
        assert bytes(codec.encode(block_E)) == bytes(codec_named("int8").encode(block_E))
        assert bytes(codec.encode(block_E[:-1])) == bytes(codec_named("fp32").encode(block_E[:-1]))
    assert codec.worst_error(normal(100)) == 0


def test_the_other_codecs_bytes_are_refused() -> None:
    codec = SizeAdaptiveCodec("test", codec_named("fp16"), codec_named("int4"), limit_elems=10)
    assert codec.decode(codec.encode(torch.ones(10)), 10).tolist() == [1.0] * 10
    for elems, other in ((10, "int4"), (11, "fp16")):
        with pytest.raises(ValueError, match="were expected"):
            codec.decode(codec_named(other).encode(torch.ones(elems)), elems)


# As hivemind's tests have it


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("fp16", 5e-8),
        ("int8", 8e-4),
        ("int8", 5e-5),
        ("bf16", 3e-6),
        ("int4", 0.015),
        ("e3m0", 0.04),
        ("adaptive-int8", 5e-5),
        ("topk64", 0.89),
        ("topk128", 0.81),
        ("rd20", 0.84),
        ("rd50", 0.63),
        ("rd100", 0.37),
    ],
)
def test_mean_square_error_of_a_normal_tensor(name: str, limit: float) -> None:
    block_E = normal(128 * 128 * 64)
    assert float((decoded(name, block_E) - block_E).square().mean()) < limit


def test_bf16_numbers_survive() -> None:
    for block_E in (normal(5000), many_magnitudes(5000)):
        bf16_E = block_E.to(torch.bfloat16)
        assert torch.equal(decoded("bf16", bf16_E.to(torch.float32)).to(torch.bfloat16), bf16_E)


@pytest.mark.parametrize("elems", [1, 1000, TILE_ELEMS, 2 * TILE_ELEMS + 333])
def test_parts_of_different_codecs_average(elems: int) -> None:
    weights = [float(1 + index) for index in range(len(CODEC_NAMES))]
    blocks = [many_magnitudes(elems) * (1 + index) for index in range(len(CODEC_NAMES))]
    codecs = [codec_named(name) for name in CODEC_NAMES]
    exact_E = torch.stack([block.double() * weight for block, weight in zip(blocks, weights, strict=True)]).sum(0) / sum(weights)
    found_E = weighted_mean([codec.open(codec.encode(block), elems) for codec, block in zip(codecs, blocks, strict=True)], weights)
    bound = sum(codec.worst_error(block) * w for codec, block, w in zip(codecs, blocks, weights, strict=True)) / sum(weights)
    assert float((found_E.double() - exact_E).abs().max()) <= bound * (1 + 1e-6) + 2**-20 * float(exact_E.abs().max())
    decoded_E = weighted_mean([decoded(name, block) for name, block in zip(CODEC_NAMES, blocks, strict=True)], weights)
    assert torch.equal(found_E, decoded_E)


def test_encoded_parts_of_a_mean_have_one_length() -> None:
    codec = codec_named("int8")
    parts = [codec.open(codec.encode(torch.ones(elems)), elems) for elems in (10, 11)]
    with pytest.raises(ValueError, match="differ in length"):
        weighted_mean(parts, [1.0, 1.0])
