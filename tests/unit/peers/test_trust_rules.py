"""The rules of a run that verifies, for every aggregator and however few parts there are."""

from __future__ import annotations

import pytest
import torch

from peers.averaging.trust_rules import TrustRules, trust_rules
from protocols.aggregation import AGGREGATOR_NAMES
from protocols.runspec import TrustSection

DIGEST, OTHER = b"d" * 32, b"o" * 32
EVERY = pytest.mark.parametrize("name", AGGREGATOR_NAMES)


@EVERY
@pytest.mark.parametrize("bucket", [1, 2, 5])
@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.45, 0.499])
def test_there_is_a_rule_for_any_number_of_parts(name: str, bucket: int, fraction: float) -> None:
    rules = TrustRules(name, bucket=bucket, byzantine_fraction=fraction)
    for count in range(1, 65):
        parts = [torch.full((3,), float(number)) for number in range(count)]
        value_E = rules.aggregator_of(count, DIGEST).aggregate(parts, [1.0] * count).value_E
        assert float(value_E.min()) >= 0.0
        assert float(value_E.max()) <= count - 1


@EVERY
def test_of_equal_parts_any_rule_makes_the_same(name: str) -> None:
    part_E = torch.arange(5.0)
    for count in (1, 2, 3, 7):
        aggregated = TrustRules(name).aggregator_of(count, DIGEST).aggregate([part_E] * count, [2.0] * count)
        assert torch.allclose(aggregated.value_E, part_E, rtol=1e-6)


def test_buckets_are_the_rounds_own_and_the_same_on_every_member() -> None:
    parts = list(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)))

    def made(digest: bytes) -> torch.Tensor:
        rules = TrustRules("coordinate_median", bucket=2)
        return rules.aggregator_of(8, digest).aggregate(parts, [1.0] * 8).value_E

    assert torch.equal(made(DIGEST), made(DIGEST))
    assert not torch.equal(made(DIGEST), made(OTHER))


@pytest.mark.parametrize(
    ("name", "bucket", "vanishing", "clips"),
    [
        ("mean", 1, True, False),
        ("centered_clip", 1, True, True),
        ("geometric_median", 1, False, False),
        ("coordinate_median", 1, False, False),
        ("trimmed_mean", 1, False, False),
        ("krum", 1, False, False),
        ("multi_krum", 1, False, False),
        ("centered_clip", 2, False, False),
    ],
)
def test_what_can_be_checked_by_sums(name: str, bucket: int, vanishing: bool, clips: bool) -> None:
    rules = TrustRules(name, bucket=bucket)
    assert rules.vanishing is vanishing
    assert (rules.clips and rules.vanishing) is clips


def test_a_section_becomes_rules_or_none() -> None:
    assert trust_rules(TrustSection(verify=False), 100) is None
    section = TrustSection(
        aggregator="krum",
        bucket=3,
        auditors=2,
        audit_tolerance=0.05,
        weight_cap=2.0,
        probation_epochs=7,
        byzantine_fraction=0.25,
    )
    assert trust_rules(section, 100) == TrustRules("krum", 3, 2, 0.05, 2.0, 7, 0.25, 400)
    for name in AGGREGATOR_NAMES:
        for bucket in (1, 4):
            assert trust_rules(TrustSection(aggregator=name, bucket=bucket), 100) is not None  # type: ignore[arg-type]
