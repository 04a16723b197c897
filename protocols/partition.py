"""Who reduces which block: shares of the vector that finish together, given everyone's bandwidth.

A member i with share w_i of n members uploads its other shares (1 - w_i) and serves its own to the n - 1 others, so it moves
1 + (n - 2) w_i vectors each way; minimising the slowest of (1 + (n - 2) w_i) / b_i over the reducers has the closed form below
(the linear programme of DeDLOC, arXiv 2106.10207 §3.2, solved by sorting). Every member computes the same integers from the same plan.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from fractions import Fraction


def reducer_shares(bandwidths_bytes_per_s: Sequence[int]) -> list[Fraction]:
    """Share of the vector that each member reduces; shares sum to 1.

    Args:
        bandwidths_bytes_per_s: one per member in plan order; 0 for a member that reduces nothing (client-only).

    Returns:
        One exact fraction per member: rational arithmetic, so that no two machines round differently.

    Raises:
        ValueError: nobody can reduce.
    """
    n = len(bandwidths_bytes_per_s)
    able = sorted((i for i in range(n) if bandwidths_bytes_per_s[i] > 0), key=lambda i: (-bandwidths_bytes_per_s[i], i))
    if not able:
        raise ValueError("no member can reduce: all bandwidths are zero")
    shares = [Fraction(0)] * n
    if n <= 2:  # the load is 1 whatever the split
        for i in able:
            shares[i] = Fraction(1, len(able))
        return shares
    for k in range(len(able), 0, -1):
        fastest = able[:k]
        slowest_finish = Fraction(n - 2 + k, sum(bandwidths_bytes_per_s[i] for i in fastest))
        candidate = [(slowest_finish * bandwidths_bytes_per_s[i] - 1) / (n - 2) for i in fastest]
        if min(candidate) >= 0:
            for i, share in zip(fastest, candidate, strict=True):
                shares[i] = share
            break
    return shares


def assign_blocks(num_blocks: int, bandwidths_bytes_per_s: Sequence[int]) -> tuple[int, ...]:
    """Reducer of each block, as an index into the plan's members.

    Whole blocks are dealt one by one to the member furthest below its share (largest share / (dealt + 1), ties to the earlier member:
    the Hagenbach-Bischoff rule), which also interleaves reducers so that no one's uplink is idle while another's is flooded.

    Raises:
        ValueError: nobody can reduce, or `num_blocks` is negative.
    """
    if num_blocks < 0:
        raise ValueError("a negative number of blocks")
    shares = reducer_shares(bandwidths_bytes_per_s)
    dealt = [0] * len(shares)
    furthest = [(-share, i) for i, share in enumerate(shares) if share]
    heapq.heapify(furthest)
    owners: list[int] = []
    for _ in range(num_blocks):
        owner = furthest[0][1]
        dealt[owner] += 1
        owners.append(owner)
        heapq.heapreplace(furthest, (-shares[owner] / (dealt[owner] + 1), owner))
    return tuple(owners)
