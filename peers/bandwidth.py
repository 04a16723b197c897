"""What our own link carries, and what we saw others' carry: measured in rounds, where links are busy anyway.

Bandwidth is what goes through while there is something to send. A round has waits, so its average says too little; buffers take and give
megabytes at once, so a moment says too much. What counts is the best stretch that holds a quarter of the round's traffic. Sent bytes count
when the other side has read them. The slower direction decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

from peers.interfaces import Traffic
from protocols.bandwidth import VectorBytes, proven_by
from protocols.ids import PeerId
from protocols.link_figures import steady_rate
from protocols.messages import MAX_BANDWIDTH_BYTES_PER_S, MAX_PROVEN, Join, Plan, Proven

FIRST_GUESS_BYTES_PER_S = 2_500_000
"""20 Mbit/s: claimed until the first round has been measured."""

STRETCH = 8
STRETCH_S = 0.4
"""A stretch holds at least this part of what a round moved and lasts at least this part of the round, or so many seconds if that is less:
long enough to be sustained, short enough to leave out the waits."""

MIN_BYTES = 2**20
"""A round that moved less says nothing: it was over before the link was full."""

ROOM = 9 / 8
"""What a full link carries at most, as a multiple of its average: timed streams leave a little room, and begin and end slowly."""

RISE = 1 / 2
SINK = 1 / 4
FALL = 1 / 16
NEAR = 4 / 5
"""How much of the gap to a round's measurement the estimate goes. Up in a few rounds, so that one lucky stretch does not count for much.
Down as quickly if the round measured about the same (`NEAR` the estimate), but slowly if it was far below: then it was probably slow
for others' sake."""

MAX_SAMPLES = 512
MIN_INTERVAL_S = 0.01


@dataclass(frozen=True, slots=True)
class _Sample:
    time_s: float
    delivered_bytes: int
    received_bytes: int


class Sampler:
    """What our link carries during one exchange. Times are those of the event loop.

    Args:
        now_s: when it begins.
        traffic: totals by then.
    """

    def __init__(self, now_s: float, traffic: Traffic) -> None:
        self._samples = [_Sample(now_s, traffic.delivered_bytes, traffic.received_bytes)]
        self._interval_s = MIN_INTERVAL_S

    def sample(self, now_s: float, traffic: Traffic) -> None:
        """Something has been sent or has come. Cheap; memory stays bounded however long the exchange lasts."""
        if now_s - self._samples[-1].time_s < self._interval_s:
            return
        self._samples.append(_Sample(now_s, traffic.delivered_bytes, traffic.received_bytes))
        if len(self._samples) >= MAX_SAMPLES:
            self._samples = self._samples[::2]
            self._interval_s *= 2

    def received_rate(self, now_s: float, traffic: Traffic) -> float | None:
        """Bytes per second that came in, by `protocols.link_figures.steady_rate`, now that a download is over."""
        samples = [*self._samples, _Sample(now_s, traffic.delivered_bytes, traffic.received_bytes)]
        return steady_rate([sample.time_s for sample in samples], [sample.received_bytes for sample in samples])

    def rate(self, now_s: float, traffic: Traffic, *, full: bool = False) -> float | None:
        """Bytes per second of the slower direction, now that the exchange is over; None if it moved too little.

        Args:
            now_s: when it is over.
            traffic: totals by now.
            full: the link was to be as full as timed streams fill it, all the time: then it carries hardly more than it did on average,
                however quick the best stretch was. On a busy machine that may be what had queued up somewhere.
        """
        samples = [*self._samples, _Sample(now_s, traffic.delivered_bytes, traffic.received_bytes)]
        times_s = [sample.time_s for sample in samples]
        rates = (
            _best_rate(times_s, [sample.delivered_bytes for sample in samples]),
            _best_rate(times_s, [sample.received_bytes for sample in samples]),
        )
        best = min((rate for rate in rates if rate is not None), default=None)
        if best is None or not full:
            return best
        moved_bytes = min(samples[-1].delivered_bytes - samples[0].delivered_bytes, samples[-1].received_bytes - samples[0].received_bytes)
        return min(best, ROOM * moved_bytes / (now_s - samples[0].time_s))


