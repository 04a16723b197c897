"""Whose word about its bandwidth counts for how much: claims, capped by what others have seen a member carry.

A round proves what a member's link carries at least, whatever it says of itself. In a group of n whose vectors take P bytes when they are
brought and R when they are returned, a member that reduces a share w sends (1 - w) P + (n - 1) w R bytes and gets (n - 1) w P + (1 - w) R,
in no more than the T seconds that the exchange took; the lesser counts (where both are S: (1 + (n - 2) w) S, `protocols.partition`). And it
sends parts to all reducers side by side, so by the time t when the last of its parts reached one of them, it had sent the others as much
each, or all of theirs. The larger of the two rates is what it has proven to that reducer: the first counts a reducer's own work, the second
is not held up by others that are slow. Members write into their joins what others have proven to them, and a plan believes a claim up to
`HEADROOM` times that: an honest member that is fast shows it within a few rounds, and one that claims a terabit gets the work of a link
twice as fast as its own. Everybody computes the same from the same joins.

Letters: n members of a group, P, R, S bytes of one encoded vector, T and t seconds of an exchange, w share of the vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from protocols.errors import RoundError
from protocols.ids import PeerId
from protocols.messages import Plan, SealedJoin
from protocols.partition import assign_blocks, blocks_that_fit

HEADROOM = Fraction(2)
"""How many times the bandwidth that a member has proven it may claim."""

ALIKE = Fraction(4, 5)
"""Bandwidths closer than that to each other are taken for equal."""

ALMOST = Fraction(19, 20)
"""Links that take this part of the time that the slowest does are full to the end, too."""

FREE_EPOCHS = 8
"""One epoch in so many, streams are not timed: whoever sends as fast as its link was may not notice that it has become faster."""

FREE_BYTES_PER_S = 50_000_000
"""Streams between links of 400 Mbit/s and more are not timed: there it is processors that rounds wait for."""

FILLED = Fraction(47, 50)
"""How much of the links timed streams fill. Measured bandwidth tends to be a few percent too high, and a link that is asked for more than
it carries loses packets, which costs more than a little room."""

GENEROUS = 8
GENEROUS_S = 30.0
UNKNOWN_BYTES_PER_S = 250_000
"""2 Mbit/s: what counts for a member that says nothing or less, where the question is how long to be patient."""

MIN_BYTES_PER_S = 1
"""A member that reduces at all is never believed to be slower: 0 would mean that it does not reduce."""


def believed_bandwidths(claims_bytes_per_s: Sequence[int], proven_bytes_per_s: Sequence[Sequence[int]]) -> list[int]:
    """The bandwidth that a plan counts on for each of its members.

    Of a member that somebody has seen, the claim counts up to `HEADROOM` times the median of what was seen (of an even number the lower of
    the two in the middle, so it takes a majority of observers to make a friend look faster). One that nobody has seen is believed as much
    as the member in the middle of the group claims (of an even number the higher).

    Members whose bandwidths differ by no more than measuring does count as equally fast: shares follow small differences closely.

    Args:
        claims_bytes_per_s: one per member; 0 for one that reduces nothing.
        proven_bytes_per_s: what each other member of the group that has seen this one saw it prove; its own word is not among them.

    Returns:
        One number per member, 0 where the claim is 0.
    """
    able = sorted(claim for claim in claims_bytes_per_s if claim)
    middle = able[len(able) // 2] if able else 0
    believed = []
    for claim, seen in zip(claims_bytes_per_s, proven_bytes_per_s, strict=True):
        cap = int(HEADROOM * _middle(seen)) if seen else middle
        believed.append(min(claim, max(cap, MIN_BYTES_PER_S)))
    return _evened(believed)


def _evened(bandwidths_bytes_per_s: Sequence[int]) -> list[int]:
    """From the fastest down, whoever is at least `ALIKE` as fast as the first of its class gets the mean of its class."""
    evened = [0] * len(bandwidths_bytes_per_s)
    left = sorted((i for i, speed in enumerate(bandwidths_bytes_per_s) if speed), key=lambda i: (-bandwidths_bytes_per_s[i], i))
    while left:
        alike = [i for i in left if bandwidths_bytes_per_s[i] >= ALIKE * bandwidths_bytes_per_s[left[0]]]
        mean = sum(bandwidths_bytes_per_s[i] for i in alike) // len(alike)
        for i in alike:
            evened[i] = mean
        left = left[len(alike) :]
    return evened


def reducer_bandwidths(joins: Sequence[SealedJoin]) -> list[int]:
    """`believed_bandwidths` of a group, from its joins, in their order."""
    return believed_bandwidths([join.join.bandwidth_bytes_per_s for join in joins], _seen(joins))


def _seen(joins: Sequence[SealedJoin]) -> list[list[int]]:
    """Of each member, what the others say that it has proven to them."""
    seen: dict[PeerId, list[int]] = {join.peer: [] for join in joins}
    for join in joins:
        for proven in join.join.proven:
            if proven.peer in seen and proven.peer != join.peer:
                seen[proven.peer].append(proven.bytes_per_s)
    return [seen[join.peer] for join in joins]


def _middle(seen: Sequence[int]) -> int:
    """The median, of an even number the lower of the two in the middle."""
    return sorted(seen)[(len(seen) - 1) // 2]


def assigned_reducers(joins: Sequence[SealedJoin], num_blocks: int, block_elems: int) -> tuple[int, ...]:
    """Reducer of each block in the plan that follows from a group's joins, as an index into them.

    Raises:
        RoundError: nobody can reduce, or those who can have not enough memory.
    """
    if len(joins) == 1:  # who is alone reduces for itself
        return (0,) * num_blocks
    if not any(join.join.bandwidth_bytes_per_s for join in joins):
        raise RoundError("nobody in the group can reduce for the others")
    try:
        return assign_blocks(num_blocks, reducer_bandwidths(joins), most_blocks(joins, num_blocks, block_elems))
    except ValueError as error:
        raise RoundError("the members of the group allow too little memory for the parts of the blocks that they reduce") from error


def most_blocks(joins: Sequence[SealedJoin], num_blocks: int, block_elems: int) -> list[int]:
    """How many blocks each member has memory for, counting all senders' parts as fp32: that is what any codec decodes to."""
    senders = sum(join.join.weight > 0 for join in joins)
    limits = [join.join.part_memory_bytes for join in joins]
    return [blocks_that_fit(limit, senders, block_elems) if limit else num_blocks for limit in limits]


