"""What was recorded of a soak, and whether it is good. Pure.

The rule. Elders live through the whole soak; the first quarter of it is warm-up (allocators, caches, first connections) and not judged.
For each elder and each quantity a line is fitted by Theil and Sen (the median slope between all pairs of samples, which a few spikes do
not move), and its rise over the judged time must not exceed `ALLOWED_RISE` of the quantity's median, or `ALLOWED_COUNT` for small counts,
of which one more or less is many percent.

Rounds: between two epochs of the swarm never more than `MAX_PAUSE_S`; a member that is up for a while, and that nobody has stopped lately,
never more than `MAX_ALONE_S` without a round of its own. Members that close the same epoch together hold the same bytes.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

ALLOWED_RISE = 0.05
ALLOWED_COUNT = 5.0
WARM_UP_SHARE = 0.25
MAX_PAUSE_S = 15.0
MAX_ALONE_S = 30.0
MAX_PAIRED_SAMPLES = 400
"""Of more samples every other (third, ...) is taken: the number of pairs grows with the square."""

QUANTITIES = ("rss_mib", "daemon_rss_mib", "fds", "daemon_fds", "tasks", "threads")
_COUNTS = frozenset({"fds", "daemon_fds", "tasks", "threads"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one moment.

    Args:
        at_s: since the soak began.
        rank: which member.
        epoch: that it holds.
        values: by name, see `QUANTITIES`.
    """

    at_s: float
    rank: int
    epoch: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that befell a member: "start", "kill", "cut", "resume"."""

    at_s: float
    what: str
    rank: int


@dataclass(slots=True)
class Record:
    """All that was seen.

    Args:
        elders: ranks that live through the whole soak.
        samples: of all members, in the order of time.
        happenings: likewise.
        epoch_at_s: when each epoch was first seen to be over.
        digests: epoch -> digest of its result -> ranks that hold it.
        alone_s: rank -> longest time without a round, of members that should have had one.
        rounds: how rounds ended, over all members.
        crashes: last words of members that ended by themselves.
        left: processes that were still there at the end.
    """

    elders: frozenset[int]
    samples: list[Sample] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)
    epoch_at_s: dict[int, float] = field(default_factory=dict)
    digests: dict[int, dict[str, set[int]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))
    alone_s: dict[int, float] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    crashes: list[str] = field(default_factory=list)
    left: list[int] = field(default_factory=list)

    def count(self, what: str) -> int:
        """How often something happened."""
        return sum(each.what == what for each in self.happenings)


@dataclass(frozen=True, slots=True)
class Trend:
    """One quantity of one elder.

    Args:
        rank, quantity: of whom, what.
        median: over the judged time.
        rise: of the fitted line over the judged time.
        allowed: the most that it may be.
    """

    rank: int
    quantity: str
    median: float
    rise: float
    allowed: float

    @property
    def flat(self) -> bool:
        """Whether it does not rise."""
        return self.rise <= self.allowed


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil and Sen: median of the slopes between all pairs; 0 for fewer than two different times."""
    step = -(-len(points) // MAX_PAIRED_SAMPLES) or 1
    chosen = points[::step]
    slopes = [(y2 - y1) / (x2 - x1) for i, (x1, y1) in enumerate(chosen) for x2, y2 in chosen[i + 1 :] if x2 > x1]
    return statistics.median(slopes) if slopes else 0.0


def trends(record: Record) -> list[Trend]:
    """Every quantity of every elder after the warm-up."""
    if not record.samples:
        return []
    end_s = record.samples[-1].at_s
    begin_s = end_s * WARM_UP_SHARE
    found = []
    for rank in sorted(record.elders):
        judged = [sample for sample in record.samples if sample.rank == rank and sample.at_s >= begin_s]
        for quantity in QUANTITIES:
            points = [(sample.at_s, sample.values[quantity]) for sample in judged if quantity in sample.values]
            if len(points) < 2:
                continue
            median = statistics.median(value for _, value in points)
            allowed = max(ALLOWED_RISE * median, ALLOWED_COUNT if quantity in _COUNTS else 0.0)
            found.append(Trend(rank, quantity, median, slope(points) * (end_s - begin_s), allowed))
    return found


def longest_pause_s(epoch_at_s: Iterable[float], end_s: float) -> float:
    """Longest time without a new epoch, from the first one to the end."""
    times = sorted(epoch_at_s)
    if not times:
        return end_s
    return max(later - earlier for earlier, later in zip(times, [*times[1:], end_s], strict=True))


def unequal_epochs(record: Record) -> list[int]:
    """Epochs whose results differ between members."""
    return sorted(epoch for epoch, digests in record.digests.items() if len(digests) > 1)


def complaints(record: Record) -> list[str]:
    """What is not as it should be, one sentence each; empty if all is well."""
    found = [
        f"member {trend.rank}: {trend.quantity} rose by {trend.rise:.1f} (median {trend.median:.1f}, allowed {trend.allowed:.1f})"
        for trend in trends(record)
        if not trend.flat
    ]
    end_s = record.samples[-1].at_s if record.samples else 0.0
    if not record.samples:
        found.append("nothing was recorded")
    if (pause_s := longest_pause_s(record.epoch_at_s.values(), end_s)) > MAX_PAUSE_S:
        found.append(f"no epoch ended for {pause_s:.1f} s")
    found += [f"member {rank} had no round for {value:.1f} s" for rank, value in record.alone_s.items() if value > MAX_ALONE_S]
    if unequal := unequal_epochs(record):
        found.append(f"members hold different results of {len(unequal)} epochs, first of {unequal[0]}")
    found += [f"a member ended by itself: {words}" for words in record.crashes]
    if record.left:
        found.append(f"processes were left at the end: {record.left}")
    return found


def summary(record: Record) -> dict[str, object]:
    """What the soak showed, for JSON."""
    worst: dict[str, dict[str, float]] = {}
    for trend in trends(record):
        known = worst.get(trend.quantity)
        if known is None or trend.rise / trend.allowed > known["rise"] / known["allowed"]:
            figures = {"median": trend.median, "rise": trend.rise, "allowed": trend.allowed}
            worst[trend.quantity] = {name: round(value, 2) for name, value in figures.items()}
    end_s = record.samples[-1].at_s if record.samples else 0.0
    found = complaints(record)
    return {
        "passed": not found,
        "complaints": found,
        "minutes": round(end_s / 60, 2),
        "epochs": len(record.epoch_at_s),
        "rounds": record.rounds,
        "kills": record.count("kill"),
        "starts": record.count("start"),
        "cuts": record.count("cut"),
        "trends": worst,
        "longest_pause_s": round(longest_pause_s(record.epoch_at_s.values(), end_s), 2),
        "longest_alone_s": round(max(record.alone_s.values(), default=0.0), 2),
        "unequal_epochs": len(unequal_epochs(record)),
        "crashes": len(record.crashes),
        "left_processes": len(record.left),
    }
