"""Computing again what another member contributed (an *audit*), between this member's own micro-batches.

A contribution comes from samples that anybody can draw, computed at parameters that every member held. Contributions are judged once
their epoch has closed, so the parameters of the last epochs are kept here; how a contribution is computed is the sync rule's matter
(`swarm.optim.replay`), and how samples are drawn is the hook's.

Memory, in fp32 on the CPU, for D trained elements: 4 D bytes always, as much again with overlap and by the outer rule, up to
`AUDITABLE_EPOCHS` times that where epochs are shorter than `AUDIT_WITHIN_S`; 8 D more while a replay is under way, and 4 D for what each
comes to, as long as its epoch can be looked into; 4 D more if it began before all that is kept now. By the outer rule with Adam a replay
takes 16 D.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from peers.training_peer import ReplayRequest, TrainingPeer
from protocols.ids import Epoch
from protocols.trust.audits import AUDIT_WITHIN_S, AUDITABLE_EPOCHS
from swarm.optim.replay import Replay, ReplayBatch, ReplayParams
from swarm.optim.rule import SyncRule
from swarm.optim.state import StateMismatch

log = logging.getLogger(__name__)

BATCHES_A_TURN = 4
"""Micro-batches of a replay for each of our own: whoever asks for long replays cannot keep us from contributing."""


@dataclass(frozen=True, slots=True)
class _Kept:
    epoch: Epoch
    state_hash: bytes
    params: Mapping[str, torch.Tensor]
    since_s: float


@dataclass(slots=True)
class _Running:
    """A replay that has begun. `live`: the parameters that it goes by are those that are held now."""

    replay: Replay
    params: ReplayParams
    live: bool


class Replays:
    """Serves the replays that a peer wants, a few micro-batches at a time.

    Args:
        rule: computes them.
        compute: see `ReplayBatch`.
        epochs: of which parameters are kept however long epochs are; 2 where contributions take those of the epoch before as well.
        clock: monotonic seconds.
    """

    def __init__(self, rule: SyncRule, compute: ReplayBatch, *, epochs: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._rule = rule
        self._compute = compute
        self._epochs = epochs
        self._clock = clock
        self._kept: deque[_Kept] = deque()
        self._running: _Running | None = None

    def keep(self, epoch: Epoch, state_hash: bytes) -> None:
        """Remember the trained parameters as they are; call it before the step that closes `epoch`. What nobody asks about is forgotten."""
        running, now_s, spare = self._running, self._clock(), None
        while len(self._kept) >= self._epochs and (len(self._kept) >= AUDITABLE_EPOCHS or self._is_old(self._kept[0], now_s)):
            spare = self._kept.popleft().params
        if running is not None and (spare is running.params.held or spare is running.params.before):
            spare = None  # still needed by a replay that has lasted longer than it is kept
        kept = _Kept(epoch, state_hash, _copied(self._rule.shared.trained, spare), now_s)
        self._kept.append(kept)
        if running is not None and running.live:
            running.params.held, running.live = kept.params, False

    @staticmethod
    def _is_old(kept: _Kept, now_s: float) -> bool:
        return now_s - kept.since_s > AUDIT_WITHIN_S

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
        replay, left, possible = running.replay, BATCHES_A_TURN, True
        while left and possible and not replay.finished:
            with replay.computing():
                while left and possible and not replay.finished:
                    possible, left = replay.advance(self._compute), left - 1
                    if _called_away(peer) or peer.replay_wanted() != replay.request:
                        left = 0
                    if replay.moves:
                        break
        if not possible or replay.finished:
            self._running = None
            peer.publish_replay(replay.request, replay.result() if possible else None)
        return True

    def _next(self, peer: TrainingPeer, epoch: Epoch, state_hash: bytes) -> _Running | None:
        """The replay to go on with; those that are impossible are answered."""
        while (request := peer.replay_wanted()) is not None:
            if self._running is not None and self._running.replay.request == request:
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
        if request.samples < 1 or request.first_sample < 0 or request.traced.late_samples > request.samples:
            return None
        live = wanted == (epoch, state_hash)
        held = (
            self._rule.shared.trained
            if live
            else next((kept.params for kept in self._kept if wanted == (kept.epoch, kept.state_hash)), None)
        )
        if held is None:
            return None
        before = next((kept.params for kept in self._kept if kept.epoch == request.epoch - 1), None)
        params = ReplayParams(held, before)
        try:
            return _Running(self._rule.replay(request, params), params, live)
        except StateMismatch as mismatch:
            log.info("replay impossible: %s", mismatch)
            return None


@torch.no_grad()
def _copied(params: Mapping[str, torch.Tensor], into: Mapping[str, torch.Tensor] | None) -> Mapping[str, torch.Tensor]:
    """A copy, in an earlier copy if there is one to be overwritten."""
    if into is None:
        return {name: param.detach().clone() for name, param in params.items()}
    for name, param in params.items():
        into[name].copy_(param)
    return into


def _called_away(peer: TrainingPeer) -> bool:
    """Whether something is wanted that cannot wait for a replay."""
    return peer.stopping() or peer.epoch_closing() or peer.snapshot_wanted() or peer.view().behind
