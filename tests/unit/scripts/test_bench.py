"""The averaging benchmark's judgement: its data, the error it reports, and the figures it derives. No process is started."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from protocols.aggregation.mean import weighted_mean
from protocols.codecs import CODEC_NAMES, codec_named
from scripts.bench import averaging, codecs, data, hivemind_codecs
from scripts.bench.fleet import RoundFigures

ELEMS = 3 * data.SHIFT_ELEMS + 17
SEED = 3
WEIGHTS = (16.0, 32.0, 48.0)


def _mean_of(round_number: int, weights: tuple[float, ...] = WEIGHTS) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """What a correct system ends a round with, shape (D,)."""
    rows_KD = np.stack([data.rotated(data.vector(SEED, rank, ELEMS), round_number) for rank in range(len(weights))])
    return np.average(rows_KD.astype(np.float64), axis=0, weights=weights).astype(np.float32)


@pytest.fixture
def expected(tmp_path: Path) -> Path:
    """File with the exact weighted mean."""
    file = tmp_path / "expected.f64"
    data.write_expected(file, SEED, ELEMS, WEIGHTS)
    return file


def test_vectors_are_reproducible_and_differ_between_peers_and_seeds() -> None:
    assert np.array_equal(data.vector(SEED, 1, 100), data.vector(SEED, 1, 100))
    assert not np.array_equal(data.vector(SEED, 1, 100), data.vector(SEED, 2, 100))
    assert not np.array_equal(data.vector(SEED, 1, 100), data.vector(SEED + 1, 1, 100))
    assert data.vector(SEED, 1, 100).dtype == np.float32


def test_rotation_leaves_the_vector_alone_and_moves_it_further_every_round() -> None:
    vector_D = data.vector(SEED, 0, ELEMS)
    before_D = vector_D.copy()
    rotated_D = data.rotated(vector_D, 2)
    rotated_D[:] = 0
    assert np.array_equal(vector_D, before_D)
    assert data.rotated(vector_D, 1)[data.SHIFT_ELEMS] == vector_D[0]
    assert np.array_equal(data.rotated(vector_D, 0), vector_D)


def test_weights_are_unequal() -> None:
    assert data.sample_weights(4) == [16.0, 32.0, 48.0, 64.0]


@pytest.mark.parametrize("round_number", [0, 1, 7])
def test_a_correct_mean_has_only_rounding_error_in_every_round(expected: Path, round_number: int) -> None:
    assert data.max_abs_error(expected, _mean_of(round_number), round_number) < 1e-6


def test_what_went_wrong_shows_as_an_error(expected: Path) -> None:
    right_D = _mean_of(1)
    assert data.max_abs_error(expected, _mean_of(1, (1.0, 1.0, 1.0)), 1) > 0.1, "weights ignored"
    assert data.max_abs_error(expected, _mean_of(0), 1) > 0.1, "a result of the round before"
    one_off_D = right_D.copy()
    one_off_D[-1] += 0.5
    assert data.max_abs_error(expected, one_off_D, 1) == pytest.approx(0.5, abs=1e-6)


def test_an_incomplete_or_broken_result_is_infinitely_wrong(expected: Path) -> None:
    right_D = _mean_of(0)
    assert math.isinf(data.max_abs_error(expected, right_D[:-1], 0))
    for poison in (np.nan, np.inf):
        broken_D = right_D.copy()
        broken_D[5] = poison
        assert math.isinf(data.max_abs_error(expected, broken_D, 0))


def test_blocks_of_the_check_cover_everything(expected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "CHECK_ELEMS", 1000)
    assert data.max_abs_error(expected, _mean_of(1), 1) < 1e-6
    wrong_D = _mean_of(1)
    wrong_D[ELEMS - 1] += 1.0
    assert data.max_abs_error(expected, wrong_D, 1) == pytest.approx(1.0, abs=1e-6)


def _rounds(*seconds: float, error: float = 0.0, equal: bool = True) -> list[RoundFigures]:
    return [RoundFigures(seconds=each, cpu_s=10 * each, max_abs_error=error, equal=equal) for each in seconds]


def test_report_compares_medians_in_the_promised_direction() -> None:
    summary = averaging.report({"ours": _rounds(9.0, 1.0, 2.0), "hivemind": _rounds(4.0, 6.0, 5.0), "gloo": _rounds(1.0, 1.0, 30.0)})
    assert summary["ours_s"] == 2.0
    assert summary["hivemind_s"] == 5.0
    assert summary["vs_hivemind"] == 2.5, "how many times faster than hivemind"
    assert summary["vs_gloo"] == 2.0, "how many times slower than gloo"
    assert summary["cpu_s"] == 20.0
    assert summary["hivemind_cpu_s"] == 50.0
    assert summary["ours_rounds_s"] == [9.0, 1.0, 2.0]


def test_report_takes_the_worst_error_and_one_unequal_round_spoils_it() -> None:
    summary = averaging.report({"ours": [*_rounds(1.0, 1.0), *_rounds(1.0, error=0.25, equal=False)], "gloo": _rounds(1.0)})
    assert summary["max_abs_error"] == 0.25
    assert summary["results_equal"] is False
    assert summary["gloo_results_equal"] is True


def test_report_of_ours_alone_compares_with_nobody() -> None:
    summary = averaging.report({"ours": _rounds(1.0)})
    assert not [name for name in summary if name.startswith("vs_")]


def test_an_unknown_system_is_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        averaging.parse_arguments(["--against", "gloo,nccl"])
    assert ended.value.code == 2
    assert "--against nccl is unknown" in capsys.readouterr().err
    assert averaging.parse_arguments(["--against", ""]).against == []


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_the_bound_allows_what_the_codec_does_and_nothing_worse(expected: Path, name: str) -> None:
    codec, weights = codec_named(name), list(WEIGHTS)
    parts = [torch.from_numpy(data.vector(SEED, rank, ELEMS)) for rank in range(len(WEIGHTS))]
    mean_D = weighted_mean([codec.open(codec.encode(part), ELEMS) for part in parts], weights)
    error = data.max_abs_error(expected, codec.decode(codec.encode(mean_D), ELEMS).numpy(), 0)
    bound = data.error_bound(codec, SEED, ELEMS, WEIGHTS, 2**20)
    assert error <= bound
    assert bound < 3 * sum(codec.worst_error(part) for part in parts) + 1e-5, "a wrong mean would pass"


def test_a_codec_is_measured_with_its_errors_and_both_speeds() -> None:
    blocks = [torch.from_numpy(data.vector(SEED, rank, 1000)) for rank in range(3)]
    ours = [codecs.Ours(codec_named(name)) for name in ("fp16", "int8")]
    figures = codecs.measure(ours, blocks, 2, Console(quiet=True))
    fp16, int8 = (figures[codec.name].row(codec.name, 12_000) for codec in ours)
    assert list(fp16) == ["codec", "bits", "mse", "worst_error", "claimed_error", "gb_s", "encode_gb_s", "decode_gb_s"]
    assert (fp16["bits"], int8["bits"]) == (16, 8.064)
    assert 0 < fp16["mse"] < 1e-7 < int8["mse"] < 1e-4
    assert 0 < int8["worst_error"] <= int8["claimed_error"] < 0.03
    assert int8["gb_s"] == min(int8["encode_gb_s"], int8["decode_gb_s"]) > 0


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # hivemind's
def test_hivemind_has_a_codec_for_each_of_ours_and_decodes_what_it_encodes() -> None:
    block_E = torch.from_numpy(data.vector(SEED, 0, 5000))
    hivemind_codecs.repair()
    for name in CODEC_NAMES:
        codec = codecs.Hiveminds(name, hivemind_codecs.nearest(name))
        decoded_E = codec.decode_into(codec.encode(block_E), torch.empty(5000))
        assert float((decoded_E - block_E).square().mean()) < 1e-3
    assert hivemind_codecs.described(hivemind_codecs.nearest("fp32")) == "NoCompression"


def test_unknown_codecs_and_blocks_larger_than_the_input_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, reason in ((["--codecs", "int8,int3"], "int3 is unknown"), (["--mib", "1", "--block-elems", "262145"], "has to fit")):
        with pytest.raises(SystemExit):
            codecs.parse_arguments(arguments)
        assert reason in capsys.readouterr().err
