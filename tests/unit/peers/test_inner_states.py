"""How an auditor asks for inner states, and when it gives up."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from peers.averaging import inner_states
from peers.averaging.context import MemberContext
from peers.averaging.inner_states import InnerStates
from peers.inner_shelf import InnerShelf
from peers.interfaces import Endpoint
from peers.simulation import run_simulated
from peers.state_server import GIVING_TO_OTHERS, UNKNOWN_STATE
from peers.state_snapshot import StateSnapshot
from peers.state_transfer import FetchPolicy
from protocols.errors import RemoteError, RemoteRefusal, RemoteTimeout, RoundError
from protocols.ids import Epoch, PeerId
from protocols.trust.traced import Traced
from tests.helpers.attack_scene import time_passes

GIVER = PeerId(b"g" * 32)
STATE = StateSnapshot.of([("optim/w/exp_avg", torch.ones(4))], epoch=1, accepted_samples=0, meta={})


def asked(monkeypatch: pytest.MonkeyPatch, answer: Callable[[int], RemoteError | None]) -> tuple[bool, int]:
    """Whether the state was had, and how often it was asked for; `answer` gives the reason of each refusal, or None for the state."""
    questions = 0

    async def fetch(_: object, donors: list[Endpoint], __: bytes, *, policy: FetchPolicy, on_drop: Callable[[RemoteError], None]) -> Any:
        nonlocal questions
        questions += 1
        assert [donor.peer for donor in donors] == [GIVER], "also over what reaches those whom nobody can dial"
        await time_passes(1.0)
        error = answer(questions)
        if error is None:
            return STATE
        on_drop(error)
        raise RoundError("nobody gives it")

    monkeypatch.setattr(inner_states, "fetch_state", fetch)
    shelf = InnerShelf()
    shelf.keep(Epoch(1), StateSnapshot.of([("optim/w/exp_avg", torch.zeros(4))], epoch=1, accepted_samples=0, meta={}), 0.0)
    directory = SimpleNamespace(endpoint=lambda peer: None, reachable=lambda peer: Endpoint(peer, "", b""))
    context = SimpleNamespace(inner=shelf, directory=directory, transport=None, rules=SimpleNamespace(stall_timeout_s=3.0))
    states = InnerStates(cast("MemberContext", context))
    had = run_simulated(states.fetch(Traced(inner_end=STATE.state_hash), [GIVER]), 0, limit_s=1000.0)
    return had, questions


def test_whoever_gives_to_many_others_first_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = RemoteRefusal(GIVER, GIVING_TO_OTHERS, "ask somebody else")
    assert asked(monkeypatch, lambda question: busy if question < 10 else None) == (True, 10)
    had, questions = asked(monkeypatch, lambda question: busy)
    assert not had
    assert 10 < questions < 30, "but not for ever"


def test_whoever_does_not_have_it_is_asked_once_and_whoever_is_silent_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, lambda question: RemoteRefusal(GIVER, UNKNOWN_STATE, "not here")) == (False, 1)
    assert asked(monkeypatch, lambda question: RemoteTimeout(GIVER, "silent")) == (False, 3)
