"""What a collaborative optimizer is made of, and what can be asked of it at any time."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import AbstractContextManager

from peers.state_snapshot import StateSnapshot
from peers.training_peer import RoundOutcome
from protocols.ids import Epoch
from swarm.optim.feedback import ErrorFeedback
from swarm.optim.held import HeldState
from swarm.optim.outgoing import Outgoing
from swarm.optim.own_state import own_snapshot, restore_own
from swarm.optim.rule import SyncRule
from swarm.optim.settings import GradientSettings


class OptimizerParts:
    """Rule, state and contribution; `swarm.optim.collaborative` makes them work together.

    Args:
        rule: what is contributed and applied.
        settings: of the rule.
        feedback: of its contributions.
    """

    def __init__(self, rule: SyncRule, settings: GradientSettings, feedback: ErrorFeedback | None) -> None:
        self._rule = rule
        self._held = HeldState(rule)
        self._outgoing = Outgoing(rule, feedback)
        self._overlap = settings.overlap
        self._round: Future[RoundOutcome] | None = None

    @property
    def epoch(self) -> Epoch:
        """Updates applied to the state held."""
        return self._held.epoch

    @property
    def accepted_samples(self) -> int:
        """Samples of the whole swarm that went into the state held."""
        return self._held.accepted_samples

    @property
    def state_hash(self) -> bytes:
        """32 bytes that name the state held: parameters, optimizer, epoch, accepted samples."""
        return self._held.manifest.root

    @property
    def overlap(self) -> bool:
        """Whether computing goes on while a round runs."""
        return self._overlap

    @property
    def averaging(self) -> bool:
        """Whether a round runs beside computing now."""
        return self._round is not None

    @property
    def sampling_epoch(self) -> Epoch:
        """Epoch that samples computed now belong to: the next one while a round runs beside computing."""
        return Epoch(self.epoch + 1) if self._outgoing.on_its_way else self.epoch

    @property
    def next_sample(self) -> int:
        """Index in that epoch of the sample to compute next. Who can be audited draws it by this number (`swarm.data.assignment`)."""
        return self._rule.next_sample

    @property
    def batch_limit(self) -> int | None:
        """Most samples that the next micro-batch should have, so that inner steps have the size that was set; None for any number."""
        return self._rule.batch_limit

    @property
    def samples(self) -> int:
        """Samples computed for the next contribution."""
        return self._rule.samples

    @property
    def dropped_batches(self) -> int:
        """Micro-batches left out since the beginning because they were not finite."""
        return self._rule.dropped_batches

    @property
    def size_elems(self) -> int:
        """D: elements of the vector that is averaged next."""
        return self._rule.layout(self.epoch).size_elems

    def shared_parameters(self) -> AbstractContextManager[None]:
        """While the context is open the model computes with the parameters that all members hold alike: for measuring, not for training."""
        return self._rule.shared.computing()

    def snapshot(self) -> StateSnapshot:
        """A copy of the state held."""
        return self._held.snapshot()

    def own_snapshot(self) -> StateSnapshot | None:
        """A copy of what this member alone has (`swarm.optim.own_state`); None if there is nothing that can be taken up again."""
        if self._rule.recording:
            return None
        return own_snapshot(self._rule, self._outgoing.feedback, self.epoch, self.state_hash)

    def load_own(self, snapshot: StateSnapshot) -> None:
        """Take over what `own_snapshot` gave, after the shared state that it was kept with, or a later one.

        By the outer rule a member that can be audited begins anew instead: nobody could vouch for what it has kept.

        Raises:
            StateMismatch: it is of another model, optimizer or rule.
        """
        if self._rule.recording:
            return
        restore_own(self._rule, self._outgoing.feedback, self.state_hash, snapshot)
