"""One peer process, put together: identity and lock, network thread, model and data, trainer.

Read `_train`: it goes from the first import to the last checkpoint, in order. `swarm.connection` has the lock, the identity and the
network thread, `swarm.signals` what Ctrl-C does.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from peers.training_peer import PeerStopped
from protocols.errors import ConfigError
from protocols.ids import Epoch
from protocols.issuing import Issuer
from protocols.runspec import RunSpec, SignedRunSpec, learning_rate, target_samples
from swarm.config import PeerConfig
from swarm.connection import LEAVE_WITHIN_S, Connection, connect, found
from swarm.models.imports import import_libraries
from swarm.monitoring.reporter import Describes, Measured, StatusReporter
from swarm.monitoring.status import EpochHash
from swarm.signals import Leaving, leaving_on_signals

if TYPE_CHECKING:
    import torch

    from swarm.data.dataset import Dataset
    from swarm.optim.collaborative import CollaborativeOptimizer
    from swarm.optim.inner import InnerMemory
    from swarm.optim.outcome import StepOutcome
    from swarm.optim.settings import GradientSettings
    from swarm.training.trainer import Trainer

log = logging.getLogger(__name__)

Beside = Callable[[Connection, "Trainer"], AbstractContextManager[None]]
"""Something that runs while a trainer does."""

EVALUATE_EVERY_EPOCHS = {"helper": 5, "trainer": 25, "client": 25}
"""A helper has time to spare; trainers measure so that the curve goes on without it."""


def run_volunteer(config: PeerConfig, link: str, *, attack: str | None = None, beside: Beside | None = None) -> None:
    """Join a run by an invite and train until it ends or a signal comes.

    Args:
        config: ours.
        link: the invite.
        attack: of `peers.attacks.lone.LONE_ATTACKS`, for demonstrations: this member then attacks and is banned.
        beside: open while the trainer runs.

    Raises:
        UserError: whatever the person at this machine can mend.
    """
    with leaving_on_signals() as leaving, _attacking(link, config, attack) if attack else connect(link, config) as connection:
        _train(connection, leaving, measure_first=False, beside=beside)


def _attacking(link: str, config: PeerConfig, attack: str) -> AbstractContextManager[Connection]:
    from peers.attacks.lone import lone_attacker

    return connect(link, config, lambda me: lone_attacker(attack, me))


def run_coordinator(
    config: PeerConfig, signed: SignedRunSpec, authority: Issuer, *, train: bool, invite_sink: Callable[[str], None]
) -> None:
    """Found a run, or go on with it, and help (or train) until it ends or a signal comes.

    Args:
        config: ours.
        signed, authority: of the run.
        train: compute too.
        invite_sink: called once with an invite when others can join.

    Raises:
        UserError: whatever the person at this machine can mend.
    """
    config = config.model_copy(update={"probe": False} if train else {"probe": False, "role": "helper"})
    with leaving_on_signals() as leaving, found(config, signed, authority, invite_sink) as connection:
        _train(connection, leaving, measure_first=True)


def _train(connection: Connection, leaving: Leaving, *, measure_first: bool, beside: Beside | None = None) -> None:
    """From the first import to the last checkpoint, in order.

    Args:
        connection: just opened; the network side comes up while we import and build.
        leaving: what signals do.
        measure_first: measure the held-out loss before the first step: the founder's baseline, which a newcomer need not wait for.
        beside: open while the trainer runs.
    """
    config = connection.config
    with suppress(PeerStopped):
        import_libraries(connection.check)
        connection.check()
        measured = Measured()
        trainer = _make_trainer(connection, measured, measure_first=measure_first)
        reporter = StatusReporter(config.status_path, _about(connection), connection.handle, measured, lambda: trainer.samples_total)
        reporter.start()
        try:
            with leaving.by(connection.network.request_stop):
                with _at_low_priority(config.niceness), beside(connection, trainer) if beside else nullcontext():
                    trainer.run()
                connection.network.stop(LEAVE_WITHIN_S)
        finally:
            reporter.stop()


def _about(connection: Connection) -> Describes:
    signed, online = connection.signed_spec, connection.online
    return Describes(
        signed.spec.run.name, str(signed.run_id), connection.peer, connection.config.role, online.libp2p_addresses, online.data_address
    )


def _make_trainer(connection: Connection, measured: Measured, *, measure_first: bool) -> Trainer:
    """Model, data and optimizer of the run, on our device."""
    import torch

    from swarm.checkpoint.store import CheckpointStore
    from swarm.models.build import build_model
    from swarm.models.recompute import recompute_activations
    from swarm.optim.collaborative import CollaborativeOptimizer
    from swarm.optim.inner import InnerMemory
    from swarm.runfile import open_dataset
    from swarm.training.probe import choose_device
    from swarm.training.trainer import EpochAction, Trainer, TrainerSettings

    config, spec = connection.config, connection.spec
    if config.threads:
        torch.set_num_threads(config.threads)
    helper = config.role == "helper"
    device = choose_device("cpu" if helper else config.device)
    dataset = open_dataset(spec, Path.cwd())
    model = build_model(spec.model.model_dump(exclude_none=True), spec.run.seed).to(device)
    if config.recompute_activations and not helper:
        recompute_activations(model)
    memory = InnerMemory() if helper else InnerMemory(config.optimizer_states, config.offload_optimizer)
    optimizer = CollaborativeOptimizer(
        model,
        make_optimizer(spec, model, memory),
        peer=connection.handle,
        target_batch_samples=partial(target_samples, spec),
        rule=rule_settings(spec),
    )
    micro_batch = config.micro_batch_samples or (1 if helper else _probed(model, spec, memory))
    limits = [limit for limit in (config.max_epochs, spec.schedule.total_epochs) if limit]
    settings = TrainerSettings(
        connection.peer,
        spec.run.seed,
        max(1, min(micro_batch, spec.optimizer.target_batch_samples // 4)),
        helper=helper,
        replays=spec.trust.verify and spec.trust.auditors > 0,
        checkpoint_every_epochs=config.checkpoint_every_epochs,
        max_epochs=min(limits),
    )
    evaluate = _evaluation(optimizer, model, dataset, measured)
    remember = _remembering(optimizer, measured)
    actions = (EpochAction(1, remember), EpochAction(EVALUATE_EVERY_EPOCHS[config.role], evaluate))
    store = CheckpointStore(config.checkpoints_dir, config.checkpoints_kept)
    trainer = Trainer(model, optimizer, connection.handle, dataset, store, settings, actions)
    if measure_first:
        trainer.load_newest_checkpoint()
        evaluate(None)
    return trainer


def rule_settings(spec: RunSpec) -> GradientSettings:
    """How a spec has members update the model."""
    from swarm.optim.settings import FeedbackSettings, GradientSettings, OuterSettings

    def rate(epoch: int) -> float:
        return learning_rate(spec, Epoch(epoch))

    clip_norm, averaging, outer = spec.optimizer.grad_clip_norm, spec.averaging, spec.outer
    overlap, decay = averaging.overlap, averaging.error_feedback
    feedback = FeedbackSettings(averaging.codec, averaging.block_elems, decay, averaging.step_ahead) if decay else None
    if spec.optimizer.rule == "gradient":
        return GradientSettings(learning_rate=rate, grad_clip_norm=clip_norm, overlap=overlap, feedback=feedback)
    return OuterSettings(
        learning_rate=rate,
        grad_clip_norm=clip_norm,
        overlap=overlap,
        feedback=feedback,
        inner_batch_samples=outer.inner_batch_samples,
        optimizer=outer.optimizer,
        outer_learning_rate=outer.learning_rate,
        momentum=outer.momentum,
        beta2=outer.beta2,
        eps=outer.eps,
        fragments=outer.fragments,
        mixing=outer.mixing,
    )


def make_optimizer(spec: RunSpec, model: torch.nn.Module, memory: InnerMemory | None = None) -> torch.optim.Optimizer:
    """The optimizer that a spec names, over a model's parameters.

    Args:
        spec: of the run.
        model: on the device that computes.
        memory: how this member keeps its states, by the outer rule; by the gradient rule they are in main memory, alike on all members.

    Raises:
        ConfigError, UserError: as `swarm.optim.inner.inner_optimizer`; or 8-bit states by the gradient rule.
    """
    from swarm.optim.inner import PLAIN, inner_optimizer

    memory = memory or PLAIN
    if spec.optimizer.rule == "gradient":
        if memory.states != "fp32":
            raise ConfigError(
                "In this run the optimizer's states are the swarm's, the same bytes on all members, and in main memory: leave out"
                " --optimizer-states 8bit, which is for runs with the outer rule."
            )
        memory = PLAIN
    if memory.states != "fp32" and spec.trust.verify and spec.trust.auditors > 0:
        raise ConfigError(
            "In this run members compute each other's inner steps again, which nobody could with states rounded to 8 bits: leave out"
            " --optimizer-states 8bit, and use --offload-optimizer, which saves more of the device's memory."
        )
    return inner_optimizer(spec.optimizer, model.parameters(), memory)


def _probed(model: torch.nn.Module, spec: RunSpec, memory: InnerMemory) -> int:
    """The micro-batch, with room for what the inner optimizer will need on the device."""
    from protocols.planning.memory import Saving, kept_bytes
    from swarm.optim.inner import trained_by
    from swarm.training.probe import probe_micro_batch

    reserved_bytes = 0
    if spec.optimizer.rule == "outer":
        trained = trained_by(spec, [parameter.numel() for parameter in model.parameters()])
        reserved_bytes = kept_bytes(trained, Saving(states=memory.states, offload=memory.offload), spec.outer.inner_batch_samples)
    return probe_micro_batch(model, spec.data.sequence_length, reserved_bytes).micro_batch_samples


def _evaluation(
    optimizer: CollaborativeOptimizer, model: torch.nn.Module, dataset: Dataset, measured: Measured
) -> Callable[[StepOutcome | None], None]:
    from swarm.training.evaluation import held_out_loss

    def evaluate(outcome: StepOutcome | None) -> None:
        with optimizer.shared_parameters():
            measured.eval_loss = held_out_loss(model, dataset)
        log.info("held-out loss: epoch=%d loss=%.4f", outcome.epoch if outcome else optimizer.epoch, measured.eval_loss)

    return evaluate


def _remembering(optimizer: CollaborativeOptimizer, measured: Measured) -> Callable[[StepOutcome], None]:
    def remember(outcome: StepOutcome) -> None:
        measured.hashes.append(EpochHash(outcome.epoch, optimizer.state_hash.hex()))
        measured.last_error = outcome.reason

    return remember


@contextmanager
def _at_low_priority(niceness: int) -> Iterator[None]:
    """Lower this thread's priority (Linux: of the thread alone), so that the network thread and the rest of the machine go first."""
    own_thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, own_thread)
    os.setpriority(os.PRIO_PROCESS, own_thread, max(before, niceness))
    try:
        yield
    finally:
        try:
            os.setpriority(os.PRIO_PROCESS, own_thread, before)
        except PermissionError:
            log.debug("priority stays lowered")
