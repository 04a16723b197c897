"""The state that a member holds: which epoch it is of, what went into it, its hash, and copies of it."""

from __future__ import annotations

from peers.state_snapshot import StateSnapshot
from protocols.ids import Epoch
from protocols.manifest import Manifest
from swarm.optim.rule import SyncRule
from swarm.optim.state import StateMismatch, restore_state, state_meta, state_tensors


class HeldState:
    """Anchor and optimizer of a sync rule, seen as the state of an epoch.

    Args:
        rule: has what is shared.
    """

    def __init__(self, rule: SyncRule) -> None:
        self._rule = rule
        self.epoch = Epoch(0)
        """Updates applied."""
        self.accepted_samples = 0
        """Samples of the whole swarm that went in."""
        self._manifest: Manifest | None = None

    @property
    def manifest(self) -> Manifest:
        """Describes every byte of it; made when it is first asked for."""
        if self._manifest is None:
            self._manifest = Manifest.build(
                state_tensors(self._rule.shared, self._rule.optimizer),
                epoch=self.epoch,
                accepted_samples=self.accepted_samples,
                meta=state_meta(self._rule.shared, self._rule.optimizer, self._rule.name),
            )
        return self._manifest

    def advance(self, samples: int) -> None:
        """The rule has taken the step that closes the epoch.

        Args:
            samples: of the whole swarm that went into it.
        """
        self.epoch = Epoch(self.epoch + 1)
        self.accepted_samples += samples
        self._manifest = None

    def snapshot(self) -> StateSnapshot:
        """A copy."""
        return StateSnapshot.copy_of(self.manifest, state_tensors(self._rule.shared, self._rule.optimizer))

    def restore(self, snapshot: StateSnapshot) -> None:
        """Take over a state; nothing changes if it does not fit.

        Raises:
            StateMismatch: it does not belong to this model and optimizer.
        """
        restore_state(self._rule.shared, self._rule.optimizer, self._rule.name, snapshot)
        self.epoch = Epoch(snapshot.manifest.epoch)
        self.accepted_samples = snapshot.manifest.accepted_samples
        self._manifest = None

    def as_dict(self) -> dict[str, object]:
        """Plain values and tensors (copies), for `torch.save`."""
        manifest = self.manifest
        tensors = {name: tensor.clone() for name, tensor in state_tensors(self._rule.shared, self._rule.optimizer)}
        return {"epoch": manifest.epoch, "accepted_samples": manifest.accepted_samples, "meta": manifest.meta, "tensors": tensors}


def snapshot_of(state: dict[str, object]) -> StateSnapshot:
    """What `HeldState.as_dict` gave, as a snapshot.

    Raises:
        StateMismatch: it is something else.
    """
    epoch, accepted, meta, tensors = (state.get(key) for key in ("epoch", "accepted_samples", "meta", "tensors"))
    if not (isinstance(epoch, int) and isinstance(accepted, int) and isinstance(meta, dict) and isinstance(tensors, dict)):
        raise StateMismatch("this is not a state of a CollaborativeOptimizer")
    return StateSnapshot.of(tensors.items(), epoch=epoch, accepted_samples=accepted, meta=meta)
