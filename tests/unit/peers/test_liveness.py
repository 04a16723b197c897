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


def test_who_is_cancelled_while_a_connection_breaks_stays_cancelled() -> None:
    """A TaskGroup alone would raise only the error, and who caught it would wait for an event that nobody sets."""
    went_on = []

    async def follow() -> None:
        try:
            with plain_remote_errors():
                async with alongside(_breaks_when_stopped()):
                    await asyncio.Event().wait()
        except RemoteError as error:
            went_on.append(error)

    async def main() -> None:
        following = asyncio.get_running_loop().create_task(follow())
        await time_passes(1.0)
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following

    run_simulated(main())
    assert not went_on


def test_who_is_cancelled_while_what_ran_beside_it_is_being_stopped_stays_cancelled() -> None:
    went_on = []

    async def slow_to_stop() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await time_passes(5.0)
            raise RemoteTimeout(peer(), "the connection broke while we were leaving")

    async def follow() -> None:
        with plain_remote_errors():
            async with alongside(slow_to_stop()):
                await time_passes(1.0)
        went_on.append(True)

    async def main() -> None:
        following = asyncio.get_running_loop().create_task(follow())
        await time_passes(2.0)
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following

    run_simulated(main())
    assert not went_on
