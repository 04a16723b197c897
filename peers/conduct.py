"""How a member behaves where it could lie. Members are honest; `peers.attacks` has others, to show what happens to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocols.frames import BlockBytes, BytesLike
from protocols.ids import BlockIndex, Epoch, PeerId
from protocols.messages import Join, Plan
from protocols.trust.statements import Charge, Check, Commitment, Reduction


class Conduct:
    """Honest conduct: everything goes out as it is. Attackers override what they do otherwise.

    A vector or block that is given here is not to be written to; who changes it returns another one.
    """

    def contribution(self, epoch: Epoch, own_D: torch.Tensor, weight: float) -> tuple[torch.Tensor, float]:
        """What it brings to an epoch, and the samples that it claims for it."""
        return own_D, weight

    def join(self, join: Join, to: PeerId) -> Join:
        """What it says to a leader when it joins."""
        return join

    def sealed(self, kind: str, sealed: bytes) -> bytes:
        """A signed statement on its way out."""
        return sealed

    def commitment(self, commitment: Commitment, to: PeerId) -> Commitment:
        """What it says to a reducer of what it brings."""
        return commitment

    def part(self, block: BlockIndex, data: BytesLike, to: PeerId) -> BytesLike | None:
        """What it sends of a block of its contribution; None: nothing more, ever, on that stream."""
        return data

    def takes_part_of(self, sender: PeerId) -> bool:
        """Whether it admits, as a reducer, to have got a member's blocks."""
        return True

    def reduced(self, block: BlockIndex, mean_E: torch.Tensor, radius: float) -> torch.Tensor:
        """What it makes of the aggregate of a block that it reduces."""
        return mean_E

    def result(self, item: BlockBytes, to: PeerId) -> BlockBytes:
        """What it returns of a reduced block to one member."""
        return item

    def reduction(self, reduction: Reduction, to: PeerId) -> Reduction:
        """What it signs for the blocks that it has returned to one member."""
        return reduction

    def shows_share(self, to: PeerId) -> bool:
        """Whether it shows its share of the coin when it is due."""
        return True

    def reports(self, to: PeerId) -> bool:
        """Whether it tells a leader what it finds of its own part and the result."""
        return True

    def check(self, check: Check) -> Check:
        """What it reports of its own part and the result."""
        return check

    def accusations(self, plan: Plan) -> Sequence[Charge]:
        """Whom it accuses after a round, whatever it has found."""
        return ()

    def finds(self, charge: Charge, guilty: bool) -> bool | None:
        """What it says of an accusation that it has looked into; None: nothing."""
        return guilty


HONEST = Conduct()
