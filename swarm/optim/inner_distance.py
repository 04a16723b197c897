"""How far the inner state that a member says it ended with is from the one that replaying ended with.

What counts is what a state does: Adam divides by the root of one tensor what it keeps in another, so a few elements near zero could send
the model anywhere, and no norm of either tensor would show it. Hence the distance is also that of the steps that the two states would
take next, if no gradient came.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Mapping

import torch

from protocols.trust.audits import INNER_SLACK
from swarm.optim.own_state import own_tensors, put_states
from swarm.optim.rule import OwnParams
from swarm.optim.state import StateMismatch

_PARAM = "param/"


def copy_without_state(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Another one over the same parameters, with settings of its own and an empty state."""
    shared: dict[int, object] = {id(param): param for group in optimizer.param_groups for param in group["params"]}
    shared[id(optimizer.state)] = defaultdict(dict)
    return copy.deepcopy(optimizer, shared)


def inner_distance(own: OwnParams, theirs: Mapping[str, torch.Tensor], anchor: Mapping[str, torch.Tensor]) -> float:
    """Relative, comparable with how far a contribution may be off; infinite if `theirs` cannot be a state of this model and optimizer.

    Args:
        own: the replay's model and optimizer; nothing needs them afterwards.
        theirs: as `own_tensors` names them, with or without parameters.
        anchor: name -> what the parameters of both have moved from.
    """
    with_params = any(name.startswith(_PARAM) for name in theirs)
    ours = dict(own_tensors(own, with_params=with_params))
    if not _alike(ours, theirs):
        return math.inf
    apart: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
    for name, tensor in ours.items():
        other = theirs[name]
        if name.startswith(_PARAM):
            held = anchor[name.removeprefix(_PARAM)].to(tensor.device)
            apart[_PARAM].append((other - held, tensor - held))
        elif tensor.is_floating_point() and not _counts(tensor):
            apart[name.rpartition("/")[2]].append((other, tensor))
        elif not torch.equal(other, tensor):
            return math.inf
    moved = _relative(apart.pop(_PARAM, []))
    kept = [_relative(pairs) for pairs in apart.values()]
    return max(moved, *(each / INNER_SLACK for each in (*kept, _next_steps_apart(own, theirs))))


def _alike(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    if ours.keys() != theirs.keys():
        return False
    same = all(theirs[name].shape == tensor.shape and theirs[name].dtype == tensor.dtype for name, tensor in ours.items())
    return same and all(bool(torch.isfinite(tensor).all()) for tensor in theirs.values())


def _counts(tensor: torch.Tensor) -> bool:
    """Whether it is a number of steps, which is the same everywhere; products of rates, such as NAdam's, may differ in the last bit."""
    return tensor.dim() == 0 and bool(tensor == tensor.round())


def _relative(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """||theirs - ours|| / ||ours|| over all pairs together."""
    difference = math.sqrt(sum(float(torch.linalg.vector_norm(a.double() - b.double())) ** 2 for a, b in pairs))
    size = math.sqrt(sum(float(torch.linalg.vector_norm(b.double())) ** 2 for _, b in pairs))
    if difference == 0:
        return 0.0
    return difference / size if size and math.isfinite(difference) else math.inf


def _next_steps_apart(own: OwnParams, theirs: Mapping[str, torch.Tensor]) -> float:
    other = OwnParams(own.params, copy_without_state(own.optimizer))
    try:
        put_states(other, {name: value for name, value in theirs.items() if not name.startswith(_PARAM)})
    except StateMismatch:
        return math.inf
    return _relative(list(zip(_next_step(other), _next_step(own), strict=True)))


def _next_step(own: OwnParams) -> list[torch.Tensor]:
    """How the optimizer would move each parameter at a rate of 1, without decay, if its gradient were zero. Its state moves on."""
    for group in own.optimizer.param_groups:
        group["lr"] = 1.0
        if "weight_decay" in group:
            group["weight_decay"] = 0.0
    values = {name: param.data for name, param in own.params.items()}
    try:
        for param in own.params.values():
            param.data, param.grad = torch.zeros_like(param.data), torch.zeros_like(param.data)
        own.optimizer.step()
        return [param.data for param in own.params.values()]
    finally:
        for name, param in own.params.items():
            param.data, param.grad = values[name], None
