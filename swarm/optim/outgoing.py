"""The contribution that a member brings to a round: made once, as few bytes carry it, and settled when the round is over."""

from __future__ import annotations

from dataclasses import replace

import torch

from peers.training_peer import Contribution
from protocols.ids import Epoch
from swarm.optim.feedback import ErrorFeedback
from swarm.optim.rule import SyncRule


class Outgoing:
    """Contributions of one rule.

    Args:
        rule: makes them.
        feedback: keeps what few bytes leave out of them; None where nothing is kept.
    """

    def __init__(self, rule: SyncRule, feedback: ErrorFeedback | None) -> None:
        self._rule = rule
        self.feedback = feedback
        self.on_its_way: Contribution | None = None
        """That of a round that runs beside computing, or is to be tried again."""

    def make(self, epoch: Epoch, state_hash: bytes) -> Contribution:
        """What to bring to the round that closes `epoch`: the one that is on its way already, or a new one."""
        if self.on_its_way is not None:
            return self.on_its_way
        if self.feedback is not None:
            self.feedback.forget_sent()  # of a round that failed
        contribution = self._rule.contribution(epoch, state_hash)
        if self.feedback is None or not contribution.weight:
            return contribution
        return replace(contribution, vector=self.feedback.compress(self._rule.turn(epoch), contribution.vector))

    def settle(self, average_D: torch.Tensor, epoch: Epoch, *, included: bool) -> None:
        """The round is over, and the average will be applied.

        Args:
            average_D: what the swarm made of the contributions.
            epoch: that it closed.
            included: whether ours was among them.
        """
        if self.feedback is not None:
            self.feedback.settle(self._rule.turn(epoch), average_D, included=included)
        self.on_its_way = None

    def drop_stale(self) -> None:
        """The swarm has gone on since we were started: what was kept on disk may have been sent in between."""
        if self.feedback is not None:
            self.feedback.drop_doubted()

    def forget(self) -> int:
        """Another state is taken over.

        Returns:
            Samples of the contribution that was on its way.
        """
        lost = round(self.on_its_way.weight) if self.on_its_way else 0
        self.on_its_way = None
        if self.feedback is not None:
            self.feedback.forget_sent()
        return lost
