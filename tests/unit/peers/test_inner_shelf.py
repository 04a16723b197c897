"""Which inner states a member keeps, and for how long."""

from __future__ import annotations

import torch

from peers.inner_shelf import MAX_BORROWED, SHOWN_EPOCHS, InnerShelf
from peers.state_snapshot import StateSnapshot
from protocols.ids import Epoch
from protocols.trust.audits import AUDIT_WITHIN_S, AUDITABLE_EPOCHS


def state(number: int) -> StateSnapshot:
    return StateSnapshot.of([("optim/w/exp_avg", torch.full((4,), float(number)))], epoch=number, accepted_samples=0, meta={})


def kept(shelf: InnerShelf, count: int = 20) -> list[int]:
    return [number for number in range(count) if shelf.find(state(number).state_hash)]


def test_what_nobody_was_drawn_to_look_into_goes_at_once() -> None:
    shelf = InnerShelf()
    for epoch in range(6):
        shelf.keep(Epoch(epoch), state(epoch), 0.0)
        shelf.release(Epoch(epoch))
        assert kept(shelf) == list(range(max(epoch - 1, 0), epoch + 1))
    assert shelf.newest is not None
    assert shelf.newest.state_hash == state(5).state_hash


def test_an_audit_finds_the_end_of_its_epoch_and_of_the_one_before() -> None:
    shelf = InnerShelf()
    for epoch in range(3):
        shelf.keep(Epoch(epoch), state(epoch), 100.0 * epoch)
        if epoch != 1:
            shelf.release(Epoch(epoch))
    for epoch in range(3, 3 + SHOWN_EPOCHS):
        shelf.keep(Epoch(epoch), state(epoch), 100.0 * epoch)
        shelf.release(Epoch(epoch))
        assert {0, 1} <= set(kept(shelf)), "epoch 1 is looked into"
    for epoch in range(3 + SHOWN_EPOCHS, 6 + SHOWN_EPOCHS):
        shelf.keep(Epoch(epoch), state(epoch), 100.0 * epoch)
        shelf.release(Epoch(epoch))
    assert not {0, 1} & set(kept(shelf))


def test_short_epochs_keep_more_but_not_for_ever() -> None:
    shelf = InnerShelf()
    for epoch in range(20):
        shelf.keep(Epoch(epoch), state(epoch), 0.01 * epoch)
    assert kept(shelf) == list(range(19 - AUDITABLE_EPOCHS - 2, 20))
    shelf.keep(Epoch(20), state(20), 2 * AUDIT_WITHIN_S)
    assert kept(shelf, 21) == list(range(20 - SHOWN_EPOCHS - 2, 21))


def test_few_of_others_are_kept_and_one_state_counts_once() -> None:
    shelf = InnerShelf()
    assert shelf.newest is None
    for number in (1, 1, 2, 3, 4, 5):
        shelf.borrow(state(number))
    assert kept(shelf) == [2, 3, 4, 5]
    assert len(kept(shelf)) == MAX_BORROWED
    assert shelf.newest is None, "it is somebody else's"
    shelf.keep(Epoch(7), state(7), 0.0)
    shelf.keep(Epoch(8), state(7), 0.0)
    assert kept(shelf) == [2, 3, 4, 5, 7]
    assert shelf.find(b"") is None
