"""The *outer* sync rule (DiLoCo, arXiv 2311.08105): contribute how far many steps of one's own led, take one outer step on the average.

    every micro-batch    its gradient joins the inner batch; a full one is a step of the inner optimizer on the model
    contribution         D = anchor - local, of the fragment whose turn it is; weighted by samples, however many inner steps they made
    apply                the outer optimizer steps the anchor by the average of D; the model follows (`_follow`)

How many inner steps an epoch has (H) follows from each member's speed: the epoch ends for all at once, when the swarm has its samples.

With fragments (Streaming DiLoCo, arXiv 2501.18512) the epochs take turns, so each fragment is averaged every P epochs.

Inner optimizer and model are a member's own. Anchor and outer optimizer are the swarm's, on the CPU, and every operation on them is
elementwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from peers.training_peer import Contribution, ReplayRequest
from protocols.errors import ConfigError
from protocols.ids import Epoch
from protocols.layout import FlatLayout
from protocols.trust.traced import MAX_CUTS
from swarm.optim.anchor import Anchor
from swarm.optim.feedback import ErrorFeedback
from swarm.optim.fragments import fragment_at, fragments_of
from swarm.optim.inner_batch import InnerBatch
from swarm.optim.inner_record import InnerRecord
from swarm.optim.outer_optimizers import outer_optimizer
from swarm.optim.outer_replay import OuterReplay
from swarm.optim.replay import ReplayParams
from swarm.optim.rule import OwnParams
from swarm.optim.settings import OuterSettings


@dataclass(frozen=True, slots=True)
class _Sent:
    """What the contribution on its way was made of."""

    layout: FlatLayout
    local_F: torch.Tensor
    """The fragment as it was on this member, flat."""
    steps: int
    """Inner steps made since the beginning, when it was made."""


class OuterRule:
    """Implements `swarm.optim.rule.SyncRule`.

    Args:
        model: on the device that computes.
        inner: over the model's own parameters; stepped on their device, by nobody else from now on.
        settings: see `OuterSettings`.
        feedback: says how far ahead of the anchor the model starts; None: it starts from the anchor.

    Raises:
        ConfigError: settings or an optimizer that cannot be used.
    """

    name = "outer"

    def __init__(
        self, model: torch.nn.Module, inner: torch.optim.Optimizer, settings: OuterSettings, feedback: ErrorFeedback | None = None
    ) -> None:
        self.shared = Anchor(model, inner)
        if any(param.dtype != torch.float32 for param in self.shared.local_trained.values()):
            raise ConfigError("by the outer rule trained parameters are fp32, or small steps would be lost; compute in bf16 by autocast")
        self._settings = settings
        self._feedback = feedback
        self.own = OwnParams(self.shared.local_trained, inner)
        self._batch = InnerBatch(self.shared.local_trained, inner, settings)
        trained = self.shared.trained
        self.optimizer = outer_optimizer(trained.values(), settings)
        self._layouts = tuple(FlatLayout.of((name, trained[name]) for name in names) for names in fragments_of(trained, settings.fragments))
        self._epoch = Epoch(0)
        self._samples = 0
        self._first_sample = 0
        self._carried_samples = 0
        self._dropped_batches = 0
        self._sent: _Sent | None = None
        self._late_samples = 0
        self._cuts: list[int] = []
        self._record: InnerRecord | None = None

    @property
    def samples(self) -> int:
        """Samples computed for the next contribution, those before a restart included."""
        return self._carried_samples + self._samples

    @property
    def next_sample(self) -> int:
        """Index of the sample that comes next in this epoch: those taken in and those left out before it."""
        return self._first_sample + self._samples

    @property
    def dropped_batches(self) -> int:
        """Micro-batches left out since the beginning because they were not finite."""
        return self._dropped_batches

    @property
    def batch_limit(self) -> int | None:
        """Samples missing in the inner batch."""
        return self._batch.missing

    def turn(self, epoch: Epoch) -> int:
        """Number of the fragment."""
        return fragment_at(epoch, len(self._layouts))

    def layout(self, epoch: Epoch) -> FlatLayout:
        """That of the fragment whose turn it is."""
        return self._layouts[self.turn(epoch)]

    def add(self, samples: int, *, summed: bool = False) -> bool:
        """See `SyncRule.add`. A full inner batch is stepped at once.

        Raises:
            ConfigError: more samples than `batch_limit`, by a member that can be audited.
        """
        if self._record is not None and samples > self._batch.missing:
            raise ConfigError(f"who can be audited keeps to batch_limit: {samples} samples, where {self._batch.missing} are missing")
        if not self._batch.add(samples, summed=summed):
            self.drop(samples)
            return False
        self._samples += samples
        if self._batch.missing == 0:
            self._batch.step(self._epoch)
        return True

    def drop(self, samples: int) -> None:
        """Go back to the anchor: whoever computes again what a member did since then needs all of it, and this was not finite."""
        self._dropped_batches += 1
        self._start_anew()
        self._first_sample += samples

    def clear_gradients(self) -> None:
        """Drop what `backward` left on the model."""
        self._batch.clear_gradients()

    def contribution(self, epoch: Epoch, state_hash: bytes) -> Contribution:
        """How far the fragment's parameters have moved. An inner batch that has begun is stepped, its rate in proportion to its samples."""
        if self._batch.pending:
            self._cuts.append(self._samples)
        if len(self._cuts) > MAX_CUTS and self._record is not None:
            self._start_anew()
        self._batch.step(self._epoch)
        layout = self.layout(epoch)
        local_F = torch.empty(layout.size_elems)
        layout.flatten_into(self.shared.local_trained, local_F)
        moved_F = torch.empty(layout.size_elems)
        layout.flatten_into(self.shared.trained, moved_F)
        moved_F.sub_(local_F)
        if not bool(torch.isfinite(moved_F).all()):
            self.drop(0)
            moved_F.zero_()
            layout.flatten_into(self.shared.local_trained, local_F)
        self._sent = _Sent(layout, local_F, self._batch.steps)
        inner = self._record.end(epoch) if self._record is not None and self.samples else None
        if inner is not None:
            inner = replace(inner, cuts=tuple(cut for cut in self._cuts if cut < self._samples))
        return Contribution(epoch, moved_F, float(self.samples), state_hash, self._first_sample, self._late_samples, inner)

    def record(self) -> None:
        """See `SyncRule.record`."""
        if self._record is None:
            self._record = InnerRecord(self.own, with_params=self._settings.keeps_own_params)
            self._record.begin_anew()

    @property
    def recording(self) -> bool:
        """See `SyncRule.recording`."""
        return self._record is not None

    def replay(self, request: ReplayRequest, params: ReplayParams) -> OuterReplay:
        """See `SyncRule.replay`."""
        layouts = self.layout(Epoch(max(request.epoch - 1, 0))), self.layout(request.epoch)
        return OuterReplay(request, params, self.shared, self.own, self._settings, self._batch.rates, layouts)

    def begin_next(self) -> None:
        """See `SyncRule.begin_next`."""
        self._samples = self._first_sample = self._carried_samples = self._late_samples = 0
        self._cuts = []
        self._epoch = Epoch(self._epoch + 1)
        if self._record is not None and not self._record.go_on():
            self._start_anew()

    @torch.no_grad()
    def apply(self, average_D: torch.Tensor, epoch: Epoch) -> bool:
        """See `SyncRule.apply`.

        The model follows whether its contribution counted or not: what was in vain is lost; it would come again when others have done it.
        """
        self._epoch = Epoch(epoch + 1)
        self._late_samples = self._samples
        sent, self._sent = self._sent, None
        if not math.isfinite(float(average_D.sum())) and not bool(torch.isfinite(average_D).all()):
            self._start_anew()  # what made it so may be ours
            return False
        layout = self.layout(epoch)
        anchors = {slot.name: self.shared.trained[slot.name] for slot in layout.slots}
        for name, part in layout.views(average_D).items():
            anchors[name].grad = part.clone()  # torch's SGD writes to the gradient when it has weight decay or momentum
        self.optimizer.step()
        for name, anchor in anchors.items():
            anchor.grad = None
            if not bool(torch.isfinite(anchor).all()):
                raise ConfigError(f"the outer step has made {name} infinite: the run has diverged, and needs a lower outer.learning_rate")
        if sent is None:
            self._become(layout)
        else:
            self._follow(sent)
        if self._record is not None and self._record.anew and not self._samples:
            self.shared.write_back()  # whoever began anew begins at the anchor, also where mixing would have left it between two
        return True

    def left_out(self) -> None:
        """See `SyncRule.left_out`. Who can be audited begins anew: nobody can tell what it would go on from."""
        if self._record is not None:
            self._start_anew()

    def _follow(self, sent: _Sent) -> None:
        """Bring the model to where the anchor is now, or ahead of it.

        Streaming DiLoCo mixes both, alpha x local + (1 - alpha) x anchor, and thereby forgets a part of the steps that were made since the
        contribution. Here the model keeps those: it is moved by (1 - alpha) x (anchor - where it was when it contributed).
        """
        alpha = self._settings.mixing
        if self._batch.steps == sent.steps and not alpha:
            self._become(sent.layout)  # to the last bit, which sums would miss
            return
        lefts = sent.layout.views(sent.local_F)
        for name, start in self._starts(sent.layout).items():
            local = self.shared.local[name]
            local.add_((start - lefts[name]).to(local.device, local.dtype), alpha=1 - alpha)

    @torch.no_grad()
    def _become(self, layout: FlatLayout) -> None:
        for name, start in self._starts(layout).items():
            self.shared.local[name].copy_(start)

    def _starts(self, layout: FlatLayout) -> dict[str, torch.Tensor]:
        """Where members compute from: the anchor, or ahead of it (`swarm.optim.feedback`)."""
        anchors = {slot.name: self.shared.trained[slot.name] for slot in layout.slots}
        ahead_F = None if self._feedback is None else self._feedback.ahead(self._layouts.index(layout))
        if ahead_F is None:
            return anchors
        return {name: anchors[name] - part for name, part in layout.views(ahead_F).items()}

    def resume(self, samples: int, next_sample: int) -> None:
        """See `SyncRule.resume`."""
        self._carried_samples, self._first_sample = samples, next_sample

    def reset(self, epoch: Epoch) -> None:
        """See `SyncRule.reset`: the model starts from the anchor.

        The inner optimizer keeps its state, which still fits roughly; where members can be audited it begins anew.
        """
        self._epoch = epoch
        self._sent = None
        self._start_anew()
        if self._record is not None:
            self._record.take_over()
        self._first_sample = 0

    def _start_anew(self) -> None:
        """Back to the anchor; samples that were computed are not drawn again."""
        self._first_sample += self._samples
        self._samples = self._carried_samples = self._late_samples = 0
        self._cuts = []
        self._batch.forget()
        if self._record is not None:
            self._record.begin_anew()
        self.shared.write_back()
        for layout in self._layouts if self._feedback is not None else ():
            self._become(layout)
        if self._sent is not None:  # what is on its way is no longer in the model
            self._sent.layout.flatten_into(self.shared.local_trained, self._sent.local_F)
