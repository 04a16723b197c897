"""The speed that a member tells the others."""

from __future__ import annotations

import pytest

from swarm.optim.meter import Meter


def test_what_came_before_the_first_micro_batch_is_forgotten_with_the_second() -> None:
    now_s = [0.0]
    meter = Meter(lambda: now_s[0])
    assert meter.samples_per_s == 0.0
    now_s[0] += 100.0  # meeting the others, and finding the micro-batch
    meter.add(4, 2.0)
    assert meter.samples_per_s > 0, "others count nothing of a member without a speed"
    for _ in range(2):
        now_s[0] += 0.5
        meter.add(4, 3.0)
        assert meter.samples_per_s == 8.0
    now_s[0] += 1.0
    meter.add(4, None)
    assert meter.samples_per_s == pytest.approx(4 / (0.5 + 0.2 * 0.5))
    now_s[0] += 1000.0
    meter.resume()
    now_s[0] += 0.6
    meter.add(4, 4.0)
    assert meter.samples_per_s == pytest.approx(4 / 0.6)
    assert meter.loss == 3.0
