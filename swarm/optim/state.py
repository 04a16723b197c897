"""Everything a member needs to go on training, as named tensors and a little JSON.

    param/<parameter>          every parameter as all members hold it, fp32, in the model's order
    optim/<parameter>/<key>    the optimizer's tensors of that parameter, keys sorted
    meta                       format, optimizer class, sync rule, and the optimizer's numbers that are not tensors

Two members with the same state hash agree in every bit of all of it.
"""

from __future__ import annotations

import torch

from peers.state_snapshot import StateSnapshot
from protocols.errors import SwarmError
from protocols.manifest import Manifest, TensorEntry
from swarm.optim.rule import SharedParams

FORMAT = 1
_MAX_KEY_CHARS = 64


class StateMismatch(SwarmError):
    """A state does not belong to this model and optimizer, or is damaged. The caller knows whose fault that is."""


def state_tensors(shared: SharedParams, optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.Tensor]]:
    """Name and tensor of everything, in the state's order; not copies."""
    named = [(f"param/{name}", master.detach()) for name, master in shared.all.items()]
    for name, master in shared.trained.items():
        kept = _kept(optimizer, master)
        named += [(f"optim/{name}/{key}", value) for key, value in sorted(kept.items()) if isinstance(value, torch.Tensor)]
    return named


def state_meta(shared: SharedParams, optimizer: torch.optim.Optimizer, rule: str) -> dict[str, object]:
    """What is not a tensor, ready for JSON."""
    numbers: dict[str, dict[str, object]] = {}
    for name, master in shared.trained.items():
        plain = {key: value for key, value in _kept(optimizer, master).items() if not isinstance(value, torch.Tensor)}
        if plain:
            numbers[name] = plain
    return {"format": FORMAT, "optimizer": type(optimizer).__name__, "rule": rule, "numbers": numbers}


def restore_state(shared: SharedParams, optimizer: torch.optim.Optimizer, rule: str, snapshot: StateSnapshot) -> None:
    """Put a state into model and optimizer; checks all of it before it changes anything.

    Raises:
        StateMismatch: names, shapes, dtypes, optimizer or rule differ from ours, or a value is not finite.
    """
    numbers = _checked_numbers(shared, optimizer, rule, snapshot.manifest)
    _check_entries(shared, optimizer, snapshot.manifest)
    for name, tensor in snapshot.tensors():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise StateMismatch(f"tensor {name!r} holds a value that is not finite")
    kept: dict[str, dict[str, object]] = {name: dict(numbers.get(name, {})) for name in shared.trained}
    with torch.no_grad():
        for full_name, tensor in snapshot.tensors():
            kind, _, name = full_name.partition("/")
            if kind == "param":
                shared.all[name].copy_(tensor)
            else:
                owner, _, key = name.rpartition("/")
                kept[owner][key] = tensor
    for name, master in shared.trained.items():
        optimizer.state[master] = kept[name]
    shared.write_back()


def _kept(optimizer: torch.optim.Optimizer, master: torch.Tensor) -> dict[str, object]:
    return dict(optimizer.state.get(master, {}))


def _check_entries(shared: SharedParams, optimizer: torch.optim.Optimizer, manifest: Manifest) -> None:
    expected = {f"param/{name}": TensorEntry.of(f"param/{name}", master) for name, master in shared.all.items()}
    for entry in manifest.tensors:
        if entry.name.startswith("optim/"):
            _check_optimizer_entry(shared, optimizer, entry)
        elif expected.pop(entry.name, None) != entry:
            raise StateMismatch(f"tensor {entry.name[:120]!r} of shape {entry.shape} and type {entry.dtype} is not in this model")
    if expected:
        raise StateMismatch(f"{len(expected)} tensors of this model are missing, {next(iter(expected))!r} among them")


def _check_optimizer_entry(shared: SharedParams, optimizer: torch.optim.Optimizer, entry: TensorEntry) -> None:
    """A known key must look as ours does. Before the first step ours is empty; then any tensor no larger than the parameter will do."""
    owner, _, key = entry.name.removeprefix("optim/").rpartition("/")
    master = shared.trained.get(owner)
    if master is None or not key.isidentifier() or len(key) > _MAX_KEY_CHARS:
        raise StateMismatch(f"tensor {entry.name[:120]!r} belongs to no trained parameter of this model")
    ours = _kept(optimizer, master).get(key)
    if isinstance(ours, torch.Tensor):
        fits = TensorEntry.of(entry.name, ours) == entry
    else:
        fits = entry.shape in ((), tuple(master.shape)) or (
            len(entry.shape) == master.dim() and all(a in (1, b) for a, b in zip(entry.shape, master.shape, strict=True))
        )
    if not fits:
        raise StateMismatch(f"tensor {entry.name[:120]!r} has shape {entry.shape} and type {entry.dtype}, which does not fit its parameter")


def _checked_numbers(shared: SharedParams, optimizer: torch.optim.Optimizer, rule: str, manifest: Manifest) -> dict[str, dict[str, object]]:
    meta = manifest.meta
    ours = (FORMAT, type(optimizer).__name__, rule)
    theirs = (meta.get("format"), meta.get("optimizer"), meta.get("rule"))
    if ours != theirs:
        raise StateMismatch(f"it was made with format, optimizer and rule {theirs}, and this run has {ours}")
    numbers = meta.get("numbers")
    if not isinstance(numbers, dict) or not set(numbers) <= set(shared.trained):
        raise StateMismatch("its numbers belong to no parameter of this model")
    for plain in numbers.values():
        if not isinstance(plain, dict) or not all(value is None or isinstance(value, bool | int | float) for value in plain.values()):
            raise StateMismatch("its numbers are not numbers")
    return numbers
