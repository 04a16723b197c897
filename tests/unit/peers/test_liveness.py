"""What becomes of errors and cancellations that meet in one TaskGroup."""

from __future__ import annotations

import asyncio

import pytest

from peers.averaging.liveness import alongside, plain_remote_errors
from peers.simulation import run_simulated
from protocols.errors import RemoteError, RemoteRefusal, RemoteTimeout
from protocols.ids import PeerId
from tests.helpers.attack_scene import time_passes
from tests.helpers.run_world import identity


def peer() -> PeerId:
    return identity(1).peer


async def _breaks_when_stopped() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        raise RemoteTimeout(peer(), "the connection broke while we were leaving")


def test_the_first_remote_error_of_a_group_comes_out_alone() -> None:
    async def refuse() -> None:
        raise RemoteRefusal(peer(), "busy", "come again")

    async def main() -> None:
        with pytest.raises(RemoteRefusal, match="come again"), plain_remote_errors():
            async with alongside(refuse()):
                await asyncio.Event().wait()

    run_simulated(main())


def test_a_fault_of_ours_is_not_hidden_behind_a_remote_error() -> None:
    async def main() -> None:
        with pytest.raises(ExceptionGroup), plain_remote_errors():
            async with alongside(_breaks_when_stopped()):
                await time_passes(0.0)  # the task has begun
                raise ValueError("ours")

    run_simulated(main())


@pytest.mark.parametrize("stopping", [False, True])
@pytest.mark.parametrize("later", range(4))
def test_who_is_cancelled_while_a_connection_breaks_stays_cancelled(stopping: bool, later: int) -> None:
    """A TaskGroup alone would raise only the error, and who caught it would wait for an event that nobody sets.

    Args:
        stopping: the body is through, and what ran beside it was being stopped.
        later: turns of the loop from the break to the cancellation.
    """
    through, broken = asyncio.Event(), asyncio.Event()
    went_on = []

    async def breaks() -> None:
        try:
            await broken.wait()
        except asyncio.CancelledError:
            await broken.wait()
        raise RemoteTimeout(peer(), "the connection broke")

    async def follow() -> None:
        try:
            with plain_remote_errors():
                async with alongside(breaks()):
                    await through.wait()
        except RemoteError:
            await time_passes(1.0)
        went_on.append(True)

    async def main() -> None:
        following = asyncio.get_running_loop().create_task(follow())
        await time_passes(1.0)
        if stopping:
            through.set()
            await time_passes(1.0)
        broken.set()
        for _ in range(later):
            await time_passes(0.0)
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following

    run_simulated(main())
    assert not went_on


def test_what_ran_beside_a_body_is_stopped_and_waited_for() -> None:
    ended = []

    async def beside() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await time_passes(5.0)
            ended.append(asyncio.get_running_loop().time())

    async def main() -> None:
        async with alongside(beside()):
            await time_passes(1.0)
        assert ended == [6.0]

    run_simulated(main())
