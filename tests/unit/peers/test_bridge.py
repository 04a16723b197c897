"""The boundary between trainer thread and network loop: order, answers, and a stop that frees whoever waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import pytest
import torch

from peers.bridge import (
    Contribution,
    EpochAnnouncement,
    PeerHandle,
    PeerStopped,
    Replayed,
    ReplayRequest,
    RoundOutcome,
    RoundStatus,
    SwarmView,
    TrainerReport,
)
from peers.local import LocalPeer
from peers.replay_queue import MAX_REPLAYS
from peers.state_snapshot import StateSnapshot
from protocols.errors import RemoteTimeout, RoundError, StateDirError
from protocols.ids import Epoch, PeerId

_Result = TypeVar("_Result")

ME = PeerId(b"m" * 32)
SNAPSHOT = StateSnapshot.of([("param/w", torch.ones(4))], epoch=2, accepted_samples=8, meta={})


def contribution(epoch: int = 0, weight: float = 4.0) -> Contribution:
    return Contribution(Epoch(epoch), torch.full((3,), 2.0), weight, b"h" * 32)


@dataclass
class Service:
    """Network side of a test: notes everything, answers or waits as told."""

    events: list[object] = field(default_factory=list)
    outcome: RoundOutcome | Exception | None = None
    state: StateSnapshot | Exception | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    was_cancelled: bool = False

    def on_report(self, report: TrainerReport) -> None:
        self.events.append(report)

    def on_epoch(self, announced: EpochAnnouncement) -> None:
        self.events.append(announced)

    def on_snapshot(self, snapshot: StateSnapshot) -> None:
        self.events.append(snapshot)

    async def average(self, contribution: Contribution) -> RoundOutcome:
        self.events.append(contribution)
        return await self._answer(self.outcome)

    async def fetch_state(self) -> StateSnapshot:
        self.events.append("fetch")
        return await self._answer(self.state)

    async def _answer(self, answer: _Result | Exception | None) -> _Result:
        self.asked.set()
        if answer is None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.was_cancelled = True
                raise
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None
        return answer


def run(service: Service, trainer: Callable[[PeerHandle], _Result], meanwhile: Callable[[PeerHandle], None] | None = None) -> _Result:
    """Run `trainer` in a thread against `service` in a loop; `meanwhile` runs in the loop once the trainer has asked something."""

    async def main() -> _Result:
        handle = PeerHandle()
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            tasks.create_task(handle.serve(service))
            training = asyncio.get_running_loop().run_in_executor(None, trainer, handle)
            if meanwhile:
                await service.asked.wait()
                meanwhile(handle)
            await asyncio.wait([training])
            handle.stop()
        return await training  # outside the group, which would wrap what it raises

    return asyncio.run(main())


def test_everything_arrives_in_the_order_it_was_sent() -> None:
    service = Service(outcome=RoundOutcome(RoundStatus.APPLIED, Epoch(1), torch.ones(3), 8.0, (ME,)))
    mine = contribution(1)

    def trainer(peer: PeerHandle) -> RoundOutcome:
        peer.announce_epoch(Epoch(1), b"h" * 32, 128)
        peer.report(4, 2.0, 5.5, "training")
        peer.publish_snapshot(SNAPSHOT)
        return peer.average(mine)

    assert run(service, trainer) is service.outcome
    assert service.events == [EpochAnnouncement(Epoch(1), b"h" * 32, 128), TrainerReport(4, 2.0, 5.5, "training"), SNAPSHOT, mine]


def test_what_was_sent_before_the_network_started_is_not_lost_and_old_reports_are_merged() -> None:
    service, handle = Service(), PeerHandle()
    handle.announce_epoch(Epoch(0), b"h" * 32, 0)
    for samples in range(1000):
        handle.report(samples, 1.0, None, "training")

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(handle.serve(service))
            asyncio.get_running_loop().call_soon(handle.stop)

    asyncio.run(main())
    assert service.events == [EpochAnnouncement(Epoch(0), b"h" * 32, 0), TrainerReport(999, 1.0, None, "training")]


@pytest.mark.parametrize("error", [RoundError("no quorum"), RemoteTimeout(ME, "silent")])
def test_a_round_that_fails_is_an_aborted_outcome_with_its_reason(error: Exception) -> None:
    outcome = run(Service(outcome=error), lambda peer: peer.average(contribution(7)))
    assert (outcome.status, outcome.epoch, outcome.vector) == (RoundStatus.ABORTED, 7, None)
    assert str(error) in outcome.reason


def test_a_state_that_cannot_be_fetched_is_a_round_error_and_our_own_trouble_stays_what_it_is() -> None:
    with pytest.raises(RoundError, match="silent"):
        run(Service(state=RemoteTimeout(ME, "silent")), lambda peer: peer.fetch_state())
    with pytest.raises(StateDirError, match="disk full"):
        run(Service(state=StateDirError("disk full")), lambda peer: peer.fetch_state())
    assert run(Service(state=SNAPSHOT), lambda peer: peer.fetch_state()) is SNAPSHOT


@pytest.mark.parametrize(
    "blocking",
    [
        lambda peer: peer.average(contribution()),
        lambda peer: peer.fetch_state(),
    ],
)
def test_stop_frees_a_trainer_that_waits_for_an_answer(blocking: Callable[[PeerHandle], object]) -> None:
    service = Service()
    with pytest.raises(PeerStopped):
        run(service, blocking, meanwhile=lambda handle: handle.stop())
    assert service.was_cancelled


@pytest.mark.parametrize("blocking", [lambda peer: peer.wait_for_call(60.0), lambda peer: peer.pause(60.0)])
def test_stop_frees_a_trainer_that_waits_for_a_call(blocking: Callable[[PeerHandle], object]) -> None:
    service = Service()

    def trainer(peer: PeerHandle) -> object:
        threading.Thread(target=peer.stop).start()
        return blocking(peer)

    with pytest.raises(PeerStopped):
        run(service, trainer)


def test_after_stop_everything_that_blocks_raises_at_once() -> None:
    handle = PeerHandle()
    handle.stop()
    handle.stop()
    assert handle.stopping()
    for blocking in (
        lambda: handle.average(contribution()),
        lambda: handle.fetch_state(),
        lambda: handle.wait_for_call(60.0),
        lambda: handle.pause(60.0),
    ):
        with pytest.raises(PeerStopped):
            blocking()


def test_a_signal_handler_may_stop_while_its_thread_holds_the_lock() -> None:
    handle = PeerHandle()
    with handle._changed:
        handle.stop()
    assert handle.stopping()


def average_until_stopped(peer: PeerHandle) -> None:
    with pytest.raises(PeerStopped):
        peer.average(contribution())


def test_a_bug_in_the_network_side_stops_the_trainer_and_is_not_swallowed() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        run(Service(outcome=ZeroDivisionError("bug")), average_until_stopped)
    assert caught.group_contains(ZeroDivisionError)


def test_cancelling_the_network_side_stops_the_trainer() -> None:
    async def main() -> None:
        handle, service = PeerHandle(), Service()
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(handle.serve(service))
            training = asyncio.get_running_loop().run_in_executor(None, average_until_stopped, handle)
            await service.asked.wait()
            serving.cancel()
            await training
        assert handle.stopping()

    asyncio.run(main())


def test_an_epoch_closes_until_the_trainer_comes_or_moves_on() -> None:
    handle = PeerHandle()
    handle.announce_epoch(Epoch(3), b"h" * 32, 0)
    assert not handle.epoch_closing()
    handle.close_epoch(Epoch(3))
    assert handle.epoch_closing()
    assert handle.wait_for_call(60.0)
    handle.announce_epoch(Epoch(4), b"i" * 32, 0)
    assert not handle.epoch_closing()
    assert not handle.wait_for_call(0.0)


def test_a_call_that_was_answered_is_not_made_again() -> None:
    def trainer(peer: PeerHandle) -> bool:
        peer.close_epoch(Epoch(0))
        peer.average(contribution())
        return peer.epoch_closing()

    assert run(Service(outcome=RoundError("aborted")), trainer) is False


def test_a_snapshot_is_wanted_until_it_is_published() -> None:
    handle = PeerHandle()
    assert not handle.snapshot_wanted()
    handle.want_snapshot()
    assert handle.snapshot_wanted()
    assert handle.wait_for_call(60.0)
    handle.publish_snapshot(SNAPSHOT)
    assert not handle.snapshot_wanted()


def test_a_view_from_before_the_trainer_caught_up_does_not_send_it_to_fetch_again() -> None:
    handle, behind = PeerHandle(), SwarmView(epoch=Epoch(5), behind=True)
    handle.set_view(behind)
    assert handle.view() == behind
    assert handle.wait_for_call(60.0)
    handle.announce_epoch(Epoch(5), b"h" * 32, 640)
    assert handle.view() == replace(behind, behind=False)
    handle.set_view(behind)  # made before the network side heard of the announcement
    assert not handle.view().behind


def test_a_peer_on_its_own_closes_its_epochs_with_its_own_contribution() -> None:
    peer, mine = LocalPeer(ME, 8), contribution(0, 8.0)
    peer.announce_epoch(Epoch(0), b"h" * 32, 0)
    peer.report(7, 2.0, 5.0, "training")
    assert not peer.epoch_closing()
    assert peer.view().eta_s == 0.5
    peer.report(8, 2.0, 5.0, "training")
    assert peer.epoch_closing()
    outcome = peer.average(mine)
    assert (outcome.status, outcome.vector, outcome.weight, outcome.contributors) == (RoundStatus.ALONE, mine.vector, 8.0, (ME,))
    peer.announce_epoch(Epoch(1), b"i" * 32, 8)
    assert not peer.epoch_closing()
    assert peer.view().members[0].state_hash == b"i" * 32
    assert peer.average(contribution(1, 0.0)).status is RoundStatus.ABORTED
    with pytest.raises(RoundError):
        peer.fetch_state()
    peer.stop()
    for blocking in (lambda: peer.average(mine), lambda: peer.wait_for_call(60.0), lambda: peer.pause(60.0)):
        with pytest.raises(PeerStopped):
            blocking()


def request(first_sample: int = 0) -> ReplayRequest:
    return ReplayRequest(Epoch(2), ME, first_sample, 8, b"h" * 32)


async def asked_for(handle: PeerHandle, *requests: ReplayRequest) -> list[asyncio.Task[Replayed | None]]:
    tasks = [asyncio.create_task(handle.replay(one)) for one in requests]
    await asyncio.wait(tasks, timeout=0)  # each has begun
    return tasks


def test_replays_are_asked_for_in_order_and_equal_ones_share_an_answer() -> None:
    handle, replayed = PeerHandle(), Replayed(torch.ones(3))

    async def main() -> None:
        assert handle.replay_wanted() is None
        first, second, again = await asked_for(handle, request(0), request(8), request(0))
        assert handle.replay_wanted() == request(0)
        assert handle.wait_for_call(60.0)
        await asyncio.to_thread(handle.publish_replay, request(0), replayed)
        assert await first is replayed
        assert await again is replayed
        assert handle.replay_wanted() == request(8)
        assert not second.done()
        handle.publish_replay(request(8), None)
        assert await second is None
        assert handle.replay_wanted() is None
        assert not handle.wait_for_call(0.0)

    asyncio.run(main())


def test_a_replay_is_wanted_until_the_last_who_asked_has_gone() -> None:
    handle, replayed = PeerHandle(), Replayed(torch.ones(3))

    async def main() -> None:
        first, again = await asked_for(handle, request(0), request(0))
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        assert handle.replay_wanted() == request(0)
        again.cancel()
        await asyncio.wait([again])
        assert handle.replay_wanted() is None
        handle.publish_replay(request(0), replayed)  # it came too late, and is nobody's answer to a later question
        (later,) = await asked_for(handle, request(0))
        assert handle.replay_wanted() == request(0)
        assert not later.done()
        handle.publish_replay(request(0), replayed)
        assert await later is replayed

    asyncio.run(main())


def test_a_cancelled_asker_does_not_cancel_the_other() -> None:
    handle, replayed = PeerHandle(), Replayed(torch.ones(3))

    async def main() -> None:
        first, again = await asked_for(handle, request(0), request(0))
        first.cancel()
        await asyncio.wait([first])
        handle.publish_replay(request(0), replayed)
        assert await again is replayed

    asyncio.run(main())


def test_too_many_replays_are_answered_with_none_at_once() -> None:
    handle = PeerHandle()

    async def main() -> None:
        waiting = await asked_for(handle, *(request(number) for number in range(MAX_REPLAYS)))
        assert await handle.replay(request(MAX_REPLAYS)) is None
        assert not any(task.done() for task in waiting)
        (same,) = await asked_for(handle, request(3))
        assert not same.done()
        handle.stop()
        assert await asyncio.gather(*waiting, same) == [None] * (MAX_REPLAYS + 1)

    asyncio.run(main())


def test_a_stop_from_anywhere_answers_replays_with_none_now_and_later() -> None:
    handle = PeerHandle()

    async def main() -> None:
        (waiting,) = await asked_for(handle, request())
        await asyncio.to_thread(handle.stop)
        assert await waiting is None
        assert handle.replay_wanted() is None
        assert await handle.replay(request()) is None

    asyncio.run(main())


def test_a_peer_on_its_own_is_never_asked_for_a_replay() -> None:
    peer = LocalPeer(ME, 8)
    peer.publish_replay(request(), Replayed(torch.ones(3)))
    assert peer.replay_wanted() is None


def test_a_round_beside_computing_is_asked_for_once() -> None:
    def running(peer: PeerHandle) -> list[bool]:
        peer.close_epoch(Epoch(0))
        seen = [peer.epoch_closing()]
        peer.start_averaging(contribution())
        peer.close_epoch(Epoch(0))
        return [*seen, peer.epoch_closing()]

    def failed(peer: PeerHandle) -> bool:
        assert peer.start_averaging(contribution()).result().status is RoundStatus.ABORTED
        peer.close_epoch(Epoch(0))
        return peer.epoch_closing()

    assert run(Service(), running) == [True, False]
    assert run(Service(outcome=RoundError("no quorum")), failed), "it is over: the next call counts"
