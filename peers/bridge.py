"""The one boundary between the two threads of a peer: the trainer (torch, blocking) and the network loop (asyncio).

`PeerHandle` is the only object that both touch. Values that cross it are immutable, or are handed over and not written to afterwards.

    trainer thread                                        network loop
    report, announce_epoch, publish_snapshot   ──inbox──▶ PeerService.on_report, .on_epoch, .on_snapshot   in the order they were sent
    average, fetch_state (block)               ──inbox──▶ PeerService.average, .fetch_state                answers come back as futures
    start_averaging (does not)                 ──inbox──▶ PeerService.average                              the future is the trainer's
    view, epoch_closing, snapshot_wanted       ◀──────── set_view, close_epoch, want_snapshot             instant
    replay_wanted, publish_replay              ◀───────▶ replay                                           asked and answered in order
    stopping; everything raises PeerStopped    ◀──────── stop                                             from any thread or signal handler
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from peers.replay_queue import ReplayQueue
from peers.state_snapshot import StateSnapshot
from peers.training_peer import (
    Contribution,
    EpochAnnouncement,
    MemberView,
    PeerStopped,
    Replayed,
    ReplayRequest,
    RoundOutcome,
    RoundStatus,
    SwarmView,
    TrainerReport,
    TrainingPeer,
)
from protocols.errors import RemoteError, RoundError, SwarmError
from protocols.ids import Epoch

__all__ = [
    "Contribution",
    "EpochAnnouncement",
    "MemberView",
    "PeerHandle",
    "PeerService",
    "PeerStopped",
    "ReplayRequest",
    "Replayed",
    "RoundOutcome",
    "RoundStatus",
    "SwarmView",
    "TrainerReport",
    "TrainingPeer",
]


class PeerService(Protocol):
    """What the network side does for the trainer. All methods run on the event loop."""

    def on_report(self, report: TrainerReport) -> None:
        """The trainer has made progress; reports may be merged, the newest always arrives."""

    def on_epoch(self, announced: EpochAnnouncement) -> None:
        """The trainer now holds this state."""

    def on_snapshot(self, snapshot: StateSnapshot) -> None:
        """The trainer has made a copy of its state."""

    async def average(self, contribution: Contribution) -> RoundOutcome:
        """Run a round. A RoundError or RemoteError becomes an ABORTED outcome."""

    async def fetch_state(self) -> StateSnapshot:
        """Fetch the newest state by majority. A RoundError or RemoteError becomes a RoundError at the trainer."""


@dataclass(frozen=True, slots=True, eq=False)
class _AverageRequest:
    contribution: Contribution
    answer: Future[RoundOutcome]


@dataclass(frozen=True, slots=True, eq=False)
class _FetchRequest:
    answer: Future[StateSnapshot]


_Value = TypeVar("_Value")
_Item = TrainerReport | EpochAnnouncement | StateSnapshot | _AverageRequest | _FetchRequest


class PeerHandle:
    """Joins the trainer thread and the network loop: make it anywhere, run `serve` in a task of the loop, train in one thread."""

    def __init__(self) -> None:
        # The lock is re-entrant because a signal handler may call `stop` while its own thread holds it.
        self._changed = threading.Condition(threading.RLock())
        self._inbox: deque[_Item] = deque()
        self._unanswered: set[Future[RoundOutcome] | Future[StateSnapshot]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox_filled: asyncio.Event | None = None
        self._view = SwarmView()
        self._epoch = Epoch(0)
        self._epochs_in_inbox = 0
        self._closing_epoch: int = -1
        self._averaging_epoch: int = -1
        self._snapshot_wanted = False
        self._replays = ReplayQueue()
        self._stopping = False

    # ---- trainer side; `TrainingPeer` documents these ----

    def report(self, samples: int, samples_per_s: float, loss: float | None, phase: str) -> None:
        """Say what was done; instant."""
        self._send(TrainerReport(samples, samples_per_s, loss, phase))

    def view(self) -> SwarmView:
        """The swarm as last seen; instant."""
        return self._view

    def epoch_closing(self) -> bool:
        """Whether to call `average` now; instant."""
        return self._closing_epoch >= self._epoch

    def wait_for_call(self, timeout_s: float) -> bool:
        """Wait until something is wanted of the trainer, at most `timeout_s`.

        Raises:
            PeerStopped: the peer is stopping.
        """
        with self._changed:
            called = self._changed.wait_for(self._called, timeout_s)
        if self._stopping:
            raise PeerStopped("the peer is stopping")
        return called

    def pause(self, duration_s: float) -> None:
        """Do nothing for a while.

        Raises:
            PeerStopped: the peer is stopping.
        """
        with self._changed:
            self._changed.wait_for(self.stopping, duration_s)
        if self._stopping:
            raise PeerStopped("the peer is stopping")

    def average(self, contribution: Contribution) -> RoundOutcome:
        """Take part in the round that closes the contribution's epoch; blocks.

        Raises:
            PeerStopped: the peer is stopping.
        """
        return self.start_averaging(contribution).result()

    def start_averaging(self, contribution: Contribution) -> Future[RoundOutcome]:
        """As `average`, beside computing; the future is answered by the network loop.

        Raises:
            PeerStopped: the peer is stopping; also from the future.
        """
        answer: Future[RoundOutcome] = Future()
        with self._changed:
            self._closing_epoch = -1
            self._averaging_epoch = contribution.epoch
            self._ask(_AverageRequest(contribution, answer))
        return answer

    def announce_epoch(self, epoch: Epoch, state_hash: bytes, accepted_samples: int) -> None:
        """Say which state the trainer now holds; instant."""
        with self._changed:
            self._epoch = epoch
            self._epochs_in_inbox += 1
            self._view = replace(self._view, behind=False)
            self._send(EpochAnnouncement(epoch, state_hash, accepted_samples))

    def snapshot_wanted(self) -> bool:
        """Whether somebody waits for a copy of the state; instant."""
        return self._snapshot_wanted

    def publish_snapshot(self, snapshot: StateSnapshot) -> None:
        """Hand over a copy of the state to serve; instant."""
        with self._changed:
            self._snapshot_wanted = False
            self._send(snapshot)

    def replay_wanted(self) -> ReplayRequest | None:
        """The oldest replay that somebody waits for; instant."""
        with self._changed:
            return self._replays.oldest

    def publish_replay(self, request: ReplayRequest, replayed: Replayed | None) -> None:
        """Hand over what a replay came to, or None if this member cannot do it; instant."""
        with self._changed:
            self._replays.answer(request, replayed)

    def fetch_state(self) -> StateSnapshot:
        """The swarm's newest state by majority, verified; blocks.

        Raises:
            PeerStopped: the peer is stopping.
            RoundError: nobody could give it; try again later.
        """
        answer: Future[StateSnapshot] = Future()
        self._ask(_FetchRequest(answer))
        return answer.result()

    def stopping(self) -> bool:
        """Whether to leave the training loop; instant."""
        return self._stopping

    # ---- network side ----

    async def serve(self, service: PeerService) -> None:
        """Pass what the trainer sends to `service` and its answers back, until `stop` or cancellation; then the trainer is told to stop.

        Cancellation: requests that run are cancelled; the trainer's blocking calls raise PeerStopped.
        """
        self._loop, self._inbox_filled = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                answering: list[asyncio.Task[None]] = []
                while not self._stopping:
                    self._inbox_filled.clear()
                    for item in self._take_inbox():
                        if isinstance(item, _AverageRequest | _FetchRequest):
                            answering = [task for task in answering if not task.done()]
                            answering.append(tasks.create_task(self._answer(service, item)))
                        else:
                            _deliver(service, item)
                    await self._inbox_filled.wait()
                for task in answering:
                    task.cancel()
        finally:
            self.stop()
            with self._changed:
                self._loop = None

    def set_view(self, view: SwarmView) -> None:
        """Show the trainer the swarm as it is now."""
        with self._changed:
            # A view made before the service heard of the trainer's new state would send the trainer to fetch it a second time.
            self._view = replace(view, behind=False) if self._epochs_in_inbox else view
            self._changed.notify_all()

    def close_epoch(self, epoch: Epoch) -> None:
        """Call the trainer to the round that closes `epoch`; forgotten once it has come or holds a later state."""
        with self._changed:
            if epoch == self._averaging_epoch:
                return  # it has come
            self._closing_epoch = epoch
            self._changed.notify_all()

    def want_snapshot(self) -> None:
        """Ask the trainer for a copy of its state; it comes through `PeerService.on_snapshot`."""
        with self._changed:
            self._snapshot_wanted = True
            self._changed.notify_all()

    async def replay(self, request: ReplayRequest) -> Replayed | None:
        """Have the trainer compute a contribution again, between its micro-batches; requests are served in the order they came.

        Several that ask for the same share one answer. Runs on the event loop. Cancellation: nothing is computed for nobody.

        Returns:
            Shared: not to be written to. None: this member cannot, as it does not hold that state, has no data,
            has `replay_queue.MAX_REPLAYS` others to do, or is stopping; that says nothing about the contribution.
        """
        with self._changed:
            if self._stopping:
                return None
            answer = self._replays.add(request)
            self._changed.notify_all()
        if answer is None:
            return None
        try:
            return await asyncio.shield(asyncio.wrap_future(answer))
        finally:
            with self._changed:
                self._replays.leave(request, answer)

    def stop(self) -> None:
        """Make every blocking call raise PeerStopped and `serve` return. From any thread or signal handler; idempotent."""
        with self._changed:
            self._stopping = True
            unanswered = list(self._unanswered)
            self._replays.answer_all(None)
            self._changed.notify_all()
            self._wake()
        for answer in unanswered:
            _fail(answer, PeerStopped("the peer is stopping"))

    # ---- inside ----

    def _called(self) -> bool:
        return self._stopping or self.epoch_closing() or self._snapshot_wanted or self._view.behind or self._replays.oldest is not None

    def _ask(self, request: _AverageRequest | _FetchRequest) -> None:
        with self._changed:
            if self._stopping:
                raise PeerStopped("the peer is stopping")
            self._unanswered.add(request.answer)
            self._send(request)

    def _send(self, item: _Item) -> None:
        with self._changed:
            # A report says everything that the one before it did, so a slow loop never piles them up.
            if isinstance(item, TrainerReport) and self._inbox and isinstance(self._inbox[-1], TrainerReport):
                self._inbox.pop()
            self._inbox.append(item)
            self._wake()

    def _take_inbox(self) -> list[_Item]:
        with self._changed:
            items = list(self._inbox)
            self._inbox.clear()
            self._epochs_in_inbox = 0
        return items

    def _wake(self) -> None:
        if self._loop is not None and self._inbox_filled is not None:
            self._loop.call_soon_threadsafe(self._inbox_filled.set)

    async def _answer(self, service: PeerService, request: _AverageRequest | _FetchRequest) -> None:
        """Run one request; whatever happens, the trainer gets an answer or PeerStopped."""
        try:
            if isinstance(request, _AverageRequest):
                try:
                    outcome = await _average(service, request.contribution)
                finally:
                    with self._changed:
                        self._averaging_epoch = -1
                _resolve(request.answer, outcome)
            else:
                _resolve(request.answer, await service.fetch_state())
        except RemoteError as error:
            _fail(request.answer, RoundError(str(error)))
        except SwarmError as error:
            _fail(request.answer, error)
        finally:
            _fail(request.answer, PeerStopped("the peer is stopping"))  # no effect once answered
            with self._changed:
                self._unanswered.discard(request.answer)


async def _average(service: PeerService, contribution: Contribution) -> RoundOutcome:
    try:
        return await service.average(contribution)
    except (RoundError, RemoteError) as error:
        return RoundOutcome(RoundStatus.ABORTED, contribution.epoch, reason=str(error))


def _deliver(service: PeerService, item: TrainerReport | EpochAnnouncement | StateSnapshot) -> None:
    if isinstance(item, TrainerReport):
        service.on_report(item)
    elif isinstance(item, EpochAnnouncement):
        service.on_epoch(item)
    else:
        service.on_snapshot(item)


def _resolve(answer: Future[_Value], value: _Value) -> None:
    with suppress(InvalidStateError):  # `stop` came first
        answer.set_result(value)


def _fail(answer: Future[RoundOutcome] | Future[StateSnapshot], error: SwarmError) -> None:
    with suppress(InvalidStateError):  # already answered
        answer.set_exception(error)
