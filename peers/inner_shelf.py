"""Inner states that this member may be asked for: those that it has committed to, and those of others that it looks into.

Whoever audits a contribution by the outer rule needs what its member's optimizer knew when it began (`protocols.trust.traced`). Only that
member has it, so it keeps its own for as long as contributions can be audited. Who has got one from it passes it on to others who look
into the same contribution: a member behind a thin link sends it once.
"""

from __future__ import annotations

from dataclasses import dataclass

from peers.state_snapshot import StateSnapshot
from protocols.ids import Epoch
from protocols.trust.audits import AUDIT_WITHIN_S, AUDITABLE_EPOCHS

SHOWN_EPOCHS = 2
"""Whoever is drawn to be audited shows its states for so many epochs after its own."""

_REMEMBERED_EPOCHS = 8
_REMEMBERED_COMMITMENTS = 64

MAX_BORROWED = 4
"""States of others that are kept: two audits at a time, each with a beginning and an end."""


@dataclass(frozen=True, slots=True)
class _Own:
    epoch: Epoch
    since_s: float
    snapshot: StateSnapshot


class InnerShelf:
    """States by their roots. Lives on the event loop."""

    def __init__(self) -> None:
        self._own: list[_Own] = []
        self._over: set[Epoch] = set()
        self._plans: dict[bytes, bytes] = {}
        self._borrowed: list[StateSnapshot] = []

    @property
    def newest(self) -> StateSnapshot | None:
        """Our own of the last contribution; None before the first. Everybody's have the same tensors."""
        return self._own[-1].snapshot if self._own else None

    def keep(self, epoch: Epoch, snapshot: StateSnapshot, now_s: float) -> None:
        """Keep what our contribution to an epoch ended with, and let go of what nobody asks about any more.

        Args:
            epoch: of the contribution.
            snapshot: not to be written to.
            now_s: monotonic seconds.
        """
        self._own = [
            kept for kept in self._own if not self._is_over(kept, epoch, now_s) and kept.snapshot.state_hash != snapshot.state_hash
        ]
        self._own.append(_Own(epoch, now_s, snapshot))
        self._over = {known for known in self._over if known + _REMEMBERED_EPOCHS > epoch}

    def note_commitment(self, root: bytes, plan_digest: bytes) -> None:
        """We have committed to that state as the end of our contribution to a round."""
        self._plans[root] = plan_digest
        while len(self._plans) > _REMEMBERED_COMMITMENTS:
            del self._plans[next(iter(self._plans))]

    def plan_of(self, root: bytes) -> bytes:
        """The round in which we did so last; empty if we never did."""
        return self._plans.get(root, b"")

    def release(self, epoch: Epoch) -> None:
        """Nobody has been drawn to look into our contribution to an epoch."""
        self._over.add(epoch)

    def _is_over(self, kept: _Own, epoch: Epoch, now_s: float) -> bool:
        """An audit looks at the end of its own epoch and at that of the one before. Others may be an epoch behind us."""
        age = epoch - kept.epoch
        if age > 1 and {kept.epoch, kept.epoch + 1} <= self._over:
            return True
        return age > AUDITABLE_EPOCHS + 2 or (age > SHOWN_EPOCHS + 2 and now_s - kept.since_s > AUDIT_WITHIN_S)

    def borrow(self, snapshot: StateSnapshot) -> None:
        """Keep somebody else's; the oldest of these goes first."""
        if self.find(snapshot.state_hash) is None:
            self._borrowed = [*self._borrowed, snapshot][-MAX_BORROWED:]

    def find(self, root: bytes) -> StateSnapshot | None:
        """The state with that root, if it is here."""
        kept = (*(own.snapshot for own in self._own), *self._borrowed)
        return next((snapshot for snapshot in kept if snapshot.state_hash == root), None)
