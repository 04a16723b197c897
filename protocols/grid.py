"""Who averages with whom: members are placed on a grid, and round k of an epoch averages along axis k (Moshpit, arXiv 2103.03239 §3).

Where every cell holds a member, d rounds give the exact mean of all: after round k, everybody who agrees on the later coordinates holds the
same vector, and a round counts a vector once however many hold it. So cells may hold several members, and the number of members need not be
a power of anything. What must not happen is an empty cell: the groups that cross it miss a vector.

Nobody chooses a place: ranks and places follow from hashes of the epoch's coin and of public keys. Members look for a free place as keys do
in an open hash table, in order of rank, so one member that one view holds and another does not moves only a few others: about ln(cells)
if it was among the first in rank, who have a cell each, and hardly any if it was a later one. All other groups are the same in both views.
Only where the number of members crosses into another grid does everybody move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from blake3 import blake3

from protocols.ids import Epoch, PeerId, RunId

_COIN_DOMAIN = b"swarm.v1.epoch-coin"
_PLACE_DOMAIN = b"swarm.v1.place"
_ORDER_DOMAIN = b"swarm.v1.group-order"
_KEPT_PLACEMENTS = 8

_Ranked = tuple[bytes, PeerId]
"""A member after the hash that is its rank."""


def epoch_coin(run: RunId, epoch: Epoch) -> bytes:
    """The randomness (32 bytes) that places the members in this epoch: the same for everybody, another one each epoch."""
    return blake3(_COIN_DOMAIN + run.digest + epoch.to_bytes(8, "little")).digest()


@dataclass(frozen=True, slots=True)
class Grid:
    """The shape of an epoch: one round per axis.

    Args:
        sides: cells along each axis, never decreasing.

    Raises:
        ValueError: no axis, an axis without cells, or decreasing sides.
    """

    sides: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sides or self.sides[0] < 1 or list(self.sides) != sorted(self.sides):
            raise ValueError(f"{self.sides} are not the sides of a grid")

    @property
    def cells(self) -> int:
        """How many there are."""
        return prod(self.sides)

    def largest_group(self, members: int) -> int:
        """Most members on one line of any axis, when that many are placed in the order of `cell`."""
        return -(-members * self.sides[-1] // self.cells)

    def room(self, max_group: int) -> int:
        """How many members it holds with at most `max_group` on a line."""
        return max_group * self.cells // self.sides[-1]

    def meets_every_line(self, slots: int) -> bool:
        """Whether the first so many slots (see `cell`) hold a cell of each line."""
        layers = self.sides[-1] - self.sides[0] + 1  # one fewer could all pass by a line of the shortest side
        return slots * self.sides[-1] >= layers * self.cells

    def cell(self, slot: int) -> tuple[int, ...]:
        """Coordinates of the place that is filled after `slot` others, in an order that loads all lines evenly.

        Cells are filled layer by layer. A layer is the cells whose coordinates have the same sum modulo the longest side: it meets each
        line of the longest axis once and every other line at most once. After the last layer all cells are filled once more.
        """
        longest = self.sides[-1]
        layer, index = divmod(slot % self.cells, self.cells // longest)
        coordinates = []
        for side in self.sides[:-1]:
            index, coordinate = divmod(index, side)
            coordinates.append(coordinate)
        return (*coordinates, (layer - sum(coordinates)) % longest)


@lru_cache(maxsize=64)
def grid_for(dialable: int, undialable: int, max_group: int) -> Grid:
    """The grid of a swarm: as few rounds as give everybody the exact mean in groups of at most `max_group`.

    Of the grids with that many rounds it is the one with the fewest cells: its lines are as full as allowed, and a cell with two members
    still hands its vector on when one of them fails. Just below a power of `max_group` that takes a round more than a grid with a few empty
    cells would, and is worth it: the mean is exact (`python -m scripts.bench.moshpit_table`).

    Where no filled grid exists (`max_group` 2 or 3) it is the smallest that holds everybody. Where the dialable members are so few that
    they cannot be in as many groups as everybody needs, it is the one with most room.

    Args:
        dialable: members that can be dialled; every group needs one of them.
        undialable: the others.
        max_group: most members of a group, at least 2.

    Raises:
        ValueError: `max_group` is too small, or a number of members is negative.
    """
    if max_group < 2 or dialable < 0 or undialable < 0:
        raise ValueError(f"no grid for {dialable} + {undialable} members in groups of {max_group}")
    members = dialable + undialable
    single = Grid((max(dialable, 1),))
    if members <= max_group:
        return single
    roomiest = single
    for rounds in range(2, members.bit_length()):
        filled = [grid for grid in _even_grids(rounds, members) if grid.cells <= members and grid.meets_every_line(dialable)]
        enough = [grid for grid in filled if grid.room(max_group) >= members]
        if enough:
            return enough[0]
        roomiest = max([roomiest, *filled], key=lambda grid: grid.room(max_group))
    rounds = next(rounds for rounds in range(1, members + 1) if max_group**rounds >= members)
    with_empty_cells = _even_grids(rounds, members - 1)[-1]
    return with_empty_cells if with_empty_cells.meets_every_line(dialable) else roomiest


def _even_grids(rounds: int, up_to_cells: int) -> list[Grid]:
    """Grids whose sides differ by at most one, from 2 up, by number of cells; the last is the first with more than `up_to_cells`."""
    grids: list[Grid] = []
    while not grids or grids[-1].cells <= up_to_cells:
        side, longer = divmod(len(grids), rounds)
        grids.append(Grid((side + 2,) * (rounds - longer) + (side + 3,) * longer))
    return grids


def _seek(ranked: Sequence[_Ranked], free: range) -> list[int]:
    """Give each member, in order, the first of the free slots that its own sequence of slots comes to."""
    table = 1 << (free.stop - 1).bit_length()  # a power of two, so that odd steps reach every slot
    open_slots = bytearray(table)
    open_slots[free.start : free.stop] = b"\1" * len(free)
    slots: list[int] = []
    for rank, _ in ranked:
        slot, step = int.from_bytes(rank[:8], "little") % table, int.from_bytes(rank[8:16], "little") | 1
        while not open_slots[slot]:
            slot = (slot + step) % table
        open_slots[slot] = 0
        slots.append(slot)
    return slots


class Placement:
    """Where everybody is in one epoch. Equal arguments give equal placements on every machine. Use `place`, which remembers the last few.

    Every group holds a dialable member, and at most `max_group` members unless `grid.room(max_group)` is too small for everybody: then the
    excess is spread evenly, and the round refuses whoever is too many. If nobody can be dialled there is one group, which can do nothing.

    Args:
        coin: of the epoch.
        dialable: members that can be dialled.
        undialable: members that nobody can dial.
        max_group: most members of a group.
        grid: another one than `grid_for` chooses, to compare with it.

    Raises:
        ValueError: a member is both, or `max_group` is too small.
    """

    def __init__(
        self, coin: bytes, dialable: frozenset[PeerId], undialable: frozenset[PeerId], max_group: int, grid: Grid | None = None
    ) -> None:
        if dialable & undialable:
            raise ValueError("a member cannot be dialable and undialable at once")
        self._coin = coin
        self._undialable = undialable
        self.grid = grid = grid or grid_for(len(dialable), len(undialable), max_group)
        ranked = sorted((blake3(_PLACE_DOMAIN + coin + peer.public_key).digest(), peer) for peer in dialable | undialable)
        reachable = [item for item in ranked if item[1] not in undialable]
        clients = [item for item in ranked if item[1] in undialable] if undialable else []
        first = min(len(reachable), grid.cells)  # dialable members fill the cells
        second = min(len(ranked), grid.cells)  # clients those that are left
        last = len(ranked) if len(ranked) <= grid.cells else max(grid.room(max_group), len(ranked))
        others = sorted(reachable[first:] + clients[second - first :])
        parts = [(reachable[:first], range(first)), (clients[: second - first], range(first, second)), (others, range(second, last))]
        self._cells: dict[PeerId, tuple[int, ...]] = {}
        self._holders: dict[tuple[int, ...], list[PeerId]] = {}
        for part, free in parts:
            for (_, peer), slot in zip(part, _seek(part, free), strict=True):
                cell = self._cells[peer] = grid.cell(slot)
                self._holders.setdefault(cell, []).append(peer)
        self._groups: dict[tuple[int, tuple[int, ...]], tuple[PeerId, ...]] = {}

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the grid."""
        return self.grid.sides

    @property
    def rounds(self) -> int:
        """Rounds of the epoch: d."""
        return len(self.grid.sides)

    @property
    def members(self) -> frozenset[PeerId]:
        """Everybody who has a place."""
        return frozenset(self._cells)

    @property
    def exact(self) -> bool:
        """Whether everybody ends with the mean of all: one group, or no empty cell."""
        return self.rounds == 1 or len(self._holders) == self.grid.cells

    def cell(self, peer: PeerId) -> tuple[int, ...]:
        """Coordinates of a member.

        Raises:
            KeyError: it is not placed.
        """
        return self._cells[peer]

    def group(self, peer: PeerId, round_index: int) -> tuple[PeerId, ...]:
        """The members that this one averages with in a round, itself included, in the order of that round: dialable ones first.

        Raises:
            KeyError: it is not placed.
            IndexError: no such round.
        """
        if not 0 <= round_index < self.rounds:
            raise IndexError(f"round {round_index} of {self.rounds}")
        cell = self._cells[peer]
        line = (round_index, cell[:round_index] + cell[round_index + 1 :])
        if line not in self._groups:
            self._groups[line] = self._ordered(round_index, cell)
        return self._groups[line]

    def _ordered(self, axis: int, through: tuple[int, ...]) -> tuple[PeerId, ...]:
        cells = ((*through[:axis], step, *through[axis + 1 :]) for step in range(self.sides[axis]))
        members = [peer for cell in cells for peer in self._holders.get(cell, ())]
        prefix = _ORDER_DOMAIN + self._coin + axis.to_bytes(1, "little")
        return tuple(sorted(members, key=lambda peer: (peer in self._undialable, blake3(prefix + peer.public_key).digest())))


@lru_cache(maxsize=_KEPT_PLACEMENTS)
def place(coin: bytes, dialable: frozenset[PeerId], undialable: frozenset[PeerId], max_group: int) -> Placement:
    """The placement of these members; see `Placement`."""
    return Placement(coin, dialable, undialable, max_group)
