"""Who reduces which block: shares of the vector that finish together, given everyone's bandwidth and memory.

A member i with share w_i of n members uploads its other shares (1 - w_i) and serves its own to the n - 1 others, so it moves
1 + (n - 2) w_i vectors each way, in (1 + (n - 2) w_i) / b_i seconds per vector byte. Filling up like water makes the slowest reducer as
quick as it can be: all reducers finish at one time xi, whoever cannot have finished by then without reducing anything reduces nothing, and
whoever would need more memory than it states gets what fits. Without memory limits this is the closed form for the linear programme of
DeDLOC (arXiv 2106.10207 §3.2): xi = (n - 2 + k) / (b_1 + .. + b_k) for the k fastest, w_i = (xi b_i - 1) / (n - 2). Every member computes
the same integers from the same plan, in O(n log n) and one sort of the blocks.

Letters: n members, B blocks, b_i bytes per second, w_i share, c_i blocks of one member.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

PLACE_BITS = 48
"""Precision of a block's place in the dealing order. Two members closer than that are taken in member order."""


def reducer_shares(bandwidths_bytes_per_s: Sequence[int | None], most_shares: Sequence[Fraction] | None = None) -> list[Fraction]:
    """Share of the vector that each member reduces; shares sum to 1.

    Args:
        bandwidths_bytes_per_s: one per member in plan order; 0 for a member that reduces nothing (client-only), None for one that nobody
            knows anything about: it counts as the mean of the others.
        most_shares: largest share that each member has memory for; no limits if None.

    Returns:
        One exact fraction per member: rational arithmetic, so that no two machines round differently.

    Raises:
        ValueError: nobody can reduce, or memory does not suffice.
    """
    speeds = _known(bandwidths_bytes_per_s)
    n = len(speeds)
    most = [min(Fraction(1), limit) for limit in most_shares] if most_shares is not None else [Fraction(1)] * n
    able = [i for i in range(n) if speeds[i] > 0 and most[i] > 0]
    if not able:
        raise ValueError("no member can reduce: all bandwidths are zero")
    if sum(most[i] for i in able) < 1:
        raise ValueError("the members that can reduce have not enough memory for the vector")
    if n <= 2:  # the load is 1 whatever the split: as even as memory lets it be
        return _level([1] * n, able, most, weight=1, start=0)
    return _level(speeds, able, most, weight=n - 2, start=1)


def _level(speeds: Sequence[int], able: Sequence[int], most: Sequence[Fraction], *, weight: int, start: int) -> list[Fraction]:
    """The water level: w_i = (level * speed_i - start) / weight, within 0 and `most`, such that they sum to 1.

    Each member begins to fill up at one level and is full at another; between two such events the sum grows linearly.
    """
    begins = [(Fraction(start, speeds[i]), 0, i) for i in able]
    fills = [((start + weight * most[i]) / speeds[i], 1, i) for i in able]
    rising_speed, rising, full, level = 0, 0, Fraction(0), Fraction(0)
    for event_level, kind, i in sorted([*begins, *fills]):
        if rising_speed:
            level = (weight * (1 - full) + start * rising) / rising_speed
            if level <= event_level:
                break
        level = event_level
        rising_speed += -speeds[i] if kind else speeds[i]
        rising += -1 if kind else 1
        full += most[i] if kind else 0
    shares = [Fraction(0)] * len(speeds)
    for i in able:
        shares[i] = min(max((level * speeds[i] - start) / weight, Fraction(0)), most[i])
    return shares


