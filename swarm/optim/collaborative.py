"""`CollaborativeOptimizer`: call it after every `backward`; the swarm takes one step of your optimizer when its target batch is full.

    opt = CollaborativeOptimizer(model, torch.optim.AdamW(model.parameters(), lr=3e-3), peer=handle, target_batch_samples=128)
    for batch in data:
        model(batch).loss.backward()
        outcome = opt.step(samples=len(batch))

`step` says what it did; nothing else of the loop changes. A helper, which computes nothing, calls `follow` instead.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from peers.averaging.trust_rules import EPOCHS_WORTH
from peers.state_snapshot import StateSnapshot
from peers.training_peer import PeerStopped, RoundOutcome, RoundStatus, TrainingPeer
from protocols.errors import ConfigError, LocalProtocolError, RemoteProtocolError, RoundError
from protocols.ids import Epoch
from protocols.progress import TargetSamples, target_at
from swarm.optim.held import snapshot_of
from swarm.optim.meter import Meter
from swarm.optim.outcome import StepOutcome, StepStatus
from swarm.optim.parts import OptimizerParts
from swarm.optim.replay import ReplayBatch
from swarm.optim.replaying import Replays
from swarm.optim.rules import make_rule
from swarm.optim.settings import GradientSettings, OuterSettings
from swarm.optim.state import StateMismatch

log = logging.getLogger(__name__)


class CollaborativeOptimizer(OptimizerParts):
    """Wraps any `torch.optim` optimizer so that a swarm trains with it together.

    By the gradient rule (`swarm.optim.gradient_rule`) the swarm takes one step of it an epoch. By the outer rule (`swarm.optim.outer_rule`)
    each member takes steps of its own, and the swarm one step of an outer optimizer on how far they led.

    Not thread-safe: use it in the thread that trains. The optimizer must not be stepped by anybody else from now on.

    Args:
        model: the model; its parameters must be the same on every member at epoch 0 (seed them alike) or be fetched.
        optimizer: over the model's parameters; its state moves with the swarm.
        peer: this member, `peers.bridge.PeerHandle` or `peers.local.LocalPeer`.
        target_batch_samples: samples of the whole swarm that close an epoch, or each of them by its number, as in the run's spec.
        rule: how, `GradientSettings` or `OuterSettings`.
        clock: monotonic seconds, for the speed that is reported.

    Raises:
        ConfigError: an optimizer that cannot be stepped the same way everywhere, or that does not belong to the model.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        peer: TrainingPeer,
        target_batch_samples: TargetSamples,
        rule: GradientSettings | OuterSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if target_at(target_batch_samples, Epoch(0)) < 1:
            raise ConfigError(f"target_batch_samples must be at least 1, not {target_at(target_batch_samples, Epoch(0))}")
        self._settings = settings = rule or GradientSettings()
        feedback = settings.feedback.make() if settings.feedback else None
        super().__init__(make_rule(model, optimizer, settings, feedback), settings, feedback)
        self._peer = peer
        self._target_samples = target_batch_samples
        self._clock = clock
        self._meter = Meter(clock)
        self._started = False
        self._replays: Replays | None = None
        self.update_s: float | None = None
        """How long it took to apply the last result, the hash of the new state included; None before the first."""

    def replay_with(self, compute: ReplayBatch) -> None:
        """From now on serve the peer's replays: compute again, between micro-batches, what other members contributed.

        Without it every replay is answered "impossible". It costs a copy of the trained parameters; `swarm.optim.replaying` says how much.

        By the outer rule, call it before the first sample, and keep micro-batches to `batch_limit`: others will replay this member too.

        With error feedback nothing changes: what few bytes have left out so far is known to nobody else.

        Args:
            compute: called in the thread that trains, while the model holds the parameters in question; see `ReplayBatch`.
        """
        if self._outgoing.feedback is None:
            self._rule.record()
            epochs = 1 + self._overlap + self._rule.recording  # many steps take long to compute again
            self._replays = Replays(self._rule, compute, epochs=epochs, clock=self._clock)

    def synchronise(self) -> StepOutcome | None:
        """Take over the swarm's state if it is ahead; the first time, announce the state held. `step` and `follow` begin with this.

        Returns:
            CAUGHT_UP or BEHIND, or None if the state held is current.

        Raises:
            PeerStopped: leave the training loop.
            ConfigError: the run's target differs from ours.
            RemoteProtocolError: the swarm's state does not fit this model.
        """
        self._check_running()
        view = self._peer.view()
        target = self._target()
        if view.target_samples not in (0, target) and view.epoch == self.epoch:
            raise ConfigError(f"the run closes an epoch at {view.target_samples} samples, not {target}: correct target_batch_samples")
        if view.behind and self._round is None:  # else its outcome says so, and there are never two rounds at once
            return self._catch_up()
        if not self._started:
            self._started = True
            self._announce()
        return None

    def step(self, samples: int, loss: float | None = None, *, summed: bool = False) -> StepOutcome:
        """Take in the gradients of one micro-batch; close the epoch if the swarm calls for it.

        Args:
            samples: of the micro-batch; each parameter's `.grad` holds the mean over them and is cleared by this call.
            loss: mean over them, for reporting; a micro-batch whose loss is not finite is left out.
            summed: `.grad` holds the sum over the samples, as after several calls of `backward` on sums.

        Raises:
            ConfigError: `samples` is below 1; or this run's members could not confirm what we contribute, and would ban us for it.
            PeerStopped: leave the training loop.
            RemoteProtocolError: the swarm's state does not fit this model.
        """
        if samples < 1:
            raise ConfigError(f"a micro-batch has at least one sample, not {samples}")
        behind = self.synchronise()
        if behind is not None:
            self.zero_grad()  # computed from a state that is no longer held
            return behind
        if self._peer.view().audited:
            self._check_auditable()
        if self._rule.samples and self._rule.samples + samples > EPOCHS_WORTH * self._target():
            self.zero_grad()
            self._report(self._working())
            return self._serve_swarm() or self._outcome(StepStatus.SURPLUS)
        lost_samples = self._take_in(samples, loss, summed=summed)
        accepted = lost_samples is None
        self._meter.add(samples, loss if accepted else None)
        self._report(self._working())
        outcome = self._serve_swarm() or self._outcome(StepStatus.ACCUMULATED if accepted else StepStatus.DROPPED)
        return outcome if lost_samples is None else replace(outcome, lost_samples=outcome.lost_samples + lost_samples)

    def _check_auditable(self) -> None:
        """Others would compute our inner steps again, and ban us if we said nothing of what they began with. Error feedback nobody audits.

        Raises:
            ConfigError: they could not confirm what we contribute.
        """
        if isinstance(self._settings, OuterSettings) and self._outgoing.feedback is None and not self._rule.recording:
            raise ConfigError("members of this run compute each other's inner steps again: call replay_with before the first step")

    def _take_in(self, samples: int, loss: float | None, *, summed: bool) -> int | None:
        """Add a micro-batch; if it is left out, return how many accumulated samples went with it."""
        before = self._rule.samples
        if loss is not None and not math.isfinite(loss):
            self._rule.drop(samples)
        elif self._rule.add(samples, summed=summed):
            return None
        log.warning(
            "micro-batch dropped, it is not finite; accumulating anew after it: epoch=%d dropped_batches=%d lost_samples=%d next_sample=%d",
            self.epoch,
            self.dropped_batches,
            before,
            self.next_sample,
        )
        return before

    def follow(self, timeout_s: float = 1.0) -> StepOutcome:
        """For a helper, which computes nothing: wait for the swarm's next call and take part with weight 0.

        Args:
            timeout_s: longest wait.

        Raises:
            PeerStopped: leave the loop.
            RemoteProtocolError: the swarm's state does not fit this model.
        """
        behind = self.synchronise()
        if behind is not None:
            return behind
        self._report("training")
        self._peer.wait_for_call(timeout_s)
        return self.synchronise() or self._serve_swarm(waits=True) or self._outcome(StepStatus.WAITED)

    def zero_grad(self) -> None:
        """Drop the gradients on the model. `step` does this by itself."""
        self._rule.clear_gradients()

    def load_snapshot(self, snapshot: StateSnapshot) -> int:
        """Take over a state and drop what was accumulated; nothing changes if it does not fit.

        Returns:
            Accumulated samples that were dropped.

        Raises:
            StateMismatch: it does not belong to this model and optimizer.
            LocalProtocolError: a round runs, whose result would be of the state held before.
        """
        if self.averaging:
            raise LocalProtocolError("a state cannot be taken over while a round runs beside computing")
        self._held.restore(snapshot)
        lost_samples = self._rule.samples + self._outgoing.forget()
        self._rule.reset(self.epoch)
        self._rule.clear_gradients()
        self._meter.new_epoch()
        if self._replays is not None:
            self._replays.forget()
        if self._started:
            self._announce()
        return lost_samples

    def take_over(self, snapshot: StateSnapshot) -> int:
        """As `load_snapshot`, with a state that the swarm holds now: we announce that we do too.

        Raises:
            StateMismatch: it does not belong to this model and optimizer.
        """
        self._started = True
        self._outgoing.drop_stale()
        return self.load_snapshot(snapshot)

    def state_dict(self) -> dict[str, object]:
        """The state as a dictionary of plain values and tensors (copies), for `torch.save`."""
        return self._held.as_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            StateMismatch: it does not belong to this model and optimizer.
        """
        self.load_snapshot(snapshot_of(state))

    def _serve_swarm(self, *, waits: bool = False) -> StepOutcome | None:
        """Do what the swarm asks for, if anything; who computes nothing waits for a round's end, and so do all without overlap."""
        if self._peer.snapshot_wanted():
            self._peer.publish_snapshot(self.snapshot())
        if self._round is not None:
            if not self._round.done():
                self._serve_replays()
                return None
            ended, self._round = self._round, None
            return self._take(ended.result())
        if not self._peer.epoch_closing():
            self._serve_replays()
        if self._peer.epoch_closing():
            return self._close_epoch(waits=waits or not self._overlap)
        return None

    def _serve_replays(self) -> None:
        """Go on with the replay that is wanted, if any, until it is done, its turn is over, or something else is wanted."""
        request = self._peer.replay_wanted()
        if request is None:
            return
        if self._replays is None:
            self._peer.publish_replay(request, None)
        elif self._replays.serve(self._peer, self.epoch, self.state_hash):
            self._meter.resume()
        self._report(self._working())

    def _working(self) -> str:
        """Phase of a member that computes."""
        return "training" if self._replays is None or self._peer.replay_wanted() is None else "auditing"

    def _close_epoch(self, *, waits: bool) -> StepOutcome | None:
        """Average with the others, and apply the result; who does not wait for it applies it in a later call."""
        self._report("averaging")
        contribution = self._outgoing.make(self.epoch, self.state_hash)
        if waits:
            outcome = self._peer.average(contribution)
            self._meter.resume()
            return self._take(outcome)
        if self._outgoing.on_its_way is None:  # else it is offered again
            self._outgoing.on_its_way = contribution
            self._rule.begin_next()
            self._meter.new_epoch()
        self._round = self._peer.start_averaging(contribution)
        return None

    def _take(self, outcome: RoundOutcome) -> StepOutcome:
        """Do what a round's end calls for."""
        if outcome.epoch != self.epoch:
            raise LocalProtocolError(f"a round closed epoch {outcome.epoch} while the trainer is in {self.epoch}")
        match outcome.status:
            case RoundStatus.APPLIED | RoundStatus.ALONE:
                return self._apply(outcome)
            case RoundStatus.BEHIND:
                return self._catch_up()
            case RoundStatus.ABORTED:
                log.warning("round aborted: epoch=%d kept_samples=%d reason=%s", self.epoch, self._epoch_samples(), outcome.reason)
                self._report("training")
                return self._outcome(StepStatus.ABORTED, reason=outcome.reason)

    def _apply(self, outcome: RoundOutcome) -> StepOutcome:
        vector = outcome.vector
        if vector is None or vector.dtype != torch.float32 or vector.shape != (self.size_elems,) or not outcome.weight > 0:
            raise LocalProtocolError("a round ended well but brought no usable vector")
        if self._replays is not None:
            self._replays.keep(self.epoch, self.state_hash)
        if self._outgoing.on_its_way is None:
            self._rule.begin_next()
            self._meter.new_epoch()
        began_s = self._clock()
        self._outgoing.settle(vector, self.epoch, included=outcome.included_us)
        stepped = self._rule.apply(vector, self.epoch)
        if not outcome.included_us:
            self._rule.left_out()
        self._held.advance(round(outcome.weight))
        self._announce()
        self.update_s = self._clock() - began_s
        if not self._overlap:
            self._meter.resume()
        if not stepped:
            log.warning("the swarm's average is not finite, no step taken: epoch=%d", self.epoch)
            return self._outcome(StepStatus.SKIPPED, outcome, "the swarm's average was not finite")
        return self._outcome(StepStatus.APPLIED if outcome.status is RoundStatus.APPLIED else StepStatus.ALONE, outcome)

    def _catch_up(self) -> StepOutcome:
        """Take over the swarm's state; what was accumulated belongs to an old one and is dropped."""
        self._report("syncing")
        if self._started and self._peer.view().epoch == self.epoch:
            self._peer.publish_snapshot(self.snapshot())  # same epoch, other bytes: only the pieces that differ need to be fetched
        old_epoch = self.epoch
        try:
            lost_samples = self.take_over(self._peer.fetch_state())
        except RoundError as error:
            log.warning("could not fetch the swarm's state: epoch=%d reason=%s", self.epoch, error)
            return self._outcome(StepStatus.BEHIND, reason=str(error))
        except StateMismatch as error:
            raise RemoteProtocolError(None, f"the swarm's state does not fit this model: {error}") from error
        finally:
            self._meter.resume()
        log.info("caught up: epoch=%d was=%d lost_samples=%d", self.epoch, old_epoch, lost_samples)
        return StepOutcome(StepStatus.CAUGHT_UP, self.epoch, 0, lost_samples=lost_samples, reason="the swarm was ahead")

    def _announce(self) -> None:
        self._peer.announce_epoch(self.epoch, self.state_hash, self._held.accepted_samples)
        self._report("training")

    def _report(self, phase: str) -> None:
        self._peer.report(self._epoch_samples(), self._meter.samples_per_s, self._meter.loss, phase)

    def _epoch_samples(self) -> int:
        """Samples towards the end of the epoch that is held: all that we have, unless a round is about to close it with what we brought."""
        sent = self._outgoing.on_its_way
        if sent is None:
            return self._rule.samples
        return round(sent.weight) + (0 if self.averaging else self._rule.samples)

    def _target(self) -> int:
        return target_at(self._target_samples, self.epoch)

    def _check_running(self) -> None:
        if self._peer.stopping():
            raise PeerStopped("the peer is stopping")

    def _outcome(self, status: StepStatus, outcome: RoundOutcome | None = None, reason: str = "") -> StepOutcome:
        weight, contributors = (outcome.weight, outcome.contributors) if outcome else (0.0, ())
        return StepOutcome(status, self.epoch, self._rule.samples, weight, contributors, reason=reason)