class BandwidthMeter:
    """Estimates the bandwidth of our own link.

    Args:
        first_guess_bytes_per_s: the estimate before anything was measured.
    """

    def __init__(self, first_guess_bytes_per_s: int = FIRST_GUESS_BYTES_PER_S) -> None:
        self._estimate_bytes_per_s = first_guess_bytes_per_s
        self._measured = False

    @property
    def estimate_bytes_per_s(self) -> int:
        """What our link carries in its slower direction, as far as we know; above 0."""
        return self._estimate_bytes_per_s

    @property
    def measured_bytes_per_s(self) -> int | None:
        """The estimate, once a round was measured."""
        return self._estimate_bytes_per_s if self._measured else None

    def guess(self, rate_bytes_per_s: float) -> None:
        """A better first guess; nothing happens once a round was measured."""
        if not self._measured:
            self._estimate_bytes_per_s = min(max(1, int(rate_bytes_per_s)), MAX_BANDWIDTH_BYTES_PER_S)

    def note(self, rate_bytes_per_s: float | None) -> None:
        """An exchange has measured so much; nothing happens if it could not."""
        if rate_bytes_per_s is None:
            return
        before = self._estimate_bytes_per_s if self._measured else rate_bytes_per_s
        down = SINK if rate_bytes_per_s >= NEAR * before else FALL
        after = before + (RISE if rate_bytes_per_s > before else down) * (rate_bytes_per_s - before)
        self._measured = True
        self._estimate_bytes_per_s = min(max(1, int(after)), MAX_BANDWIDTH_BYTES_PER_S)


def _best_rate(times_s: list[float], totals_bytes: list[int]) -> float | None:
    """Bytes per second in the quickest stretch that holds a `STRETCH`-th of all bytes.

    Returns:
        None if too little was moved, or in no time at all.
    """
    moved = totals_bytes[-1] - totals_bytes[0]
    if moved < MIN_BYTES:
        return None
    least_s = min(STRETCH_S, (times_s[-1] - times_s[0]) / STRETCH)

    def is_stretch(first: int, last: int) -> bool:
        return totals_bytes[last] - totals_bytes[first] >= moved / STRETCH and times_s[last] - times_s[first] >= least_s

    best, first = None, 0
    for last in range(len(times_s)):
        while first + 1 < last and is_stretch(first + 1, last):
            first += 1
        if is_stretch(first, last) and times_s[last] > times_s[first]:
            best = max(best or 0.0, (totals_bytes[last] - totals_bytes[first]) / (times_s[last] - times_s[first]))
    return best


class Bandwidth:
    """A member's knowledge of links: its own by measurement, the others' by what rounds proved.

    Args:
        first_guess_bytes_per_s: claimed before anything was measured.
    """

    def __init__(self, first_guess_bytes_per_s: int = FIRST_GUESS_BYTES_PER_S) -> None:
        self.meter = BandwidthMeter(first_guess_bytes_per_s)
        self._proven: dict[PeerId, float] = {}

    def offered(self, join: Join, group: Set[PeerId]) -> Join:
        """A join with what we know by now.

        Args:
            join: its bandwidth is the most that the user allows; 0 if we are not to reduce.
            group: whom it is for; about others we say nothing.
        """
        claim = min(self.meter.estimate_bytes_per_s, join.bandwidth_bytes_per_s)
        return replace(join, bandwidth_bytes_per_s=claim, proven=tuple(seen for seen in self.proven if seen.peer in group))

    @property
    def proven(self) -> tuple[Proven, ...]:
        """What others have proven to us, of the `MAX_PROVEN` that we met last."""
        return tuple(Proven(peer, min(max(int(rate), 1), MAX_BANDWIDTH_BYTES_PER_S)) for peer, rate in self._proven.items())

    def round_done(self, plan: Plan, me: int, vector_bytes: VectorBytes, took_s: float, parts_in_s: Mapping[int, float]) -> None:
        """Every block of a first attempt has come: so much has each of its members proven (`protocols.bandwidth.proven_by`).

        A round may be slow for others' sake, so what was proven before fades slowly. One that moves little is over before links are full.
        """
        if vector_bytes.brought + vector_bytes.returned < 2 * MIN_BYTES or min([took_s, *parts_in_s.values()]) <= 0:
            return
        for peer, rate in proven_by(plan, me, vector_bytes, took_s, parts_in_s).items():
            before = self._proven.pop(peer, 0.0)
            self._proven[peer] = max(float(rate), before - FALL * (before - rate))  # put last: the oldest go first
        while len(self._proven) > MAX_PROVEN:
            del self._proven[next(iter(self._proven))]
