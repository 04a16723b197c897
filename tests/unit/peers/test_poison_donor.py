"""Donors that serve poison: a newcomer gets the right bytes, and names who lied."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
import torch

from peers.attacks.donors import Poison, PoisonDonor
from peers.interfaces import Endpoint
from peers.simulation import run_simulated
from peers.state_server import StateServer
from peers.state_snapshot import StateSnapshot
from peers.state_transfer import FetchPolicy, fetch_state
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.errors import RemoteError, RemoteProtocolError, RemoteTimeout, RoundError
from protocols.ids import PeerId

NEWCOMER = PeerId(b"n" * 32)
PIECE_BYTES = 1024
WORDS = {
    Poison.CHANGED_BYTES: "do not match the hash",
    Poison.OTHER_MANIFEST: "manifest of another state",
    Poison.SHORT_ANSWER: "another part of the state",
    Poison.NAN_VALUES: "do not match the hash",
    Poison.OLDER_STATE: "do not match the hash",
}
"""What is said of each lie; silence is none."""


def state(epoch: int) -> StateSnapshot:
    """Twenty pieces that all change with the epoch."""
    values = torch.arange(20 * PIECE_BYTES // 4, dtype=torch.float32) + epoch
    return StateSnapshot.of([("param/w", values)], epoch=epoch, accepted_samples=epoch * 128, meta={}, piece_bytes=PIECE_BYTES)


def peer(number: int) -> PeerId:
    return PeerId(bytes([number + 1]) * 32)


@dataclass
class Scene:
    """A newcomer among donors."""

    transport: SimulatedTransport
    endpoints: list[Endpoint]
    dropped: list[RemoteError] = field(default_factory=list)

    async def fetch(self, state_hash: bytes | None) -> StateSnapshot:
        policy = FetchPolicy(pieces_in_flight=2)
        return await fetch_state(self.transport, self.endpoints, state_hash, policy=policy, on_drop=self.dropped.append)


def simulate(poisons: Sequence[Poison | None], scenario: Callable[[Scene], Awaitable[None]]) -> None:
    """Members that have gone from epoch 6 to 7, and now serve so; None is a plain `StateServer`."""

    async def main() -> None:
        network = SimulatedNetwork(0, LinkSpec(latency_s=0.02, bandwidth_bytes_per_s=1e6))
        async with AsyncExitStack() as stack:
            endpoints = []
            for number, poison in enumerate(poisons):
                server = PoisonDonor(lambda: None, poison) if poison else StateServer(lambda: None)
                for held in (state(6), state(7)):
                    server.announce(held.state_hash)
                    server.publish(held)
                address = await stack.enter_async_context(SimulatedTransport(network, peer(number)).serve(server.handlers()))
                endpoints.append(Endpoint(peer(number), address))
            await scenario(Scene(SimulatedTransport(network, NEWCOMER), endpoints))

    run_simulated(main(), limit_s=120)


@pytest.mark.parametrize("poison", WORDS)
def test_liars_are_named_and_the_right_bytes_arrive(poison: Poison) -> None:
    async def scenario(scene: Scene) -> None:
        found = await scene.fetch(state(7).state_hash)
        assert found.manifest == state(7).manifest
        assert bytes(found.data) == bytes(state(7).data)
        assert {error.peer for error in scene.dropped} == {peer(0), peer(2)}
        assert all(isinstance(error, RemoteProtocolError) and WORDS[poison] in error.reason for error in scene.dropped)

    simulate([poison, None, poison, None, None], scenario)


def test_silence_costs_a_moment_and_nobody_is_blamed_for_it() -> None:
    async def scenario(scene: Scene) -> None:
        began_s = asyncio.get_running_loop().time()
        assert bytes((await scene.fetch(state(7).state_hash)).data) == bytes(state(7).data)
        assert 1.0 <= asyncio.get_running_loop().time() - began_s < 3.0  # the patience with a piece that is owed
        assert scene.dropped == []

    simulate([Poison.SILENCE, None, Poison.SILENCE, None, None], scenario)


@pytest.mark.parametrize("poison", Poison)
def test_a_newcomer_among_poisoners_alone_gets_nothing(poison: Poison) -> None:
    async def scenario(scene: Scene) -> None:
        with pytest.raises(RoundError):
            await scene.fetch(state(7).state_hash)
        lie = RemoteTimeout if poison is Poison.SILENCE else RemoteProtocolError
        assert {error.peer for error in scene.dropped if isinstance(error, lie)} == {peer(0), peer(1)}

    simulate([poison, poison], scenario)


def test_one_honest_donor_among_all_kinds_is_enough() -> None:
    async def scenario(scene: Scene) -> None:
        assert bytes((await scene.fetch(state(7).state_hash)).data) == bytes(state(7).data)
        assert {error.peer for error in scene.dropped}.isdisjoint({peer(len(Poison))})

    simulate([*Poison, None], scenario)


def test_the_newest_of_the_majority_is_not_the_older_one_of_liars() -> None:
    async def scenario(scene: Scene) -> None:
        assert (await scene.fetch(None)).state_hash == state(7).state_hash
        assert {error.peer for error in scene.dropped} == {peer(0), peer(1)}

    simulate([Poison.OLDER_STATE, Poison.OTHER_MANIFEST, None, None, None], scenario)


def test_without_poison_it_is_a_donor_like_any_other() -> None:
    async def scenario(scene: Scene) -> None:
        assert bytes((await scene.fetch(None)).data) == bytes(state(7).data)
        assert scene.dropped == []

    donor = PoisonDonor(lambda: None)
    donor.announce(state(7).state_hash)
    donor.publish(state(7))

    async def main() -> None:
        network = SimulatedNetwork(0, LinkSpec(latency_s=0.02, bandwidth_bytes_per_s=1e6))
        async with SimulatedTransport(network, peer(0)).serve(donor.handlers()) as address:
            await scenario(Scene(SimulatedTransport(network, NEWCOMER), [Endpoint(peer(0), address)]))

    run_simulated(main(), limit_s=120)
