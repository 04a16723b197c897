"""The aggregation rule of a block: one that can work with as many parts as there are, in buckets or not."""

from __future__ import annotations

import pytest
import torch

from peers.averaging.trust_rules import TrustRules
from protocols.aggregation import AGGREGATOR_NAMES


@pytest.mark.parametrize("aggregator", AGGREGATOR_NAMES)
@pytest.mark.parametrize("bucket", [1, 2, 3, 5])
def test_there_is_a_rule_for_any_number_of_parts(aggregator: str, bucket: int) -> None:
    for parts in range(1, 17):
        rule = TrustRules(aggregator=aggregator, bucket=bucket).aggregator_of(parts, b"plan")
        value_E = rule.aggregate([torch.full((3,), 2.0)] * parts, [1.0] * parts).value_E
        assert torch.allclose(value_E, torch.full((3,), 2.0))


@pytest.mark.parametrize("bucket", [1, 2, 3])
def test_a_rule_that_chooses_among_parts_leaves_no_sum_to_check_whatever_the_buckets(bucket: int) -> None:
    assert not TrustRules(aggregator="krum", bucket=bucket).vanishing
