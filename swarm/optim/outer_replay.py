"""A contribution by the outer rule, computed again: the same inner steps, on the same samples, from the inner state that its member shows.

    begin       the model that the member had, and what its inner optimizer knew; or anew: the anchor, and nothing
    late        after `late_samples` the result of the epoch before moves the model, as it moved the member's
    cuts        where a round failed the member stepped on an inner batch that was not full
    end         D = anchor - local of the epoch's fragment, and what the inner state has become

The replay works on tensors of its own; the model and the inner optimizer of this member are the very same as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch

from peers.training_peer import Replayed, ReplayRequest
from protocols.layout import FlatLayout
from protocols.trust.audits import NUDGE
from swarm.optim.anchor import Anchor
from swarm.optim.inner_batch import InnerBatch
from swarm.optim.inner_distance import copy_without_state, inner_distance
from swarm.optim.own_state import put_states
from swarm.optim.replay import ReplayBatch, ReplayParams
from swarm.optim.rule import OwnParams
from swarm.optim.settings import OuterSettings
from swarm.optim.state import StateMismatch


class OuterReplay:
    """Implements `swarm.optim.replay.Replay`.

    Args:
        request: what to compute.
        params: the anchors.
        anchor: has the model that computes.
        inner: the model and the inner optimizer of this member; the optimizer is copied without its state.
        settings, rates: of the rule, and of the optimizer's groups as they were given.
        layouts: of the fragment that the epoch before averaged, and of the one that is contributed.

    Raises:
        StateMismatch: the inner state that was shown does not belong to this model and optimizer, or an anchor that it takes is missing.
    """

    def __init__(
        self,
        request: ReplayRequest,
        params: ReplayParams,
        anchor: Anchor,
        inner: OwnParams,
        settings: OuterSettings,
        rates: tuple[float, ...],
        layouts: tuple[FlatLayout, FlatLayout],
    ) -> None:
        self.request = request
        self._params = params
        self._anchor = anchor
        self._settings = settings
        self._moved_layout, self._layout = layouts
        self._own = OwnParams(inner.params, copy_without_state(inner.optimizer))
        for group, rate in zip(self._own.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._batch = InnerBatch(inner.params, self._own.optimizer, settings)
        self._with_params = settings.keeps_own_params
        self._done = 0
        start = dict(request.start.tensors()) if request.start is not None else {}
        self._local = self._where_it_began(start)
        self._left = {slot.name: self._local[slot.name].clone() for slot in self._moved_layout.slots} if self._late else {}
        put_states(self._own, {name: value for name, value in start.items() if name.startswith("optim/")})
        if request.start is not None and not self._late:
            self._move({slot.name: self._local[slot.name].clone() for slot in self._moved_layout.slots})

        if request.nudged:
            self._nudge()

    def _nudge(self) -> None:
        """By the same random rounding errors for everybody."""
        dice = torch.Generator().manual_seed(0)
        for local in self._local.values():
            local.mul_((1 + NUDGE * (2 * torch.rand(local.shape, generator=dice) - 1)).to(local.device))

    @property
    def _late(self) -> int:
        return self.request.traced.late_samples

    def _where_it_began(self, start: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The member's model, on the device of ours."""
        own = {name.removeprefix("param/"): value for name, value in start.items() if name.startswith("param/")}
        where = own if own else self._params.before if self._late else self._params.held
        trained = self._anchor.local_trained
        if where is None or where.keys() != trained.keys() or bool(own) != (self._with_params and self.request.start is not None):
            raise StateMismatch("what a replay begins with is not known any more, or does not fit")
        if any(where[name].shape != param.shape or where[name].dtype != param.dtype for name, param in trained.items()):
            raise StateMismatch("an inner state of another model")
        return {name: where[name].detach().to(param.device, copy=True) for name, param in trained.items()}

    @property
    def finished(self) -> bool:
        """See `Replay.finished`."""
        return self._done >= self.request.samples

    @property
    def moves(self) -> bool:
        """See `Replay.moves`: what moves, moves in place."""
        return False

    @contextmanager
    def computing(self) -> Iterator[None]:
        """See `Replay.computing`."""
        trained = self._anchor.local_trained
        own = {name: param.data for name, param in trained.items()}
        try:
            for name, param in trained.items():
                param.data = self._local[name]
            yield
        finally:
            for name, param in trained.items():
                param.data = own[name]

    def advance(self, compute: ReplayBatch) -> bool:
        """See `Replay.advance`."""
        boundary = self._next_boundary()
        limit = min(boundary - self._done, self._batch.missing)
        try:
            samples = compute(replace(self.request, samples=self._done + limit), self._done)
            if samples is None or not 1 <= samples <= limit or not self._batch.add(samples, summed=True):
                return False
        finally:
            self._batch.clear_gradients()
        self._done += samples
        if self._batch.missing == 0 or self._done in self.request.traced.cuts or self.finished:
            self._batch.step(self.request.epoch)
        if self._done == self._late:
            self._move(self._left)
        return True

    def _next_boundary(self) -> int:
        boundaries = (*self.request.traced.cuts, self._late, self.request.samples)
        return min(boundary for boundary in boundaries if boundary > self._done)

    @torch.no_grad()
    def _move(self, left: Mapping[str, torch.Tensor]) -> None:
        """As the result of the epoch before moved the member's model: see `OuterRule`."""
        for name, was in left.items():
            local = self._local[name]
            local.add_(self._params.held[name].to(local.device) - was, alpha=1 - self._settings.mixing)

    def result(self) -> Replayed:
        """See `Replay.result`."""
        moved_F, local_F = torch.empty(self._layout.size_elems), torch.empty(self._layout.size_elems)
        self._layout.flatten_into({slot.name: self._params.held[slot.name] for slot in self._layout.slots}, moved_F)
        self._layout.flatten_into({slot.name: self._local[slot.name] for slot in self._layout.slots}, local_F)
        return Replayed(moved_F.sub_(local_F), self._end_distance())

    def _end_distance(self) -> float | None:
        shown = self.request.end
        if shown is None:
            return None
        with self.computing():
            return inner_distance(self._own, dict(shown.tensors()), self._params.held)
