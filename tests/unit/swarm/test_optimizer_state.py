"""The state of a collaborative optimizer: it moves bit for bit, and one that does not fit changes nothing."""

from __future__ import annotations

import io

import pytest
import torch

from peers.local import LocalPeer
from peers.state_snapshot import StateSnapshot
from swarm.optim import CollaborativeOptimizer
from swarm.optim.state import StateMismatch
from tests.helpers.scripted_peer import MAKERS, ME, Loop, alone, trained


@pytest.mark.parametrize("optimizer", sorted(MAKERS))
def test_a_state_moves_bit_for_bit_and_the_trajectory_goes_on_the_same(optimizer: str) -> None:
    original = trained(3, optimizer)
    snapshot = original.opt.snapshot()
    copy = Loop(LocalPeer(ME, 8), optimizer, seed=123)
    copy.opt.load_snapshot(StateSnapshot(snapshot.manifest, bytes(snapshot.data)))
    assert copy.opt.state_hash == original.opt.state_hash
    for number in range(20, 26):
        assert original.batch(number) is copy.batch(number)
    assert torch.equal(copy.params(), original.params())
    assert copy.opt.state_hash == original.opt.state_hash
    assert copy.opt.epoch == 6


def test_a_state_dict_survives_torch_save() -> None:
    original, copy = trained(2), alone(seed=5)
    buffer = io.BytesIO()
    torch.save(original.opt.state_dict(), buffer)
    buffer.seek(0)
    copy.opt.load_state_dict(torch.load(buffer, weights_only=True))
    assert copy.opt.state_hash == original.opt.state_hash
    with pytest.raises(StateMismatch, match="not a state"):
        copy.opt.load_state_dict({"epoch": 1})


def test_a_state_for_bf16_members_is_that_of_fp32_members() -> None:
    def make(dtype: torch.dtype) -> CollaborativeOptimizer:
        model = torch.nn.Linear(3, 2).to(dtype)
        with torch.no_grad():
            for param in model.parameters():
                param.fill_(0.5)
        return CollaborativeOptimizer(model, torch.optim.AdamW(model.parameters()), peer=LocalPeer(ME, 8), target_batch_samples=8)

    single, half = make(torch.float32), make(torch.bfloat16)
    assert single.state_hash == half.state_hash
    half.load_snapshot(single.snapshot())


def altered(snapshot: StateSnapshot, **changes: object) -> StateSnapshot:
    """The same state with other tensors or meta."""
    tensors = dict(snapshot.tensors())
    tensors.update(changes.get("add", {}))  # type: ignore[call-overload]
    for name in changes.get("remove", ()):  # type: ignore[attr-defined]
        del tensors[name]
    meta = snapshot.manifest.meta | changes.get("meta", {})  # type: ignore[operator]
    return StateSnapshot.of(tensors.items(), epoch=snapshot.epoch, accepted_samples=0, meta=meta)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"add": {"param/0.weight": torch.zeros(6, 5)}}, "not in this model"),
        ({"add": {"param/0.weight": torch.zeros(6, 4, dtype=torch.float64)}}, "not in this model"),
        ({"add": {"param/9.weight": torch.zeros(1)}}, "not in this model"),
        ({"add": {"elsewhere": torch.zeros(1)}}, "not in this model"),
        ({"remove": ["param/0.weight"]}, "missing"),
        ({"add": {"optim/9.weight/exp_avg": torch.zeros(1)}}, "no trained parameter"),
        ({"add": {"optim/0.weight/__class__ x": torch.zeros(1)}}, "no trained parameter"),
        ({"add": {"optim/0.weight/extra": torch.zeros(1000)}}, "does not fit"),
        ({"add": {"optim/0.weight/exp_avg": torch.zeros(())}}, "does not fit"),
        ({"add": {"param/0.bias": torch.full((6,), float("nan"))}}, "not finite"),
        ({"add": {"optim/0.bias/exp_avg": torch.full((6,), float("inf"))}}, "not finite"),
        ({"meta": {"optimizer": "SGD"}}, "rule"),
        ({"meta": {"rule": "outer"}}, "rule"),
        ({"meta": {"format": 2}}, "format"),
        ({"meta": {"numbers": {"9.weight": {}}}}, "numbers"),
        ({"meta": {"numbers": {"0.weight": {"step": "many"}}}}, "numbers"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(changes: dict[str, object], reason: str) -> None:
    loop = trained(2)
    before = loop.opt.state_hash
    foreign = altered(trained(1).opt.snapshot(), **changes)
    with pytest.raises(StateMismatch, match=reason):
        loop.opt.load_snapshot(foreign)
    assert (loop.opt.state_hash, loop.opt.epoch) == (before, 2)
    assert torch.equal(loop.params(), trained(2).params())
