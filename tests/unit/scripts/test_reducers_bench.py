"""The bench of reducers: each averages what it can carry, says what of each member is in the average, and counts its bits."""

from __future__ import annotations

import json

import pytest
import torch

from protocols.codecs import codec_named
from protocols.layout import FlatLayout
from scripts.bench import reducers
from scripts.bench.bytes import DENSE

MEMBERS, ROWS, COLUMNS = 3, 64, 128
LAYOUT = FlatLayout.of({"matrix": torch.empty(ROWS, COLUMNS), "bias": torch.empty(10)})


def vectors(rank: int) -> list[torch.Tensor]:
    """Matrices of that rank with one column space, and a bias."""
    generator = torch.Generator().manual_seed(3)
    left = torch.randn(ROWS, rank, generator=generator)
    return [torch.cat([(left @ torch.randn(rank, COLUMNS, generator=generator)).flatten(), torch.ones(10) * n]) for n in range(MEMBERS)]


def test_matrices_of_low_rank_are_averaged_as_they_are() -> None:
    wanted = vectors(2)
    average, sent, bits = reducers.LowRank(2, codec_named("fp32"), DENSE).average(wanted, LAYOUT)
    torch.testing.assert_close(average, torch.stack(wanted).mean(0), rtol=1e-4, atol=1e-4)
    for own, gone in zip(wanted, sent, strict=True):
        torch.testing.assert_close(gone, own, rtol=1e-4, atol=1e-4)
    assert bits == 32 * 2 * (ROWS + COLUMNS)


def test_of_matrices_of_higher_rank_something_is_left_and_comes_later() -> None:
    wanted, how = vectors(8), reducers.LowRank(2, codec_named("fp32"), DENSE)
    kept = [torch.zeros_like(each) for each in wanted]
    total, rounds = torch.zeros_like(wanted[0]), 40
    for _ in range(rounds):
        asked = [each + left for each, left in zip(wanted, kept, strict=True)]
        average, sent, _ = how.average(asked, LAYOUT)
        kept = [each - gone for each, gone in zip(asked, sent, strict=True)]
        total += average
    exact = torch.stack(wanted).mean(0)
    assert float((average - exact).norm()) > 0.2 * float(exact.norm())
    assert float((total / rounds - exact).norm()) < 0.1 * float(exact.norm())


@pytest.mark.parametrize(("buckets", "worst"), [(1.0, 0.5), (8.0, 0.15)])
def test_a_sketch_with_room_holds_the_mean_of_the_largest(buckets: float, worst: float) -> None:
    wanted = vectors(2)
    average, sent, bits = reducers.Sketched(64, 3, buckets).average(wanted, LAYOUT)
    exact = torch.stack(sent).mean(0)
    assert float((average - exact).norm()) < worst * float(exact.norm())
    assert bits >= 16 * 3 * int(buckets * LAYOUT.size_elems / 3)


def test_what_a_codec_does_not_return_stays_with_its_senders() -> None:
    wanted = vectors(8)
    average, sent, bits = reducers.Coded(codec_named("rd20")).average(wanted, LAYOUT)
    assert all(bool((each[average == 0] == 0).all()) for each in sent)
    assert bits <= 8 * codec_named("rd20").max_encoded_bytes(LAYOUT.size_elems)


def test_figures_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--members", "2", "--h", "1", "--epochs", "1", "--only", "fp32", "rd20", "--json"]
    assert reducers.main(arguments) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["reducer"] for row in found["rows"]] == ["fp32", "rd20", "rd20 momentum"]
    assert found["rows"][0]["bits"] == 32
    assert found["rows"][1]["bits"] < 0.21
