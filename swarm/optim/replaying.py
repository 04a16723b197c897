"""Computing again what another member contributed (an *audit*), between this member's own micro-batches.

A contribution is the mean gradient over samples that anybody can draw, at parameters that every member held. Contributions are judged once
their epoch has closed, so the parameters of the last epochs are kept here; how samples are drawn and computed is the hook's matter.

Memory, in fp32 on the CPU, for D trained elements: 4 D bytes always, up to `AUDITABLE_EPOCHS` times that where epochs are shorter than
`AUDIT_WITHIN_S`; 8 D more while a replay is under way, and 4 D for what each comes to, as long as its epoch can be looked into;
4 D more if it began before all that is kept now.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from peers.training_peer import ReplayRequest, TrainingPeer
from protocols.ids import Epoch
from protocols.layout import FlatLayout
from protocols.trust.audits import AUDIT_WITHIN_S, AUDITABLE_EPOCHS
from swarm.optim.accumulator import GradientAccumulator
from swarm.optim.master import MasterParams

log = logging.getLogger(__name__)

BATCHES_A_TURN = 4
"""Micro-batches of a replay for each of our own: whoever asks for long replays cannot keep us from contributing."""

ReplayBatch = Callable[[ReplayRequest, int], int | None]
"""Compute some of a request's samples on the model as it is now.

Receives the request and how many of its samples are done. Adds the *sum* of the next samples' gradients to every `.grad` and returns how
many they were, at least 1; None if they cannot be computed."""


@dataclass(frozen=True, slots=True)
class _Kept:
    epoch: Epoch
    state_hash: bytes
    params: Mapping[str, torch.Tensor]
    since_s: float


@dataclass(slots=True)
class _Running:
    """A replay that has begun; `params` is None as long as the model itself holds them."""

    request: ReplayRequest
    params: Mapping[str, torch.Tensor] | None
    sum: GradientAccumulator

    @property
    def finished(self) -> bool:
        return self.sum.samples >= self.request.samples


class Replays:
    """Serves the replays that a peer wants, a few micro-batches at a time.

    Args:
        masters: parameters of the model.
        layout: of the vectors that are contributed.
        compute: see `ReplayBatch`.
        clock: monotonic seconds.
    """

    def __init__(
        self, masters: MasterParams, layout: FlatLayout, compute: ReplayBatch, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._masters = masters
        self._layout = layout
        self._compute = compute
        self._clock = clock
        self._kept: deque[_Kept] = deque()
        self._running: _Running | None = None

    def keep(self, epoch: Epoch, state_hash: bytes) -> None:
        """Remember the trained parameters as they are; call it before the step that closes `epoch`. What nobody asks about is forgotten."""
        running, now_s, spare = self._running, self._clock(), None
        while self._kept and (len(self._kept) >= AUDITABLE_EPOCHS or now_s - self._kept[0].since_s > AUDIT_WITHIN_S):
            spare = self._kept.popleft().params
        if running is not None and running.params is spare:
            spare = None  # still needed by a replay that has lasted longer than it is kept
        kept = _Kept(epoch, state_hash, self._masters.copy_trained(spare), now_s)
        self._kept.append(kept)
        if running is not None and running.params is None:
            running.params = kept.params

    def forget(self) -> None:
        """Forget everything; call it when another state is taken over."""
        self._kept.clear()
        self._running = None

    def serve(self, peer: TrainingPeer, epoch: Epoch, state_hash: bytes) -> bool:
        """Go on with the oldest replay that is wanted: at most `BATCHES_A_TURN` micro-batches, and no further once the peer calls.

        The model's parameters are the same bits afterwards, also if the hook raises; gradients are cleared if anything was computed.

        Args:
            peer: asks, and receives the results.
            epoch, state_hash: of the state that the model holds now.

        Returns:
            Whether anything was computed.
        """
        running = self._next(peer, epoch, state_hash)
        if running is None or _called_away(peer):
            return False
        request = running.request
        ours = nullcontext() if running.params is None else self._masters.replaced_by(running.params)
        possible = True
        with ours:
            for _ in range(BATCHES_A_TURN):
                possible = self._advance(running)
                if not possible or running.finished or _called_away(peer) or peer.replay_wanted() != request:
                    break
        if not possible or running.finished:
            self._running = None
            peer.publish_replay(request, running.sum.mean() if possible else None)
        return True

    def _next(self, peer: TrainingPeer, epoch: Epoch, state_hash: bytes) -> _Running | None:
        """The replay to go on with; those that are impossible are answered."""
        while (request := peer.replay_wanted()) is not None:
            if self._running is not None and self._running.request == request:
                return self._running
            self._running = self._begin(request, epoch, state_hash)
            if self._running is not None:
                return self._running
            log.info("replay impossible: peer=%s epoch=%d held_epoch=%d", request.peer, request.epoch, epoch)
            peer.publish_replay(request, None)
        self._running = None
        return None

    def _begin(self, request: ReplayRequest, epoch: Epoch, state_hash: bytes) -> _Running | None:
        wanted = (request.epoch, request.state_hash)
        if request.samples < 1 or request.first_sample < 0:
            return None
        if wanted == (epoch, state_hash):
            return _Running(request, None, GradientAccumulator(self._layout))
        kept = next((kept for kept in self._kept if wanted == (kept.epoch, kept.state_hash)), None)
        return _Running(request, kept.params, GradientAccumulator(self._layout)) if kept else None

    def _advance(self, running: _Running) -> bool:
        """One micro-batch. False if it cannot be computed or is not finite, as on other hardware it may have been: nobody is accused."""
        try:
            samples = self._compute(running.request, running.sum.samples)
            return samples is not None and running.sum.add(self._masters.gradients(), samples, summed=True)
        finally:
            self._masters.clear_gradients()


def _called_away(peer: TrainingPeer) -> bool:
    """Whether something is wanted that cannot wait for a replay."""
    return peer.stopping() or peer.epoch_closing() or peer.snapshot_wanted() or peer.view().behind
