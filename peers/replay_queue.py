"""Replays that the network side waits for, in the order in which they were asked for. Its owner, `peers.bridge`, locks."""

from __future__ import annotations

from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from peers.training_peer import Replayed, ReplayRequest

MAX_REPLAYS = 64
"""Different requests that wait at a time: twice the auditors that a run may draw in a group and epoch."""

Answer = Future[Replayed | None]


@dataclass(slots=True, eq=False)
class _Waiting:
    answer: Answer = field(default_factory=Future)
    askers: int = 0


class ReplayQueue:
    """First in, first out; equal requests are one. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: dict[ReplayRequest, _Waiting] = {}

    @property
    def oldest(self) -> ReplayRequest | None:
        """The one to do now."""
        return next(iter(list(self._waiting)), None)  # a signal handler may empty it between two steps of an iteration

    def add(self, request: ReplayRequest) -> Answer | None:
        """Wait for a request's answer, together with whoever waits for it already; None if too many others are waiting.

        Whoever adds must `leave`, and must not cancel the answer, which others may be waiting for.
        """
        waiting = self._waiting.get(request)
        if waiting is None:
            if len(self._waiting) >= MAX_REPLAYS:
                return None
            waiting = self._waiting[request] = _Waiting()
        waiting.askers += 1
        return waiting.answer

    def leave(self, request: ReplayRequest, answer: Answer) -> None:
        """Wait no longer; the last to leave withdraws the request."""
        waiting = self._waiting.get(request)
        if waiting is None or waiting.answer is not answer:
            return
        waiting.askers -= 1
        if waiting.askers == 0:
            del self._waiting[request]

    def answer(self, request: ReplayRequest, replayed: Replayed | None) -> None:
        """Answer everybody who waits for it; without effect if nobody does."""
        waiting = self._waiting.pop(request, None)
        if waiting is not None:
            with suppress(InvalidStateError):  # already answered
                waiting.answer.set_result(replayed)

    def answer_all(self, replayed: Replayed | None) -> None:
        """Answer everything that waits with the same."""
        for request in list(self._waiting):
            self.answer(request, replayed)
