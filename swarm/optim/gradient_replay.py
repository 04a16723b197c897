"""A contribution by the gradient rule, computed again: the mean gradient over samples that anybody can draw.

With overlap the first samples of an epoch were computed at the parameters of the epoch before (`Traced.late_samples`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from peers.training_peer import Replayed, ReplayRequest
from protocols.layout import FlatLayout
from swarm.optim.accumulator import GradientAccumulator
from swarm.optim.master import MasterParams
from swarm.optim.replay import ReplayBatch, ReplayParams


class GradientReplay:
    """Implements `swarm.optim.replay.Replay`.

    Args:
        request: what to compute.
        params: where.
        masters: of the model that computes.
        layout: of the contribution.
    """

    def __init__(self, request: ReplayRequest, params: ReplayParams, masters: MasterParams, layout: FlatLayout) -> None:
        self.request = request
        self._params = params
        self._masters = masters
        self._sum = GradientAccumulator(layout)

    @property
    def _late(self) -> bool:
        return self._sum.samples < self.request.traced.late_samples

    @property
    def finished(self) -> bool:
        """See `Replay.finished`."""
        return self._sum.samples >= self.request.samples

    @property
    def moves(self) -> bool:
        """See `Replay.moves`."""
        return 0 < self._sum.samples == self.request.traced.late_samples

    def computing(self) -> AbstractContextManager[None]:
        """See `Replay.computing`."""
        values = self._params.before if self._late else self._params.held
        if values is None:
            raise RuntimeError("a replay was begun without the parameters that it needs")
        if all(values[name] is master for name, master in self._masters.trained.items()):
            return nullcontext()
        return self._masters.replaced_by(values)

    def advance(self, compute: ReplayBatch) -> bool:
        """See `Replay.advance`."""
        done, late = self._sum.samples, self.request.traced.late_samples
        try:
            samples = compute(replace(self.request, samples=late) if done < late else self.request, done)
            if samples is None or (done < late < done + samples):
                return False
            return self._sum.add(self._masters.gradients(), samples, summed=True)
        finally:
            self._masters.clear_gradients()

    def result(self) -> Replayed:
        """See `Replay.result`."""
        return Replayed(self._sum.mean())
