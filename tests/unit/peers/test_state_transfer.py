"""State transfer on the simulated network: many donors, lies, stalls, cuts, and nothing downloaded twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from peers.interfaces import Endpoint, Handlers, Stream
from peers.simulation import run_simulated
from peers.state_server import StateServer
from peers.state_snapshot import PartialState, StateSnapshot
from peers.state_transfer import FetchPolicy, fetch_state
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.errors import RemoteError, RemoteProtocolError, RemoteTimeout, RoundError, StateDirError
from protocols.ids import PeerId
from protocols.manifest import tensor_bytes
from protocols.messages_state import (
    CHUNK_BYTES,
    MANIFEST_CALL,
    PIECES_STREAM,
    PieceChunk,
    PiecesRequest,
)

JOINER = PeerId(b"j" * 32)
PIECE_BYTES = 1024
POLICY = FetchPolicy(pieces_in_flight=2)


def snapshot(pieces: int = 20, *, epoch: int = 3, changed: Sequence[int] = (), piece_bytes: int = PIECE_BYTES) -> StateSnapshot:
    """A state of so many pieces; those in `changed` differ from the usual ones."""
    values = torch.arange(pieces * piece_bytes // 4, dtype=torch.float32)
    for piece in changed:
        values[piece * piece_bytes // 4] += 0.5
    return StateSnapshot.of([("param/w", values)], epoch=epoch, accepted_samples=epoch * 128, meta={}, piece_bytes=piece_bytes)


@dataclass
class Donor:
    """A member that serves `state`, with faults by choice.

    Args:
        corrupt: pieces it sends with one bit flipped.
        stall_after: pieces after which it goes silent.
        stop_after: pieces after which it ends the stream.
        wrong_order: it sends another piece than was asked for.
    """

    peer: PeerId
    state: StateSnapshot | None
    corrupt: frozenset[int] = frozenset()
    stall_after: int | None = None
    stop_after: int | None = None
    wrong_order: bool = False
    sent: list[int] = field(default_factory=list)

    def handlers(self) -> Handlers:
        server = StateServer(lambda: None, publish_wait_s=1.0)
        if self.state is not None:
            server.announce(self.state.state_hash)
            server.publish(self.state)
        return Handlers(calls=server.handlers().calls, streams={PIECES_STREAM: self._pieces})

    async def _pieces(self, stream: Stream) -> None:
        assert self.state is not None
        while (message := await stream.receive()) is not None:
            for index in PiecesRequest.decode(message, stream.peer).pieces:
                if self.stop_after is not None and len(self.sent) >= self.stop_after:
                    return
                if self.stall_after is not None and len(self.sent) >= self.stall_after:
                    await asyncio.Event().wait()
                self.sent.append(index)
                piece = bytearray(self.state.piece(index))
                piece[0] ^= index in self.corrupt
                for start in range(0, len(piece), CHUNK_BYTES):
                    chunk = PieceChunk(index + self.wrong_order, start, bytes(piece[start : start + CHUNK_BYTES]))
                    await stream.send(chunk.encode())


@dataclass
class Swarm:
    network: SimulatedNetwork
    transport: SimulatedTransport
    endpoints: list[Endpoint]
    dropped: list[RemoteError] = field(default_factory=list)

    async def fetch(
        self,
        state_hash: bytes | None,
        partial: PartialState | None = None,
        own: StateSnapshot | None = None,
    ) -> StateSnapshot:
        return await fetch_state(self.transport, self.endpoints, state_hash, partial, own=own, policy=POLICY, on_drop=self.dropped.append)


def donors(count: int, state: StateSnapshot | None) -> list[Donor]:
    return [Donor(PeerId(bytes([number + 1]) * 32), state) for number in range(count)]


def simulate(members: Sequence[Donor], scenario: Callable[[Swarm], Awaitable[None]], link: LinkSpec | None = None) -> None:
    """Run a scenario with these donors on a simulated network."""

    async def main() -> None:
        network = SimulatedNetwork(0, link or LinkSpec(latency_s=0.02, bandwidth_bytes_per_s=1e6))
        async with AsyncExitStack() as stack:
            endpoints = []
            for donor in members:
                address = await stack.enter_async_context(SimulatedTransport(network, donor.peer).serve(donor.handlers()))
                endpoints.append(Endpoint(donor.peer, address))
            await scenario(Swarm(network, SimulatedTransport(network, JOINER), endpoints))

    run_simulated(main(), limit_s=120)


def test_pieces_come_from_all_donors_and_none_twice() -> None:
    state, members = snapshot(), donors(3, snapshot())

    async def scenario(swarm: Swarm) -> None:
        fetched = await swarm.fetch(state.state_hash)
        assert bytes(fetched.data) == bytes(state.data)
        assert fetched.manifest == state.manifest
        assert all(donor.sent for donor in members)
        assert sorted(index for donor in members for index in donor.sent) == list(range(20))
        assert swarm.dropped == []

    simulate(members, scenario)


def test_a_piece_larger_than_a_chunk_arrives_whole() -> None:
    state = snapshot(3, piece_bytes=2 * CHUNK_BYTES + 4096)

    async def scenario(swarm: Swarm) -> None:
        assert bytes((await swarm.fetch(state.state_hash)).data) == bytes(state.data)

    simulate(donors(2, state), scenario)


def test_a_liar_is_dropped_and_named_and_the_others_complete_the_state() -> None:
    state, members = snapshot(), donors(3, snapshot())
    members[1].corrupt = frozenset(range(20))

    async def scenario(swarm: Swarm) -> None:
        assert bytes((await swarm.fetch(state.state_hash)).data) == bytes(state.data)
        (error,) = swarm.dropped
        assert isinstance(error, RemoteProtocolError)
        assert error.peer == members[1].peer
        assert "hash" in error.reason

    simulate(members, scenario)


def test_a_donor_that_sends_another_piece_is_a_liar() -> None:
    members = donors(2, snapshot())
    members[0].wrong_order = True

    async def scenario(swarm: Swarm) -> None:
        await swarm.fetch(snapshot().state_hash)
        (error,) = swarm.dropped
        assert isinstance(error, RemoteProtocolError)
        assert error.peer == members[0].peer

    simulate(members, scenario)


def test_a_donor_that_stalls_is_left_behind_within_its_deadline() -> None:
    state, members = snapshot(), donors(2, snapshot())
    members[0].stall_after = 1

    async def scenario(swarm: Swarm) -> None:
        started_s = asyncio.get_running_loop().time()
        assert bytes((await swarm.fetch(state.state_hash)).data) == bytes(state.data)
        assert asyncio.get_running_loop().time() - started_s < 4

    simulate(members, scenario)


def test_a_lone_donor_that_stalls_is_named_after_three_seconds() -> None:
    members = donors(1, snapshot())
    members[0].stall_after = 5

    async def scenario(swarm: Swarm) -> None:
        started_s = asyncio.get_running_loop().time()
        with pytest.raises(RoundError, match="sent no state for 3 s"):
            await swarm.fetch(snapshot().state_hash)
        assert 3 <= asyncio.get_running_loop().time() - started_s < 4
        assert [type(error) for error in swarm.dropped] == [RemoteTimeout]

    simulate(members, scenario)


def test_a_black_hole_does_not_delay_the_others() -> None:
    members = donors(3, snapshot())

    async def scenario(swarm: Swarm) -> None:
        swarm.network.partition([JOINER], [members[2].peer])
        started_s = asyncio.get_running_loop().time()
        await swarm.fetch(snapshot().state_hash)
        assert asyncio.get_running_loop().time() - started_s < 1

    simulate(members, scenario)


def test_a_slow_donor_is_overtaken_at_the_end() -> None:
    members = donors(2, snapshot())

    async def scenario(swarm: Swarm) -> None:
        swarm.network.set_host(members[0].peer, LinkSpec(latency_s=0.02, bandwidth_bytes_per_s=700))
        swarm.network.set_host(members[1].peer, LinkSpec(latency_s=0.02, bandwidth_bytes_per_s=10_000))
        started_s = asyncio.get_running_loop().time()
        await swarm.fetch(snapshot().state_hash)
        assert members[0].sent
        assert asyncio.get_running_loop().time() - started_s < 3.5  # the slow one alone needs 4 s for its two pieces

    simulate(members, scenario)


def test_only_pieces_that_differ_from_our_own_state_are_downloaded() -> None:
    members = donors(2, snapshot())

    async def scenario(swarm: Swarm) -> None:
        fetched = await swarm.fetch(snapshot().state_hash, own=snapshot(changed=(4, 11)))
        assert bytes(fetched.data) == bytes(snapshot().data)
        assert sorted(members[0].sent + members[1].sent) == [4, 11]

    simulate(members, scenario)


def test_a_state_held_already_costs_no_piece() -> None:
    members = donors(1, snapshot())

    async def scenario(swarm: Swarm) -> None:
        assert (await swarm.fetch(snapshot().state_hash, own=snapshot())).state_hash == snapshot().state_hash
        assert members[0].sent == []

    simulate(members, scenario)


@pytest.mark.parametrize("on_disk", [False, True])
def test_after_a_cut_only_what_is_missing_is_downloaded(on_disk: bool, tmp_path: Path) -> None:
    members = donors(1, snapshot())
    members[0].stop_after = 7
    partial = PartialState(tmp_path if on_disk else None)

    async def scenario(swarm: Swarm) -> None:
        with pytest.raises(RoundError, match="ended the stream"):
            await swarm.fetch(snapshot().state_hash, partial)
        assert partial.held_pieces == 7
        members[0].stop_after = None
        again = PartialState(tmp_path) if on_disk else partial  # on disk: as if the process had been killed
        fetched = await swarm.fetch(snapshot().state_hash, again)
        assert bytes(fetched.data) == bytes(snapshot().data)
        assert sorted(members[0].sent) == list(range(20))

    simulate(members, scenario)


def test_a_torn_piece_on_disk_is_downloaded_again(tmp_path: Path) -> None:
    partial = PartialState(tmp_path)
    partial.begin(snapshot().manifest)
    for index in range(20):
        partial.store(index, snapshot().piece(index))
    data = bytearray((tmp_path / "state.part").read_bytes())
    data[5 * PIECE_BYTES] ^= 1
    (tmp_path / "state.part").write_bytes(data)
    again = PartialState(tmp_path)
    assert again.begin(snapshot().manifest) == [5]
    again.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_newer_state_takes_over_what_was_collected_of_an_older_one() -> None:
    partial = PartialState()
    older, newer = snapshot(epoch=3), snapshot(epoch=4, changed=(0, 19))
    partial.begin(older.manifest)
    for index in range(10):
        partial.store(index, older.piece(index))
    assert partial.begin(newer.manifest) == [0, *range(10, 20)]


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateDirError, match="cannot keep the state"):
        PartialState(tmp_path / "file" / "below").begin(snapshot().manifest)

    async def scenario(swarm: Swarm) -> None:
        with pytest.raises(StateDirError):
            await swarm.fetch(snapshot().state_hash, PartialState(tmp_path / "file" / "below"))

    simulate(donors(2, snapshot()), scenario)


def test_the_newest_state_is_what_most_donors_hold_not_the_highest_epoch() -> None:
    members = donors(5, snapshot())
    members[0].state = snapshot(epoch=1000)
    members[3].state = None
    members[4].state = snapshot(epoch=2000)

    async def scenario(swarm: Swarm) -> None:
        assert (await swarm.fetch(None)).state_hash == snapshot().state_hash

    simulate(members, scenario)


def test_the_manifest_of_another_state_is_a_lie() -> None:
    members = donors(1, snapshot())

    async def wrong_manifest(caller: PeerId, request: bytes) -> bytes:
        return snapshot(epoch=4).manifest.encoded

    class Liar(Donor):
        def handlers(self) -> Handlers:
            return Handlers(calls={MANIFEST_CALL: wrong_manifest}, streams={PIECES_STREAM: self._pieces})

    async def scenario(swarm: Swarm) -> None:
        with pytest.raises(RoundError, match="another state"):
            await swarm.fetch(snapshot().state_hash)

    simulate([Liar(members[0].peer, snapshot())], scenario)


def test_when_all_fail_every_donor_is_named_with_its_reason() -> None:
    members = donors(3, snapshot())
    members[0].corrupt = frozenset(range(20))
    members[1].stop_after = 0
    members[2].state = None

    async def scenario(swarm: Swarm) -> None:
        with pytest.raises(RoundError) as caught:
            await swarm.fetch(snapshot().state_hash)
        text = str(caught.value)
        assert all(donor.peer.short in text for donor in members)
        assert all(reason in text for reason in ("do not match the hash", "ended the stream", "does not hold that state"))

    simulate(members, scenario)


def test_without_donors_there_is_a_clear_error() -> None:
    async def scenario(swarm: Swarm) -> None:
        for state_hash in (None, snapshot().state_hash):
            with pytest.raises(RoundError, match="no member"):
                await swarm.fetch(state_hash)

    simulate([], scenario)


def test_an_oversized_state_is_refused_before_memory_is_taken() -> None:
    async def scenario(swarm: Swarm) -> None:
        policy = FetchPolicy(max_state_bytes=19 * PIECE_BYTES)
        with pytest.raises(RoundError, match="more than"):
            await fetch_state(swarm.transport, swarm.endpoints, snapshot().state_hash, policy=policy)

    simulate(donors(1, snapshot()), scenario)


def test_snapshots_give_back_their_tensors_and_find_damage() -> None:
    state = snapshot(3)
    ((name, tensor),) = state.tensors()
    assert name == "param/w"
    assert bytes(tensor_bytes(tensor)) == bytes(state.data)
    assert state.damaged_piece() is None
    damaged = bytearray(state.data)
    damaged[2 * PIECE_BYTES] ^= 1
    assert StateSnapshot(state.manifest, damaged).damaged_piece() == 2
