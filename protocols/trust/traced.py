"""How a contribution came about, beyond which samples it is of: what a member commits to so that an auditor can go the same way.

By the outer rule a member's inner optimizer remembers earlier gradients, and with overlap or fragments its model is not the anchor. So it
commits to the state that it began with and to the one it ended with, by their roots (`protocols.manifest`), and shows them to auditors.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from protocols.errors import RemoteProtocolError
from protocols.ids import Epoch, PeerId

_FIRST_EPOCH = Epoch(0)
ROOT_BYTES = 32
MAX_CUTS = 16
"""Rounds of one epoch that failed; whoever has more of them begins its contribution anew."""


@dataclass(frozen=True, slots=True)
class Traced:
    """Of one contribution.

    Args:
        late_samples: how many of its samples, the first ones, were computed before the result of the epoch before was applied.
        inner_start: root of the inner state that it began with; empty: it began anew, from the anchor and with an optimizer that knows
            nothing.
        inner_start_epoch: of its contribution that ended with that state; 0 with an empty one.
        inner_end: root of the inner state after its samples; empty where members have none.
        inner_start_plan: digest of the round in which it committed to `inner_start` as its end; the network side knows it.
        cuts: after how many of its samples it stepped on an inner batch that was not full, besides the last one; ascending.
    """

    late_samples: int = 0
    inner_start: bytes = b""
    inner_start_epoch: Epoch = _FIRST_EPOCH
    inner_end: bytes = b""
    cuts: tuple[int, ...] = ()
    inner_start_plan: bytes = b""

    def check(self, epoch: Epoch, samples: int, sender: PeerId) -> None:
        """Whether a member can say so of a contribution.

        Raises:
            RemoteProtocolError: it makes no sense.
        """
        roots = len(self.inner_start) in (0, ROOT_BYTES) and len(self.inner_end) in (0, ROOT_BYTES)
        roots = roots and len(self.inner_start_plan) == len(self.inner_start)
        chained = self.inner_start_epoch < epoch and bool(self.inner_end) if self.inner_start else not self.inner_start_epoch
        bounds = (0, *self.cuts, samples)
        ascending = not self.cuts or (len(self.cuts) <= MAX_CUTS and all(a < b for a, b in pairwise(bounds)))
        if not (roots and chained and ascending and self.late_samples <= samples):
            raise RemoteProtocolError(sender, "a commitment whose inner states make no sense")


UNTRACED = Traced()
