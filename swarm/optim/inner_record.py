"""The chain of a member's inner states: each contribution begins with what the one before it ended with, or anew.

Members commit to both ends (`protocols.trust.traced`), so nobody can slip in an inner state that no samples lead to. The chain is broken,
and the member begins anew, wherever what it committed to may not be what it has: after a restart, after another state was taken over,
after a micro-batch that was not finite, after a round that failed and was tried again with more samples. A process cannot know what the
one before it committed to in the epoch in which it starts: so the first contribution that it makes on a state is never gone on from, the
first of all as little as the first after another state was taken over. Nor is one to an epoch for which, or for a later one, it made
another.
"""

from __future__ import annotations

from peers.state_snapshot import StateSnapshot
from peers.training_peer import InnerStates
from protocols.ids import Epoch
from swarm.optim.own_state import inner_snapshot, own_tensors
from swarm.optim.rule import OwnParams

_REMEMBERED_EPOCHS = 8


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
        self._ended: tuple[Epoch, StateSnapshot] | None = None
        self._roots: dict[Epoch, set[bytes]] = {}
        """Of all ends that this process may have committed to, by epoch."""

    @property
    def anew(self) -> bool:
        """Whether the contribution that is being made began from the anchor, with an optimizer that knew nothing."""
        return self._start is None

    def end(self, epoch: Epoch) -> InnerStates:
        """A contribution to an epoch is made of what there is now."""
        if self._first_epoch is None:
            self._first_epoch = epoch
        end = inner_snapshot(own_tensors(self._own, with_params=self._with_params), epoch)
        self._ended = epoch, end
        self._roots.setdefault(epoch, set()).add(end.state_hash)
        while len(self._roots) > _REMEMBERED_EPOCHS:
            del self._roots[min(self._roots)]
        return InnerStates(self._start, self._start_epoch, end)

    def go_on(self) -> bool:
        """The next contribution begins. False if the member has to begin anew; it calls `begin_anew` then."""
        ended, self._ended = self._ended, None
        if ended is None or ended[0] == self._first_epoch or ended[0] < max(self._roots) or len(self._roots[ended[0]]) != 1:
            return False
        self._start_epoch, self._start = ended
        return True

    def begin_anew(self) -> None:
        """From here on the member's model is the anchor, and its inner optimizer knows nothing."""
        self._own.optimizer.state.clear()
        self._start, self._start_epoch = None, Epoch(0)
        self._ended = None  # it is no longer what there is

    def take_over(self) -> None:
        """Another state is taken over: an earlier process may have committed to a contribution to its epoch too."""
        self._first_epoch = None
        self.begin_anew()
