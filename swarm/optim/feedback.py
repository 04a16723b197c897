"""Error feedback: what few bytes leave out of a contribution is kept, and comes with a later one.

    sent   = decoded(encoded(contribution + beta x kept))      the codec is a projection: sent again, it is the same bytes
    kept  <- contribution + beta x kept - sent                 Seide et al. 2014; SparseLoCo, arXiv 2508.15706, algorithm 1
    kept  <- kept + sent, where the swarm's average is zero    what a reducer left out stays with its senders

The last line is for the way down what the one before it is for the way up. A reducer returns a few elements of the mean, however many
members send. Each member sees what is missing in the result and keeps its own part of it: the parts add up to what was dropped. A reducer
needs no memory of its own, anybody can repeat what it did bit for bit, and blocks may change hands from round to round. Lost all the same
are a reducer's rounding of what it does return, and in a grid what one group's reducer drops and another's returns: members compare with
the last result.

By the outer rule a member may compute *ahead* of the anchor, at

    start  = anchor - gamma x kept                             step-ahead error feedback: Xu, Huo, Huang, AAAI 2021, arXiv 2008.05823

where a part of its own work is in place that the others have not heard of yet. A contribution, anchor - local, then holds gamma x kept by
itself. With gamma 1 members would drift apart, since most of what they keep is noise of their own.

Legend: F elements of what is averaged in one epoch, a fragment or all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from protocols.codecs.base import Codec
from protocols.ids import BlockIndex
from protocols.layout import Blocks


@dataclass(frozen=True, slots=True)
class _Sent:
    sent_F: torch.Tensor
    left_F: torch.Tensor
    """What remains if it is averaged."""


class ErrorFeedback:
    """One member's residuals, one for each thing that is averaged in turn.

    Args:
        codec: how blocks travel.
        block_elems: elements of a block, as in the run.
        decay: beta, above 0 and at most 1: what is kept for long fades.
        step_ahead: gamma, at least 0 and at most 1; 0: members start from the anchor.
    """

    def __init__(self, codec: Codec, block_elems: int, decay: float, step_ahead: float = 0.0) -> None:
        self._codec = codec
        self._block_elems = block_elems
        self._decay = decay
        self._step_ahead = step_ahead
        self._kept: dict[int, torch.Tensor] = {}
        self._sent: dict[int, _Sent] = {}
        self._doubted = False

    def compress(self, key: int, own_F: torch.Tensor) -> torch.Tensor:
        """What to contribute instead of `own_F`: as it will arrive. Nothing is settled before `settle`.

        Args:
            key: which of the things that take turns.
            own_F: fp32 on the CPU, finite; not written to. From `ahead` of the anchor, as it is now.
        """
        wanted_F = own_F.clone()
        if key in self._kept:
            wanted_F.add_(self._kept[key], alpha=self._decay - self._step_ahead)  # the rest is in `own_F`
        sent_F = torch.empty_like(wanted_F)
        blocks = Blocks(wanted_F.numel(), self._block_elems)
        for index in range(blocks.count):
            start, stop = blocks.span(BlockIndex(index))
            self._codec.decode_into(self._codec.encode(wanted_F[start:stop]), sent_F[start:stop])
        self._sent[key] = _Sent(sent_F, wanted_F.sub_(sent_F))
        return sent_F

    def settle(self, key: int, average_F: torch.Tensor, *, included: bool) -> None:
        """The round is over.

        Args:
            key: as it was compressed.
            average_F: what the swarm made of the contributions; not written to.
            included: whether ours was among them; if not, all is as it was before.
        """
        self._doubted = False
        sent = self._sent.pop(key, None)
        if sent is None or not included:
            return
        dropped = average_F == 0
        self._kept[key] = sent.left_F.add_(sent.sent_F.mul(dropped))

    def ahead(self, key: int) -> torch.Tensor | None:
        """What to start below the anchor by, gamma x kept; None for nothing."""
        return self._kept[key] * self._step_ahead if self._step_ahead and key in self._kept else None

    def forget_sent(self) -> None:
        """What is on its way will not be settled."""
        self._sent.clear()

    @property
    def kept(self) -> dict[int, torch.Tensor]:
        """The residuals, by key; not copies."""
        return dict(self._kept)

    def restore(self, kept: dict[int, torch.Tensor]) -> None:
        """Take over residuals that were kept on disk. They are doubted until a round is settled: they may have been sent since."""
        self._kept = dict(kept)
        self._sent.clear()
        self._doubted = True

    def drop_doubted(self) -> None:
        """Another state is taken over: what came from disk belongs to a time before it."""
        if self._doubted:
            self._kept.clear()
        self._doubted = False
