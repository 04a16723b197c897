"""What a member alone has, as named tensors to keep on its own disk: so that it goes on after a restart where it was.

    param/<parameter>          the model where it is, between two averages
    optim/<parameter>/<key>    the inner optimizer's tensors of that parameter
    feedback/<number>          what few bytes have left out so far
    meta                       format and rule, samples computed since the last average, the hash of the shared state that all goes with,
                               and the inner optimizer's numbers that are not tensors

The gradient rule has nothing but feedback of its own. Nobody else needs any of it, and it never travels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard

import torch

from peers.state_snapshot import StateSnapshot
from protocols.ids import Epoch
from swarm.optim.feedback import ErrorFeedback
from swarm.optim.inner import home_of, kind_of, new_state
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
    numbers: dict[str, dict[str, int | float]] = {}
    own = rule.own
    if own is not None:
        named += own_tensors(own)
        for name, param in own.params.items():
            plain = {key: value for key, value in own.optimizer.state.get(param, {}).items() if _is_number(value)}
            if plain:
                numbers[name] = plain
    if feedback is not None:
        named += [(f"feedback/{key}", kept_F) for key, kept_F in sorted(feedback.kept.items())]
    if not named:
        return None
    meta: dict[str, object] = {"format": FORMAT, "rule": rule.name, "state": state_hash.hex()}
    meta |= {"samples": rule.samples, "next_sample": rule.next_sample, "optimizer": kind_of(own.optimizer) if own else ""}
    meta |= {"numbers": numbers} if numbers else {}
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


def put_states(own: OwnParams, tensors: Mapping[str, torch.Tensor], numbers: object = None) -> None:
    """Put what `own_tensors` gave of the optimizer into it.

    Args:
        own: whose.
        tensors: of the optimizer.
        numbers: what it keeps beside tensors, by parameter and key; None: nothing.

    Raises:
        StateMismatch: it is of another model, or holds a value that is not finite; nothing has changed.
    """
    states: dict[str, dict[str, object]] = {name: {} for name in own.params}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.removeprefix("optim/").rpartition("/")
        if name not in own.params or not bool(torch.isfinite(tensor).all()):
            raise StateMismatch(f"an inner state that does not fit: {full_name[:120]!r}")
        states[name][key] = tensor
    for name, plain in numbers.items() if isinstance(numbers, Mapping) else ():
        if name not in own.params or not isinstance(plain, Mapping) or not all(map(_is_number, plain.values())):
            raise StateMismatch(f"an inner state that does not fit: numbers of {name[:120]!r}")
        states[name] |= plain
    at_home = {name: _at_home(own, name, kept) for name, kept in states.items() if kept}
    for name, kept in at_home.items():
        own.optimizer.state[own.params[name]] = kept


def _at_home(own: OwnParams, name: str, kept: Mapping[str, object]) -> dict[str, object]:
    """The state of a parameter where its optimizer has it; checked against what that optimizer would begin with."""
    param = own.params[name]
    begun, home = new_state(own.optimizer, param), home_of(own.optimizer, param)
    for key, value in kept.items():
        if begun is None:
            fits = not isinstance(value, torch.Tensor) or value.dim() == 0 or value.shape == param.shape
        else:
            fits = _look(value) == _look(begun.get(key))
        if not fits:
            raise StateMismatch(f"an inner state that does not fit: {f'optim/{name}/{key}'[:120]!r}")
    if begun is not None and begun.keys() != kept.keys():
        raise StateMismatch(f"an inner state that does not fit: keys of {name[:120]!r}")
    # step counts stay on the CPU, where torch's optimizers have them
    return {key: _moved(value, home) for key, value in kept.items()}


def _moved(value: object, home: torch.device) -> object:
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(home, copy=True) if value.dim() else value.clone()


def _look(value: object) -> tuple[object, ...]:
    return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else (type(value),)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
    optimizer = kind_of(rule.own.optimizer) if rule.own else ""
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
        _restore_params(own, tensors, meta.get("numbers", {}), same_state=same_state)
        if same_state:
            rule.resume(samples, next_sample)
    if feedback is not None and same_state:
        feedback.restore(kept)


def _restore_params(own: OwnParams, tensors: Mapping[str, torch.Tensor], numbers: object, *, same_state: bool) -> None:
    for full_name, tensor in tensors.items():
        kind, _, name = full_name.partition("/")
        fits = name in own.params and tensor.shape == own.params[name].shape and tensor.is_floating_point()
        if kind not in ("feedback", "optim") and not (kind == "param" and fits):
            raise StateMismatch(f"what this member kept for itself does not fit: {full_name[:120]!r}")
    put_states(own, {name: tensor for name, tensor in tensors.items() if name.startswith("optim/")}, numbers)
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
