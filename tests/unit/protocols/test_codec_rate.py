"""Codecs with a rate: what is kept, what it takes, what is refused. What every codec promises is in `tests/contracts/test_codec.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from protocols import rans
from protocols.codecs import codec_named
from protocols.codecs.budget import Histogram, entropy_bits, log2
from protocols.codecs.entropy import Coded, lanes_for, pack, unpack
from protocols.codecs.levels import rounded, values
from protocols.codecs.rate import RateCodec

NAMES = {"rd20": 0.2, "rd50": 0.5, "rd100": 1.0}
each_name = pytest.mark.parametrize("name", NAMES)


def numbers(kind: str, elems: int, seed: int = 5) -> torch.Tensor:
    random = np.random.default_rng(seed)
    if kind == "laplace":
        found_E = random.laplace(size=elems)
    elif kind == "heavy":
        found_E = random.standard_t(3, size=elems)
    else:
        found_E = random.standard_normal(elems)
    if kind == "rows":
        found_E *= np.repeat(random.random(-(-elems // 256)) < 0.1, 256)[:elems]
    return torch.from_numpy(found_E.astype(np.float32))


def round_trip(codec: RateCodec | str, block_E: torch.Tensor) -> tuple[bytes, torch.Tensor]:
    how = codec_named(codec) if isinstance(codec, str) else codec
    data = bytes(how.encode(block_E))
    return data, how.decode(data, block_E.numel())


# What is kept


@each_name
@pytest.mark.parametrize("kind", ["normal", "laplace", "heavy"])
def test_what_is_kept_are_the_largest_each_as_the_mean_of_its_octave(name: str, kind: str) -> None:
    block_E = numbers(kind, 50_000)
    _, decoded_E = round_trip(name, block_E)
    kept = decoded_E != 0
    assert block_E[kept].abs().min() * (1 + 2**-7) >= block_E[~kept].abs().max()
    assert torch.equal(torch.sign(decoded_E[kept]), torch.sign(block_E[kept]))
    exact = values(rounded(block_E[kept].abs().numpy())).astype(np.float64)
    bins = np.floor(np.log2(exact / exact.min())).astype(int)
    for number in set(bins):
        (level,) = set(decoded_E[kept].abs().numpy()[bins == number])
        assert level == pytest.approx(exact[bins == number].mean(), rel=2**-8)


@each_name
@pytest.mark.parametrize("kind", ["normal", "laplace", "heavy", "rows"])
@pytest.mark.parametrize("elems", [2**14, 2**17 + 333])
def test_nearly_all_bytes_that_there_may_be_are_used(name: str, kind: str, elems: int) -> None:
    data, decoded_E = round_trip(name, numbers(kind, elems))
    most = codec_named(name).max_encoded_bytes(elems)
    assert len(data) <= most
    assert len(data) > 0.96 * most or int((decoded_E != 0).sum()) == int((numbers(kind, elems) != 0).sum())
    assert most == int(elems * NAMES[name] / 8) + 32


@pytest.mark.parametrize(
    ("name", "kind", "limit"),
    [
        ("rd20", "normal", 0.84),
        ("rd20", "laplace", 0.73),
        ("rd50", "normal", 0.63),
        ("rd50", "laplace", 0.50),
        ("rd100", "normal", 0.37),
        ("rd100", "laplace", 0.28),
    ],
)
def test_the_mass_that_is_left_out(name: str, kind: str, limit: float) -> None:
    block_E = numbers(kind, 2**18)
    _, decoded_E = round_trip(name, block_E)
    assert float((decoded_E - block_E).square().sum() / block_E.square().sum()) < limit


@pytest.mark.parametrize("kind", ["normal", "laplace", "heavy"])
def test_at_equal_bits_less_is_left_out_than_by_the_largest_of_each_chunk(kind: str) -> None:
    block_E = numbers(kind, 2**18)

    def left_out(decoded_E: torch.Tensor) -> float:
        return float((decoded_E - block_E).square().sum())

    for percent, other in ((16, "topk64"), (37, "topk128")):
        data, decoded_E = round_trip(RateCodec("x", percent), block_E)
        sparse = codec_named(other)
        assert len(data) <= sparse.max_encoded_bytes(2**18)
        assert left_out(decoded_E) < 0.98 * left_out(sparse.decode(sparse.encode(block_E), 2**18))


def test_of_equal_magnitudes_the_first_are_kept() -> None:
    signs_E = torch.where(numbers("normal", 20_000) > 0, 1.0, -1.0)
    _, decoded_E = round_trip("rd20", signs_E)
    kept = int((decoded_E != 0).sum())
    assert 0 < kept < 20_000
    assert torch.equal(decoded_E[:kept], signs_E[:kept])


def test_few_magnitudes_that_fit_are_kept_as_they_are() -> None:
    block_E = torch.zeros(10_000)
    block_E[::100] = torch.tensor([0.5, -3.0, 2.0**-126, 1.5, 2.0**120] * 20)
    assert torch.equal(round_trip("rd20", block_E)[1], block_E)


def test_subnormal_numbers_are_zeros() -> None:
    block_E = torch.tensor([1e-45, -(2.0**-127), 2.0**-126, 1.0] + [0.0] * 60)
    assert round_trip("rd100", block_E)[1].tolist() == [0, 0, 2.0**-126, 1.0] + [0] * 60


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@each_name
def test_what_is_not_finite_is_not_encoded(name: str, number: float) -> None:
    block_E = torch.zeros(5000)
    block_E[4321] = number
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec_named(name).encode(block_E)


def test_a_rate_that_carries_nothing_is_no_rate() -> None:
    with pytest.raises(ValueError, match="4 hundredths"):
        RateCodec("x", 4)


@pytest.mark.parametrize("elems", [1, 2, 40, 4095, 2**16, 2**20, 2**24])
@pytest.mark.parametrize("percent", [5, 100])
def test_one_element_always_fits(elems: int, percent: int) -> None:
    """Least room beside most lanes."""
    block_E = torch.zeros(elems)
    block_E[elems // 2] = 1.2345678
    _, decoded_E = round_trip(RateCodec("x", percent), block_E)
    assert decoded_E.nonzero().flatten().tolist() == [elems // 2]


# Counting


@given(st.lists(st.integers(0, 2**26), min_size=1, max_size=30).filter(any))
def test_the_entropy_is_that_of_the_counts(counts: list[int]) -> None:
    found = np.array([count for count in counts if count], dtype=np.float64)
    assert entropy_bits(np.array(counts)) == pytest.approx(float((found * np.log2(found.sum() / found)).sum()), rel=1e-9, abs=1e-6)


@given(st.floats(2.0**-60, 2.0**60))
@example(1.0)
@example(0.5)
def test_logarithms_are_exact_enough(number: float) -> None:
    assert float(log2(np.array([number]))[0]) == pytest.approx(float(np.log2(number)), abs=1e-12)


@given(seed=st.integers(0, 2**32), elems=st.integers(1, 500), count=st.integers(1, 500))
def test_a_histogram_knows_what_is_kept(seed: int, elems: int, count: int) -> None:
    rounded_E = np.random.default_rng(seed).integers(0, 900, elems).astype(np.uint16)
    histogram = Histogram(rounded_E)
    normal = np.sort(rounded_E[rounded_E >= 256])[::-1]
    assert histogram.most == normal.size
    if count <= normal.size:
        kept = histogram.kept(count)
        assert kept.threshold == normal[count - 1]
        assert kept.first == int((normal[:count] == kept.threshold).sum())
        expected = np.bincount((normal[:count].astype(int) - kept.threshold) // 256, minlength=3)
        assert histogram.bins(kept)[: expected.size].tolist() == expected.tolist()
        assert int(histogram.bins(kept).sum()) == count


# Bytes


def coded(elems: int, kept: int, levels: int, seed: int = 1) -> Coded:
    random = np.random.default_rng(seed)
    places_K = np.sort(random.choice(elems, kept, replace=False))
    ranks_K = np.concatenate([np.arange(levels), random.integers(0, levels, kept - levels)]).astype(np.uint8)
    return Coded(elems, places_K, ranks_K, random.integers(0, 2, kept).astype(np.uint8), (256 + 7 * np.arange(levels)).astype(np.uint16))


@given(
    elems=st.integers(1, 3000), share=st.floats(0, 1), levels=st.sampled_from([1, 2, 3, 4, 6, 7, 16, 17, 255]), seed=st.integers(0, 2**32)
)
def test_what_is_packed_is_unpacked(elems: int, share: float, levels: int, seed: int) -> None:
    kept = max(levels, round(share * elems))
    if kept > elems:
        return
    sent = coded(elems, kept, levels, seed)
    found = unpack(pack(sent), elems)
    for name in ("places_K", "ranks_K", "negative_K", "levels_L"):
        assert getattr(found, name).tolist() == getattr(sent, name).tolist(), name


def test_zeros_take_one_byte() -> None:
    assert round_trip("rd20", torch.zeros(10**6))[0] == b"\0"
    with pytest.raises(ValueError, match="more bytes than zeros need"):
        codec_named("rd20").decode(b"\0\0", 10**6)


DATA = bytes(codec_named("rd50").encode(numbers("laplace", 5000)))
LEVELS = DATA[0]
COUNT_AT = 1 + 2 * LEVELS


def changed(at: int, *replacement: int) -> bytes:
    return DATA[:at] + bytes(replacement) + DATA[at + len(replacement) :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (changed(1, 0, 0), "levels are not ascending"),
        (changed(COUNT_AT - 2, 0, 0), "levels are not ascending"),
        (changed(1, 1, 0), "subnormal"),
        (changed(1, 0, 0xFF), "NaN or infinite"),
        (changed(1, *DATA[3:5], *DATA[1:3]), "not ascending"),
        (changed(COUNT_AT, 0, 0, 0, 0), "more levels than elements"),
        (changed(COUNT_AT, 0xFF, 0xFF, 0xFF, 0xFF), "or more of these than there are"),
        (changed(COUNT_AT, *(int.from_bytes(DATA[COUNT_AT : COUNT_AT + 4], "little") - 1).to_bytes(4, "little")), "."),
        (changed(COUNT_AT + 4, 0, 0), "add up"),
        (DATA[:-4], "words are missing"),
        (DATA[:-3], "words are cut off"),
        (DATA[: COUNT_AT + 2], "too short"),
        (DATA[: COUNT_AT + 6], "too short"),
        (DATA[:1], "too short"),
        (DATA + bytes(4), "bytes where at most|words are left over"),
    ],
)
def test_a_field_that_does_not_fit_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        codec_named("rd50").decode(data, 5000)


def test_shares_of_other_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would decode to something, but not be what anybody encodes."""
    honest, sent = rans.frequencies, coded(4000, 500, 3)
    with monkeypatch.context() as patched:
        patched.setattr(rans, "frequencies", lambda counts: honest(counts * np.array([1, 2, 1]) if counts.size == 3 else counts))
        data = pack(sent)
    assert data != pack(sent)
    with pytest.raises(ValueError, match="shares of other numbers"):
        unpack(data, 4000)


@given(cut=st.integers(0, len(DATA) - 1))
def test_what_was_cut_off_anywhere_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        codec_named("rd50").decode(DATA[:cut], 5000)


@given(place=st.integers(0, len(DATA) - 1), change=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_another_encoding(place: int, change: int) -> None:
    data = changed(place, DATA[place] ^ change)
    try:
        decoded_E = codec_named("rd50").decode(data, 5000)
    except ValueError:
        return
    assert bytes(codec_named("rd50").encode(decoded_E)) == data


@pytest.mark.parametrize("elems", [1, 4095, 2**16, 2**20, 2**26])
@pytest.mark.parametrize("kept", [1, 100, 10**6])
def test_lanes_are_so_many_that_steps_are_few(elems: int, kept: int) -> None:
    """Whatever a sender says: a step of all lanes is what takes time, and there are at most so many for the block's size."""
    lanes = lanes_for(elems, min(kept, elems))
    steps = -(-elems // 8) // lanes + min(kept, elems) // lanes
    assert steps <= 1200 + elems // 2048
