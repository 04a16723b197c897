"""Attacks of members that reduce: false results, and false figures to cover them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch

from peers.attacks.ring import Attacker
from protocols.content import block_hash, content_hash
from protocols.frames import BlockBytes
from protocols.ids import BlockIndex, PeerId
from protocols.trust.checks import figures_of
from protocols.trust.statements import Check, Reduction

LIE = -10.0
"""What the plain lying reducer multiplies a block with."""

_DOUBTERS = 4  # no more than one in so many of all contributors shall doubt a false block
_PLEASING = 0.4
_LONGEST_PUSH, _SHORTER = 3.0, 0.9


class LyingReducer(Attacker):
    """Returns -10 times the aggregate."""

    name = "lying_reducer"

    def reduced(self, block: BlockIndex, mean_E: torch.Tensor, radius: float) -> torch.Tensor:
        """See `Conduct.reduced`."""
        return self.lie(mean_E) if self.attacks else mean_E

    def lie(self, mean_E: torch.Tensor) -> torch.Tensor:
        """What it makes of an aggregate."""
        return LIE * mean_E


class ShiftingReducer(LyingReducer):
    """Moves the aggregate in a random direction, by a part of its own length."""

    shift: ClassVar[float]

    def lie(self, mean_E: torch.Tensor) -> torch.Tensor:
        """See `LyingReducer.lie`."""
        return mean_E + self.shift * float(mean_E.norm()) * self.ring.direction(mean_E.numel())


class ShiftingReducer0001(ShiftingReducer):
    """A thousandth."""

    name, shift = "lying_reducer_0.001", 1e-3


class ShiftingReducer001(ShiftingReducer):
    """A hundredth."""

    name, shift = "lying_reducer_0.01", 1e-2


class ShiftingReducer1(ShiftingReducer):
    """As long as the aggregate itself."""

    name, shift = "lying_reducer_1", 1.0


class MuteReducer(ShiftingReducer1):
    """Lies as a reducer and reports no figures, so that no sum over its block can be made."""

    name = "mute_reducer"

    def reports(self, to: PeerId) -> bool:
        """See `Conduct.reports`."""
        return not self.attacks


class TwoFacedReducer(Attacker):
    """Returns other bytes to victims than to others, and signs for them as well."""

    name = "two_faced_reducer"
    signs = True

    def __init__(self, *of: object) -> None:
        super().__init__(*of)  # type: ignore[arg-type]
        self._shown: dict[PeerId, dict[BlockIndex, bytes]] = {}

    def result(self, item: BlockBytes, to: PeerId) -> BlockBytes:
        """See `Conduct.result`."""
        if not self.attacks or to not in self.ring.victims:
            return item
        data = bytearray(item.data)
        data[0] ^= 1  # the last bit of a number
        self._shown.setdefault(to, {})[item.block] = block_hash(content_hash(bytes(data)), item.contributors)
        return replace(item, data=bytes(data), content=b"")

    def reduction(self, reduction: Reduction, to: PeerId) -> Reduction:
        """See `Conduct.reduction`."""
        shown = self._shown.pop(to, {})
        if not shown or not self.signs:
            return reduction
        hashes = tuple(shown.get(block, named) for block, named in zip(reduction.blocks, reduction.block_hashes, strict=True))
        return replace(reduction, block_hashes=hashes)


class UnsignedTwoFacedReducer(TwoFacedReducer):
    """Returns other bytes to victims, and signs one statement only: each victim sees a member that breaks the protocol."""

    name = "two_faced_unsigned"
    signs = False


class Collude(Attacker):
    """Reducers push their blocks as far against most honest parts as doubt allows, and please the others; one of the ring that contributes
    reports the figure with which the sum over such a block vanishes.

    It is another one than the reducer as long as there is one. Everybody's parts are known to the ring.
    """

    name = "collude"

    def reduced(self, block: BlockIndex, mean_E: torch.Tensor, radius: float) -> torch.Tensor:
        """See `Conduct.reduced`."""
        if not self.attacks:
            return mean_E
        lie_E = self._undoubted(torch.stack([self._part(peer, block) for peer in self.ring.vectors if peer not in self.ring.members]))
        self.ring.lies[block] = (self.epoch, lie_E, radius)
        return lie_E

    def _undoubted(self, honest_GE: torch.Tensor) -> torch.Tensor:
        """Against as many honest parts as may doubt a block before it is looked at."""
        doubters = min(len(self.ring.vectors) // _DOUBTERS, len(honest_GE) - 1)
        pleased_E, others_E = honest_GE[doubters:].mean(dim=0), honest_GE[:doubters].sum(dim=0) / max(doubters, 1)
        push = _LONGEST_PUSH
        while True:
            lie_E = _PLEASING * pleased_E - push * others_E
            doubting = int(((honest_GE - lie_E).norm(dim=1) > honest_GE.norm(dim=1)).sum())
            if doubting <= doubters or push < 1e-3:
                return lie_E
            push *= _SHORTER

    def check(self, check: Check) -> Check:
        """See `Conduct.check`."""
        projections, doubted = list(check.projections), check.doubted
        if self.attacks:
            doubted = tuple(block for block in doubted if self.ring.lies.get(block, (None,))[0] != self.epoch)
        if self.attacks and self.me == self._reporter:
            for block, (epoch, lie_E, radius) in self.ring.lies.items():
                if epoch == self.epoch and check.distances[block]:
                    projections[block] = self._covering(check, block, lie_E, radius)
        return replace(check, projections=tuple(projections), doubted=doubted)

    @property
    def _reporter(self) -> PeerId:
        """Who covers for the others: the first that still takes part."""
        return min(peer for peer in self.ring.members if peer in self.ring.vectors)

    def _covering(self, check: Check, block: BlockIndex, lie_E: torch.Tensor, radius: float) -> float:
        """The projection of our part with which the clipped sum vanishes."""
        total = ours = 0.0
        for peer in self.ring.vectors:
            figures = figures_of(self._part(peer, block), lie_E, check.coin, block)
            weight = self.ring.weights[peer] * min(1.0, radius / figures.distance if math.isfinite(radius) else 1.0)
            if peer == self.me:
                ours = weight
            else:
                total += weight * figures.projection
        return -total / ours

    def _part(self, peer: PeerId, block: BlockIndex) -> torch.Tensor:
        start = block * self.ring.block_elems
        return self.ring.vectors[peer][start : start + self.ring.block_elems]