def block_counts(num_blocks: int, bandwidths_bytes_per_s: Sequence[int | None], most_blocks: Sequence[int] | None = None) -> list[int]:
    """How many whole blocks each member reduces, such that the slowest member is as quick as whole blocks allow.

    Everybody gets its share rounded down, which no best split undercuts; the few blocks left go one by one to whoever then finishes first
    (ties: fewer blocks, then the earlier member). As a member's time grows with its blocks, no other way of dealing is quicker.

    Args:
        num_blocks: B.
        bandwidths_bytes_per_s: as for `reducer_shares`.
        most_blocks: how many blocks each member has memory for (`blocks_that_fit`); no limits if None.

    Raises:
        ValueError: nobody can reduce, memory does not suffice, or `num_blocks` is negative.
    """
    if num_blocks < 0:
        raise ValueError("a negative number of blocks")
    speeds, n = _known(bandwidths_bytes_per_s), len(bandwidths_bytes_per_s)
    most = [min(limit, num_blocks) for limit in most_blocks] if most_blocks is not None else [num_blocks] * n
    limits = [Fraction(limit, num_blocks) for limit in most] if num_blocks and most_blocks is not None else None
    shares = reducer_shares(speeds, limits)
    counts = [int(share * num_blocks) for share in shares]

    def finish(i: int) -> tuple[Fraction, int, int]:
        """When it would finish with one block more, in times of the whole vector over a link of speed B."""
        load = num_blocks + max(n - 2, 0) * (counts[i] + 1)
        return Fraction(load, speeds[i]) if n > 2 else Fraction(0), counts[i], i

    first = [finish(i) for i in range(n) if speeds[i] > 0 and counts[i] < most[i]]
    heapq.heapify(first)
    for _ in range(num_blocks - sum(counts)):
        i = heapq.heappop(first)[2]
        counts[i] += 1
        if counts[i] < most[i]:
            heapq.heappush(first, finish(i))
    return counts


def assign_blocks(
    num_blocks: int, bandwidths_bytes_per_s: Sequence[int | None], most_blocks: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Reducer of each block, as an index into the plan's members: `block_counts`, dealt so that every reducer's blocks are spread evenly
    over the vector. Members that send in block order then keep all reducers busy all the time.

    Raises:
        ValueError: as `block_counts`.
    """
    return _dealt(num_blocks, tuple(bandwidths_bytes_per_s), None if most_blocks is None else tuple(most_blocks))


@lru_cache(maxsize=64)
def _dealt(num_blocks: int, bandwidths_bytes_per_s: tuple[int | None, ...], most_blocks: tuple[int, ...] | None) -> tuple[int, ...]:
    """Remembered: whoever tries again, and all members of a simulated group, deal the same blocks."""
    places = []
    for i, count in enumerate(block_counts(num_blocks, bandwidths_bytes_per_s, most_blocks)):
        places += [(((2 * number + 1) << PLACE_BITS) // (2 * count), i) for number in range(count)]
    return tuple(i for _, i in sorted(places))


def blocks_that_fit(memory_bytes: int, senders: int, block_elems: int) -> int:
    """How many blocks a reducer can hold at worst: the decoded fp32 parts of all senders, if one of them is late with everything."""
    return memory_bytes // (max(senders, 1) * block_elems * 4)


def least_time_s(vector_bytes: int, links_bytes_per_s: Sequence[int]) -> float:
    """What no averaging round can undercut, given each member's link: max(xi, 1 / b_min) vectors, in seconds.

    The slowest reducer needs xi per byte of the vector; a member that reduces nothing still sends and receives one vector. For n equal
    links this is 2 (n - 1) / n vectors.

    Args:
        vector_bytes: S, encoded size of one member's vector.
        links_bytes_per_s: speed of each member's link in each direction; all above 0.
    """
    n = len(links_bytes_per_s)
    shares = reducer_shares(links_bytes_per_s)
    return float(max(vector_bytes * (1 + (n - 2) * share) / link for share, link in zip(shares, links_bytes_per_s, strict=True)))


def _known(bandwidths_bytes_per_s: Sequence[int | None]) -> list[int]:
    """With the mean in the place of what nobody knows."""
    known = [speed for speed in bandwidths_bytes_per_s if speed]
    mean = max(1, sum(known) // len(known)) if known else 1
    return [mean if speed is None else speed for speed in bandwidths_bytes_per_s]
