"""What a member alone has, as named tensors to keep on its own disk: so that it goes on after a restart where it was.

    param/<parameter>          the model where it is, between two averages
    optim/<parameter>/<key>    the inner optimizer's tensors of that parameter
    feedback/<number>          what few bytes have left out so far
    meta                       format and rule, samples computed since the last average, and the hash of the shared state that all goes with

The gradient rule has nothing but feedback of its own. Nobody else needs any of it, and it never travels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from peers.state_snapshot import StateSnapshot
from protocols.ids import Epoch
from swarm.optim.feedback import ErrorFeedback
from swarm.optim.rule import OwnParams, SyncRule
from swarm.optim.state import StateMismatch

FORMAT = 1


def own_snapshot(rule: SyncRule, feedback: ErrorFeedback | None, epoch: Epoch, state_hash: bytes) -> StateSnapshot | None:
    """A copy of it; None if there is nothing.

    Args:
        rule, feedback: whose.
        epoch, state_hash: of the shared state that it goes with.
    """
    named: list[tuple[str, torch.Tensor]] = []
    own = rule.own
    if own is not None:
        named += own_tensors(own)
    if feedback is not None:
        named += [(f"feedback/{key}", kept_F) for key, kept_F in sorted(feedback.kept.items())]
    if not named:
        return None
    meta: dict[str, object] = {"format": FORMAT, "rule": rule.name, "state": state_hash.hex()}
    meta |= {"samples": rule.samples, "next_sample": rule.next_sample, "optimizer": type(own.optimizer).__name__ if own else ""}
    return StateSnapshot.of(named, epoch=epoch, accepted_samples=0, meta=meta)


def own_tensors(own: OwnParams, *, with_params: bool = True) -> list[tuple[str, torch.Tensor]]:
    """The model and the inner optimizer as named tensors on the CPU, not always copies; or the optimizer alone."""
    named: list[tuple[str, torch.Tensor]] = []
    for name, param in own.params.items():
        if with_params:
            named.append((f"param/{name}", param.detach().cpu()))
        kept = own.optimizer.state.get(param, {})
        named += [(f"optim/{name}/{key}", value.cpu()) for key, value in sorted(kept.items()) if isinstance(value, torch.Tensor)]
    return named


def inner_snapshot(named: Sequence[tuple[str, torch.Tensor]], epoch: Epoch) -> StateSnapshot:
    """What auditors ask for: those tensors after a contribution to an epoch."""
    return StateSnapshot.of(named, epoch=epoch, accepted_samples=0, meta={"format": FORMAT})


def put_states(own: OwnParams, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put what `own_tensors` gave of the optimizer into it.

    Raises:
        StateMismatch: it is of another model, or holds a value that is not finite; nothing has changed.
    """
    states: dict[str, dict[str, torch.Tensor]] = {name: {} for name in own.params}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.removeprefix("optim/").rpartition("/")
        fits = name in own.params and (tensor.dim() == 0 or tensor.shape == own.params[name].shape)
        if not fits or not bool(torch.isfinite(tensor).all()):
            raise StateMismatch(f"an inner state that does not fit: {full_name[:120]!r}")
        states[name][key] = tensor
    for name, param in own.params.items():
        if states[name]:  # step counts stay on the CPU, where torch's optimizers have them
            own.optimizer.state[param] = {k: v.to(param.device) if v.dim() else v.clone() for k, v in states[name].items()}


def restore_own(rule: SyncRule, feedback: ErrorFeedback | None, state_hash: bytes, snapshot: StateSnapshot) -> None:
    """Take it over again. Where the shared state is another one by now, only the inner optimizer is: the rest may have been sent since.

    Args:
        rule, feedback: whose.
        state_hash: of the shared state that is held.
        snapshot: what `own_snapshot` gave.

    Raises:
        StateMismatch: it is of another model, optimizer or rule, or damaged; nothing has changed.
    """
    meta = snapshot.manifest.meta
    optimizer = type(rule.own.optimizer).__name__ if rule.own else ""
    if (meta.get("format"), meta.get("rule"), meta.get("optimizer")) != (FORMAT, rule.name, optimizer):
        raise StateMismatch("what this member kept for itself is of another sync rule, optimizer or version")
    tensors = dict(snapshot.tensors())
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point()):
        raise StateMismatch("what this member kept for itself holds a value that is not finite")
    kept = _feedback_of(tensors, rule) if feedback is not None else {}
    own, same_state = rule.own, meta.get("state") == state_hash.hex()
    samples, next_sample = meta.get("samples"), meta.get("next_sample")
    if not (isinstance(samples, int) and isinstance(next_sample, int) and samples >= 0 and next_sample >= 0):
        raise StateMismatch("what this member kept for itself does not say how much it had computed")
    if own is not None:
        _restore_params(own, tensors, same_state=same_state)
        if same_state:
            rule.resume(samples, next_sample)
    if feedback is not None and same_state:
        feedback.restore(kept)


def _restore_params(own: OwnParams, tensors: Mapping[str, torch.Tensor], *, same_state: bool) -> None:
    for full_name, tensor in tensors.items():
        kind, _, name = full_name.partition("/")
        fits = name in own.params and tensor.shape == own.params[name].shape and tensor.is_floating_point()
        if kind not in ("feedback", "optim") and not (kind == "param" and fits):
            raise StateMismatch(f"what this member kept for itself does not fit: {full_name[:120]!r}")
    put_states(own, {name: tensor for name, tensor in tensors.items() if name.startswith("optim/")})
    with torch.no_grad():
        for name, param in own.params.items():
            if same_state and f"param/{name}" in tensors:
                param.copy_(tensors[f"param/{name}"])


def _feedback_of(tensors: Mapping[str, torch.Tensor], rule: SyncRule) -> dict[int, torch.Tensor]:
    kept: dict[int, torch.Tensor] = {}
    for name, tensor in tensors.items():
        kind, _, key = name.partition("/")
        if kind != "feedback":
            continue
        turn = int(key) if key.isdecimal() and len(key) <= 6 else -1
        if turn < 0 or rule.turn(Epoch(turn)) != turn or tensor.shape != (rule.layout(Epoch(turn)).size_elems,):
            raise StateMismatch(f"what this member kept for itself does not fit: {name[:120]!r}")
        kept[turn] = tensor
    return kept
