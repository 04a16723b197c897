"""The estimate of our own link from scripted traffic, and what is remembered of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from peers.bandwidth import FALL, FIRST_GUESS_BYTES_PER_S, MAX_SAMPLES, RISE, ROOM, Bandwidth, BandwidthMeter, Sampler
from peers.interfaces import Traffic
from protocols.bandwidth import VectorBytes
from protocols.ids import Epoch
from protocols.messages import MAX_PROVEN, Join
from tests.helpers.round_values import STATE, join_of, peer, plan_of

MB = 10**6
LONG = VectorBytes(16 * MB, 16 * MB)


def exchange(meter: BandwidthMeter, seconds: float, moved: Callable[[float], tuple[float, float]], every_s: float = 0.05) -> None:
    """One exchange in which `moved(t)` gives the bytes delivered and received by then."""
    sampler = Sampler(0.0, Traffic())
    for step in range(1, round(seconds / every_s)):
        delivered, received = moved(step * every_s)
        sampler.sample(step * every_s, Traffic(0, int(received), int(delivered)))
    delivered, received = moved(seconds)
    meter.note(sampler.rate(seconds, Traffic(0, int(received), int(delivered))))


def steady(up: float, down: float) -> Callable[[float], tuple[float, float]]:
    """A link at a constant rate."""
    return lambda t: (up * t, down * t)


def test_a_modest_guess_comes_first() -> None:
    assert BandwidthMeter().estimate_bytes_per_s == FIRST_GUESS_BYTES_PER_S
    assert BandwidthMeter(7).estimate_bytes_per_s == 7


def test_the_first_measurement_replaces_the_guess_upwards_and_downwards() -> None:
    for rate in (FIRST_GUESS_BYTES_PER_S * 40, FIRST_GUESS_BYTES_PER_S // 4):
        meter = BandwidthMeter()
        exchange(meter, 5.0, steady(rate, rate))
        assert meter.estimate_bytes_per_s == pytest.approx(rate, rel=0.01)


def test_the_slower_direction_decides() -> None:
    meter = BandwidthMeter()
    exchange(meter, 5.0, steady(2 * MB, 12 * MB))
    assert meter.estimate_bytes_per_s == pytest.approx(2 * MB, rel=0.01)


def test_waits_do_not_count() -> None:
    meter = BandwidthMeter()
    exchange(meter, 10.0, lambda t: (10 * MB * min(t, 1.0) + 10 * MB * max(t - 9.0, 0.0),) * 2)
    assert meter.estimate_bytes_per_s == pytest.approx(10 * MB, rel=0.05)


def test_a_short_burst_counts_for_little() -> None:
    meter = BandwidthMeter()
    exchange(meter, 10.0, lambda t: (1 * MB * t + (0.5 * MB if t > 5 else 0),) * 2)
    assert meter.estimate_bytes_per_s < 1.7 * MB


def test_too_little_traffic_says_nothing() -> None:
    meter = BandwidthMeter()
    exchange(meter, 0.1, steady(1 * MB, 1 * MB), every_s=0.01)
    assert meter.estimate_bytes_per_s == FIRST_GUESS_BYTES_PER_S
    meter.note(Sampler(0.0, Traffic()).rate(0.0, Traffic(0, 10 * MB, 10 * MB)))
    assert meter.estimate_bytes_per_s == FIRST_GUESS_BYTES_PER_S


def test_the_estimate_rises_quickly_and_falls_slowly() -> None:
    meter = BandwidthMeter()
    exchange(meter, 5.0, steady(4 * MB, 4 * MB))
    exchange(meter, 5.0, steady(8 * MB, 8 * MB))
    assert meter.estimate_bytes_per_s == pytest.approx(4 * MB * (1 + RISE), rel=0.01)
    exchange(meter, 5.0, steady(2 * MB, 2 * MB))
    assert meter.estimate_bytes_per_s == pytest.approx(6 * MB - FALL * 4 * MB, rel=0.01)


def test_a_link_that_was_to_be_full_carries_hardly_more_than_on_average() -> None:
    sampler = Sampler(0.0, Traffic())
    for step in range(1, 41):
        moved = int(step * 0.05 * 8 * MB) if step < 20 else 2 * 8 * MB
        sampler.sample(step * 0.05, Traffic(0, moved, moved))
    end = Traffic(0, 16 * MB, 16 * MB)
    assert sampler.rate(2.0, end, full=True) == pytest.approx(ROOM * 8 * MB)
    assert (sampler.rate(2.0, end) or 0.0) > 2 * 8 * MB


def test_a_long_exchange_keeps_few_samples() -> None:
    sampler = Sampler(0.0, Traffic())
    for step in range(1, 20 * MAX_SAMPLES):
        sampler.sample(step * 0.02, Traffic(0, step * 10**5, step * 10**5))
        assert len(sampler._samples) <= MAX_SAMPLES
    end = 20 * MAX_SAMPLES
    assert sampler.rate(end * 0.02, Traffic(0, end * 10**5, end * 10**5)) == pytest.approx(5 * MB, rel=0.01)


def test_a_join_claims_what_was_measured_up_to_what_the_user_allows() -> None:
    bandwidth = Bandwidth(first_guess_bytes_per_s=1000)
    for allowed, claimed in ((5000, 1000), (400, 400), (0, 0)):
        join = bandwidth.offered(Join(Epoch(1), STATE, 1.0, allowed), frozenset())
        assert (join.bandwidth_bytes_per_s, join.proven) == (claimed, ())


def test_what_others_proved_fades_slowly_and_the_oldest_are_forgotten() -> None:
    bandwidth, plan = Bandwidth(), plan_of([1.0, 1.0])
    other = plan.members[1].peer
    bandwidth.round_done(plan, 0, LONG, 2.0, {})
    assert [(seen.peer, seen.bytes_per_s) for seen in bandwidth.proven] == [(other, 8 * MB)]
    bandwidth.round_done(plan, 0, LONG, 1.0, {})
    assert bandwidth.proven[0].bytes_per_s == 16 * MB
    bandwidth.round_done(plan, 0, LONG, 16.0, {})
    assert bandwidth.proven[0].bytes_per_s == pytest.approx(16 * MB - FALL * 15 * MB, abs=1)
    bandwidth.round_done(plan, 0, LONG, 0.0, {})  # no time at all proves nothing
    for number in range(MAX_PROVEN + 5):
        met = replace(plan, members=(plan.members[0], join_of(peer(2 + number))))
        bandwidth.round_done(met, 0, LONG, 1.0, {})
    bandwidth.round_done(plan, 0, VectorBytes(1000, 1000), 1.0, {})  # so little proves nothing either
    assert len(bandwidth.proven) == MAX_PROVEN
    assert other not in {seen.peer for seen in bandwidth.proven}


def test_a_guess_counts_until_a_round_was_measured() -> None:
    meter = BandwidthMeter()
    assert meter.measured_bytes_per_s is None
    meter.guess(3e6)
    assert meter.estimate_bytes_per_s == 3_000_000
    assert meter.measured_bytes_per_s is None
    meter.note(1e6)
    assert meter.estimate_bytes_per_s == meter.measured_bytes_per_s == 1_000_000, "the first round replaces it as a whole"
    meter.guess(9e9)
    assert meter.estimate_bytes_per_s == 1_000_000
    other = BandwidthMeter()
    other.guess(0.0)
    assert other.estimate_bytes_per_s == 1


def test_a_download_shows_how_fast_bytes_come_in() -> None:
    traffic = Traffic()
    sampler = Sampler(0.0, traffic)
    for tenth in range(1, 41):
        traffic.received_bytes += 200_000
        sampler.sample(tenth / 10, traffic)
    assert sampler.received_rate(4.0, traffic) == pytest.approx(2e6, rel=0.05)
    assert Sampler(0.0, Traffic()).received_rate(1.0, Traffic()) is None
