"""The chain of a member's inner states: each contribution begins with what the one before it ended with, or anew.

Members commit to both ends (`protocols.trust.traced`), so nobody can slip in an inner state that no samples lead to. The chain is broken,
and the member begins anew, wherever what it committed to may not be what it has: after a restart, after another state was taken over,
after a micro-batch that was not finite, after a round that failed and was tried again with more samples. A process cannot know what the
one before it committed to in the epoch in which it starts: so its first contribution is never gone on from.
"""

from __future__ import annotations

from peers.state_snapshot import StateSnapshot
from peers.training_peer import InnerStates
from protocols.ids import Epoch
from swarm.optim.own_state import inner_snapshot, own_tensors
from swarm.optim.rule import OwnParams


class InnerRecord:
    """Of one member.

    Args:
        own: its model and inner optimizer.
        with_params: whether its model is somewhere else than the anchor when an epoch begins.
    """

    def __init__(self, own: OwnParams, *, with_params: bool) -> None:
        self._own = own
        self._with_params = with_params
        self._start: StateSnapshot | None = None
        self._start_epoch = Epoch(0)
        self._first_epoch: Epoch | None = None
        self._ended: tuple[Epoch, list[StateSnapshot]] | None = None

    def end(self, epoch: Epoch) -> InnerStates:
        """A contribution to an epoch is made of what there is now."""
        if self._first_epoch is None:
            self._first_epoch = epoch
        end = inner_snapshot(own_tensors(self._own, with_params=self._with_params), epoch)
        ends = self._ended[1] if self._ended and self._ended[0] == epoch else []
        if not any(known.state_hash == end.state_hash for known in ends):
            ends.append(end)
        self._ended = epoch, ends
        return InnerStates(self._start, self._start_epoch, end)

    def go_on(self) -> bool:
        """The next contribution begins. False if the member has to begin anew; it calls `begin_anew` then."""
        ended, self._ended = self._ended, None
        if ended is None or len(ended[1]) != 1 or ended[0] == self._first_epoch:
            return False
        self._start_epoch, self._start = ended[0], ended[1][0]
        return True

    def begin_anew(self) -> None:
        """From here on the member's model is the anchor, and its inner optimizer knows nothing."""
        self._own.optimizer.state.clear()
        self._start, self._start_epoch = None, Epoch(0)
