"""Bytes of one averaging epoch, by member: the codec's exact lengths, the butterfly's arithmetic, and what agreeing takes.

In a group of n, a member that reduces S_i of an encoded vector of S bytes sends S - S_i to other reducers if it brings a contribution, and
its n - 1 results of S_i to all others; it gets as many S_i as others bring contributions, and S - S_i of results. Results may have another
S. In the rounds after the first, whoever shared a cell's line brings the same vector, and one of them sends it.

What agreeing takes was measured: members send joins and reports to the group's leader, which sends the plan and the commit to everybody; in
a verified round each sends its statements to all others, and the leader all of them to all.

Letters: n members of a group, B blocks, S bytes of one encoded vector.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from protocols.codecs import codec_named
from protocols.grid import grid_for
from protocols.layout import Blocks
from protocols.partition import block_counts

_FRAME_BYTES = 24
_HASH_BYTES = 32
_JOIN_BYTES = 200
_STATEMENT_BYTES = 800
_RELAYED_BYTES = 700
_RELAYED_BYTES_PER_BLOCK = 18
_ALIKE_BYTES_PER_S = 1_000_000
"""All links are alike here, and shares depend on nothing but their ratios."""


@dataclass(frozen=True, slots=True, order=True)
class Line:
    """A group of one round.

    Args:
        dialable, clients: its members.
        senders: how many bring a contribution that nobody before them brings.
        helpers: how many bring none, as they compute nothing.
    """

    dialable: int
    clients: int
    senders: int
    helpers: int = 0

    @property
    def members(self) -> int:
        """How many: n."""
        return self.dialable + self.clients


@dataclass(frozen=True, slots=True)
class GroupTraffic:
    """Payload and words of each member of a group, in its order; the first leads.

    Args:
        up_bytes, down_bytes: one number per member.
    """

    up_bytes: tuple[float, ...]
    down_bytes: tuple[float, ...]

    @property
    def busiest_bytes(self) -> float:
        """Of the member and direction that has most to carry."""
        return max(*self.up_bytes, *self.down_bytes)


def vector_bytes(codec: str, blocks: Blocks, *, results: bool = False) -> int:
    """S: all blocks of one member, encoded; at most so many where lengths vary.

    Args:
        codec: its name.
        blocks: of the vector.
        results: as reducers return them.

    Raises:
        ValueError: unknown codec.
    """
    known = codec_named(codec).results if results else codec_named(codec)
    last_elems = blocks.size_elems - (blocks.count - 1) * blocks.block_elems
    return (blocks.count - 1) * known.max_encoded_bytes(blocks.block_elems) + known.max_encoded_bytes(last_elems)


@lru_cache(maxsize=64)
def lines_of(dialable: int, clients: int, max_group: int, helpers: int = 0) -> tuple[Counter[Line], ...]:
    """The groups of each round of an epoch, and how many there are of each kind. Dialable members are placed first, as `Placement` does;
    the first of them are the helpers.

    Raises:
        ValueError: as `grid_for`.
    """
    grid = grid_for(dialable, clients, max_group)
    rounds = []
    for axis in range(len(grid.sides)):
        held: dict[tuple[int, ...], list[tuple[bool, bool, int]]] = {}
        for slot in range(dialable + clients):
            cell = grid.cell(slot)
            held.setdefault(cell[:axis] + cell[axis + 1 :], []).append((slot < dialable, slot < helpers, cell[axis]))
        rounds.append(Counter(_line(members, first=axis == 0) for members in held.values()))
    return tuple(rounds)


def _line(members: list[tuple[bool, bool, int]], *, first: bool) -> Line:
    """Of members as (dialable, helper, step along the axis). After the first round helpers hold a result like everybody else."""
    dialable = sum(able for able, _, _ in members)
    helpers = sum(helps for _, helps, _ in members) if first else 0
    senders = len(members) - helpers if first else len({step for _, _, step in members})
    return Line(dialable, len(members) - dialable, senders, helpers)


def audit_bytes(line: Line, codec: str, blocks: Blocks, auditors: int) -> float:
    """Each way and member of a group, mean over all: an auditor gets what another member contributed from those who reduced it.

    Args:
        line: the group, of the first round.
        codec, blocks: as for `group_traffic`.
        auditors: in each group.

    Raises:
        ValueError: unknown codec.
    """
    if line.members == 1:
        return 0.0
    own = 1 / line.dialable if line.dialable else 0.0  # what it has reduced itself
    return min(auditors, line.members) * vector_bytes(codec, blocks) * (1 - own) / line.members


def group_traffic(line: Line, codec: str, blocks: Blocks, *, verify: bool, first: bool = True) -> GroupTraffic:
    """What each member of a group moves in one round in which nothing goes wrong.

    Args:
        line: who; at least one of them dialable.
        codec: its name.
        blocks: of the vector.
        verify: whether the round is verified.
        first: of the epoch; in others members bring results.

    Raises:
        ValueError: unknown codec, or nobody reduces.
    """
    n, brought, returned = line.members, vector_bytes(codec, blocks, results=not first), vector_bytes(codec, blocks, results=True)
    if n == 1:
        return GroupTraffic((0.0,), (0.0,))
    counts = _counts(blocks.count, line.dialable, line.clients)
    up_bytes, down_bytes = [], []
    for i, count in enumerate(counts):
        mine = count / blocks.count
        sends = line.helpers <= i < line.helpers + line.senders
        words_up, words_down = _words(n, blocks.count, verify=verify, leads=i == 0)
        frames_up = (blocks.count - count) * sends + count * (n - 1)
        frames_down = count * (line.senders - sends) + blocks.count - count
        up_bytes.append(brought * (1 - mine) * sends + returned * mine * (n - 1) + words_up + frames_up * _FRAME_BYTES)
        down_bytes.append(brought * mine * (line.senders - sends) + returned * (1 - mine) + words_down + frames_down * _FRAME_BYTES)
    return GroupTraffic(tuple(up_bytes), tuple(down_bytes))


@lru_cache(maxsize=1024)
def _counts(num_blocks: int, dialable: int, clients: int) -> tuple[int, ...]:
    """Blocks that each of equal members reduces. Planning asks for the same again and again, and exact fractions take long."""
    return tuple(block_counts(num_blocks, [_ALIKE_BYTES_PER_S] * dialable + [0] * clients))


def _words(n: int, num_blocks: int, *, verify: bool, leads: bool) -> tuple[float, float]:
    """Bytes up and down of what members say to each other to agree."""
    own, plan = _JOIN_BYTES + _HASH_BYTES * num_blocks, n * _JOIN_BYTES + _HASH_BYTES * num_blocks
    up_bytes, down_bytes = (n * plan, n * own) if leads else (own, plan)
    if verify:
        said = n * (_HASH_BYTES * num_blocks + _STATEMENT_BYTES)
        relayed = n * (_RELAYED_BYTES_PER_BLOCK * num_blocks + _RELAYED_BYTES)
        up_bytes += said + n * relayed * leads
        down_bytes += said + relayed
    return up_bytes, down_bytes