def generous_s(plan: Plan, vector_bytes: int) -> float:
    """Longest time that an exchange of this plan may take by what its members claim, as long as nobody knows how long exchanges take.

    Members that say nothing about their links count as slow ones. It is eight times what links need, so that a wrong claim cuts nobody off.

    Args:
        plan: attempt 0 or a repair.
        vector_bytes: of one encoded vector.
    """
    claims = [max(member.join.bandwidth_bytes_per_s or UNKNOWN_BYTES_PER_S, UNKNOWN_BYTES_PER_S) for member in plan.members]
    slowest = max(_times(plan, claims)) / max(len(plan.reduce), 1)
    return GENEROUS_S + GENEROUS * vector_bytes * float(slowest)


def stream_rates(plan: Plan, me: int) -> dict[int, int]:
    """How fast a member sends to others in a plan's first attempt so that no link has to carry more than it can: bytes per second.

    What goes from i to j, i's parts of j's blocks and i's results, is V_ij; all that i sends, and j receives, V_i and V_j. With
    V_ij / max(V_i / b_i, V_j / b_j) for every pair, no member's sum exceeds its b, and the slowest link is full to the end; a little less
    than that goes (`FILLED`). b is what a member claims, or what it has proven if that is more: claiming too much costs nothing but the
    timing, and nobody else's word can slow a member down. Only links that somebody has seen count. Every `FREE_EPOCHS`-th epoch is free,
    so that links that have become faster are found out.

    Args:
        plan: its joins say what is known of links.
        me: who sends, as an index into the plan.

    Returns:
        Rate by index of the receiver; it is absent where there is no limit.
    """
    links = _timed_links(plan)
    if not links[me]:
        return {}
    times = _times(plan, links)
    blocks = Counter(task.member for task in plan.reduce)
    sends = plan.weights[me] > 0
    rates = {}
    for other, link in enumerate(links):
        moved = (blocks[other] if sends else 0) + blocks[me]
        if other != me and moved and link and min(links[me], link) < FREE_BYTES_PER_S:
            rates[other] = int(FILLED * moved / max(times[me], times[other]))
    return {other: rate for other, rate in rates.items() if rate}


def fills_its_link(plan: Plan, me: int) -> bool:
    """Whether a member's link is timed and to be full until the exchange ends, as no other link takes longer."""
    links = _timed_links(plan)
    if not 0 < links[me] < FREE_BYTES_PER_S:
        return False
    times = _times(plan, links)
    return times[me] >= ALMOST * max(times)


def _timed_links(plan: Plan) -> list[int]:
    """What each member's link carries, bytes per second; 0 where nobody has seen it, and of everybody where nothing is timed."""
    if plan.attempt or plan.epoch % FREE_EPOCHS == 0 or not any(member.join.proven for member in plan.members):
        return [0] * len(plan.members)
    seen = _seen(plan.members)
    return [max(member.join.bandwidth_bytes_per_s, _middle(seen[i])) if seen[i] else 0 for i, member in enumerate(plan.members)]


def _times(plan: Plan, links: Sequence[int]) -> list[Fraction]:
    """How long each link is busy, in blocks' bytes over its bandwidth; 0 where that is unknown."""
    blocks, num_blocks, n = Counter(task.member for task in plan.reduce), max(len(plan.reduce), 1), len(plan.members)
    loads = [num_blocks + max(n - 2, 0) * blocks[i] for i in range(n)]
    return [Fraction(load, link) if link else Fraction(0) for load, link in zip(loads, links, strict=True)]


@dataclass(frozen=True, slots=True)
class VectorBytes:
    """Length of one encoded vector: P as members bring it, R as reducers return it."""

    brought: int
    returned: int


def proven_by(plan: Plan, me: int, vector_bytes: VectorBytes, took_s: float, parts_in_s: Mapping[int, float]) -> dict[PeerId, int]:
    """What a first attempt that ended well proves to one member of every other's link, bytes per second each way.

    Args:
        plan: what was exchanged, all of it by everybody.
        me: to whom, as an index into the plan.
        vector_bytes: P and R.
        took_s: T; above 0.
        parts_in_s: t by index into the plan, of the members whose parts came to us; above 0.
    """
    brought, returned = vector_bytes.brought, vector_bytes.returned
    present = [i for i in range(len(plan.members)) if i not in plan.absent]
    blocks = Counter(task.member for task in plan.reduce)
    shares = {i: Fraction(blocks[i], max(len(plan.reduce), 1)) for i in present}
    proven = {}
    for i in present:
        if i != me:
            own, others = 1 - shares[i], (len(present) - 1) * shares[i]
            up, down = brought * own + returned * others, brought * others + returned * own
            rate = min(up, down) / Fraction(took_s)
            if i in parts_in_s:
                sent = sum((min(shares[me], shares[other]) for other in present if other != i), Fraction(0))
                rate = max(rate, brought * sent / Fraction(parts_in_s[i]))
            proven[plan.members[i].peer] = int(rate)
    return proven
