"""What a member keeps of a verified round, serves of it, and fetches: nothing counts that its sender has not signed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import pytest
import torch

from peers.averaging.context import MemberContext
from peers.averaging.evidence import Brought, Evidence
from peers.averaging.parts_transfer import PARTS, fetch_parts, serve_parts
from peers.interfaces import Endpoint, Handlers, Stream
from peers.simulation import run_simulated
from peers.testing import FixedDirectory
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.content import content_hash
from protocols.errors import RemoteProtocolError, RemoteRefusal, RoundError
from protocols.frames import BlockBytes, FrameKind, frames_of
from protocols.ids import Attempt, BlockIndex, PeerId
from protocols.messages import BlockTask
from protocols.messages_blocks import PartsRequest
from protocols.proto.swarm.v1 import trust_pb2 as pb
from protocols.trust.statements import COMMITMENT, REDUCTION, Reduction
from tests.helpers.averaging_swarm import rules
from tests.helpers.transport_worlds import pass_time
from tests.helpers.trust_values import NOTARIES, PEERS, commitment_to, secret_of, signed_plan

COUNT, BLOCKS, BLOCK_ELEMS = 3, 4, 10
PLAN = signed_plan(range(COUNT), blocks=BLOCKS)
FIRST, SECOND = BlockIndex(0), BlockIndex(1)


@dataclass
class Holder:
    """A member with its evidence; `serves` may be replaced by what a liar does."""

    context: MemberContext
    evidence: Evidence
    asked: list[PartsRequest] = field(default_factory=list)
    lies: Callable[[Stream, PartsRequest], Awaitable[None]] | None = None

    async def on_parts(self, stream: Stream) -> None:
        request = PartsRequest.decode(bytes(await stream.receive() or b""), stream.peer)
        self.asked.append(request)
        if self.lies:
            await self.lies(stream, request)
        else:
            await serve_parts(stream, self.evidence, request)


Scene = Callable[[list[Holder]], Awaitable[None]]


def play(scene: Scene, *, gone: Sequence[int] = ()) -> None:
    async def main() -> None:
        network = SimulatedNetwork(0, LinkSpec(latency_s=0.01))
        endpoints = {peer: Endpoint(peer, str(peer)) for peer in PEERS[:COUNT]}
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            holders = []
            for number in range(COUNT):
                transport = SimulatedTransport(network, PEERS[number])
                directory = FixedDirectory(PEERS[number], endpoints)
                context = MemberContext(PEERS[number], transport, directory, NOTARIES[number], rules(block_elems=BLOCK_ELEMS), tasks)
                own_D = torch.full((BLOCKS * BLOCK_ELEMS,), float(number))
                evidence = Evidence(
                    context, PLAN, own_D, Brought(0, 8, coin_seed=secret_of(number).seed), lambda *_: None, lambda _peer: None
                )
                await evidence.commit()
                holders.append(Holder(context, evidence))
                if number not in gone:
                    await stack.enter_async_context(transport.serve(Handlers(calls={}, streams={PARTS: holders[-1].on_parts})))
            await scene(holders)

    run_simulated(main(), seed=1, limit_s=500.0)


def opening(holders: list[Holder], number: int, **changes: object) -> bytes:
    """What a member sends before its blocks; with another commitment if there are changes."""
    plain = holders[number].evidence.opening(PEERS[0])
    if not changes:
        return plain
    m = pb.Committed.FromString(plain)
    said = replace(holders[number].evidence.committed[number].commitment, **changes)  # type: ignore[arg-type]
    m.sealed_commitment = NOTARIES[number].seal(COMMITMENT, said.encode())
    return m.SerializeToString()


def blamed(peer: PeerId, work: Callable[[], object]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        work()
    assert caught.value.peer == peer


def test_a_commitment_is_taken_once_and_another_one_is_a_lie() -> None:
    async def scene(holders: list[Holder]) -> None:
        evidence = holders[0].evidence
        evidence.note_committed(1, opening(holders, 1))
        evidence.note_committed(1, opening(holders, 1))
        blamed(PEERS[1], lambda: evidence.note_committed(1, opening(holders, 1, samples=9)))
        assert evidence.committed[1].commitment.samples == 8

    play(scene)


def test_a_commitment_is_its_members_to_this_round_and_names_its_hashes() -> None:
    async def scene(holders: list[Holder]) -> None:
        evidence = holders[0].evidence
        other_round = signed_plan(range(COUNT), number=1).digest
        m = pb.Committed.FromString(opening(holders, 1))
        fewer, others = pb.Committed(), pb.Committed()
        fewer.CopyFrom(m)
        del fewer.block_hashes[-1]
        others.CopyFrom(m)
        others.block_hashes[0] = b"x" * 32
        for bad in (
            opening(holders, 2),
            opening(holders, 1, first_plan_digest=other_round),
            opening(holders, 1, epoch=PLAN.epoch + 1),
            opening(holders, 1, hashes_root=b""),
            fewer.SerializeToString(),
            others.SerializeToString(),
            b"\xff",
            bytes(5 * 2**20),
        ):
            blamed(PEERS[1], lambda data=bad: evidence.note_committed(1, data))  # type: ignore[misc]
        assert 1 not in evidence.committed

    play(scene)


def test_only_parts_that_were_committed_to_count() -> None:
    async def scene(holders: list[Holder]) -> None:
        evidence, theirs = holders[0].evidence, holders[1].evidence.part(1, FIRST)
        blamed(PEERS[1], lambda: evidence.note_part(1, FIRST, theirs, content_hash(theirs)))
        evidence.note_committed(1, opening(holders, 1))
        blamed(PEERS[1], lambda: evidence.note_part(1, FIRST, b"x" * 40, content_hash(b"x" * 40)))
        evidence.note_part(1, FIRST, theirs, content_hash(theirs))
        assert evidence.part(1, FIRST) == theirs
        with pytest.raises(RoundError):
            evidence.part(1, SECOND)

    play(scene)


def test_it_lets_go_of_all_blocks_and_of_no_statement() -> None:
    async def scene(holders: list[Holder]) -> None:
        evidence = holders[0].evidence
        assert evidence.part(0, FIRST)
        evidence.forget()
        with pytest.raises(RoundError, match="no longer held"):
            evidence.part(0, FIRST)
        assert evidence.committed[0].commitment == replace(evidence.committed[0].commitment)

    play(scene)


def reduction(number: int, blocks: Sequence[int], attempt: int = 0, radius: float = 1.0) -> bytes:
    indices = tuple(BlockIndex(block) for block in blocks)
    said = Reduction(PLAN.digest, attempt, indices, (b"h" * 32,) * len(indices), (radius,) * len(indices))
    return NOTARIES[number].seal(REDUCTION, said.encode())


def test_nobody_takes_the_blame_for_a_block_that_another_has_reduced() -> None:
    """Half of a group would find the one guilty and half the other: neither would be out."""

    async def scene(holders: list[Holder]) -> None:
        evidence = holders[0].evidence
        evidence.note_reduction(1, reduction(1, [1], radius=3.0))
        for bad in (reduction(2, [1]), reduction(2, [1], attempt=1), reduction(2, [1, 2]), reduction(1, [1])):
            blamed(PEERS[2], lambda data=bad: evidence.note_reduction(2, data))  # type: ignore[misc]
        assert evidence.stated_radii()[SECOND] == (1, 3.0)
        assert BlockIndex(2) not in evidence.stated_radii()

    play(scene)


def test_who_reduced_a_block_again_stands_for_it() -> None:
    async def scene(holders: list[Holder]) -> None:
        evidence = holders[0].evidence
        evidence.note_reduction(1, reduction(1, [1], radius=3.0))
        evidence.note_attempt(replace(PLAN, attempt=Attempt(1), reduce=(BlockTask(SECOND, 2),)))
        assert evidence.stated_radii()[SECOND] == (1, 3.0)
        evidence.note_reduction(2, reduction(2, [1], attempt=1, radius=5.0))
        assert evidence.stated_radii()[SECOND] == (2, 5.0)

    play(scene)


# Parts from whoever holds them


async def fetch(holders: list[Holder], member: int, blocks: Sequence[int], from_: Sequence[int], by: int = 0) -> bool:
    wanted = [BlockIndex(block) for block in blocks]
    return await fetch_parts(holders[by].context, holders[by].evidence, member, wanted, [PEERS[number] for number in from_])


def test_parts_come_from_their_member_or_whoever_has_them() -> None:
    async def scene(holders: list[Holder]) -> None:
        assert await fetch(holders, 1, [0, 3], [1], by=2)
        assert await fetch(holders, 1, [0, 3], [2])
        assert holders[0].evidence.part(1, BlockIndex(3)) == holders[1].evidence.part(1, BlockIndex(3))
        assert await fetch(holders, 1, [0, 3], [1])
        assert len(holders[1].asked) == 1  # what is there is not asked for again

    play(scene)


def test_who_refuses_or_is_gone_is_passed_over() -> None:
    async def scene(holders: list[Holder]) -> None:
        holders[1].evidence.forget()
        assert not await fetch(holders, 1, [0], [1])
        assert not await fetch(holders, 1, [0], [2, 0])  # gone, and ourselves
        assert len(holders[1].asked) == 1

    play(scene, gone=[2])


def test_a_holder_that_lies_is_passed_over_and_what_it_says_is_not_kept() -> None:
    async def scene(holders: list[Holder]) -> None:
        assert await fetch(holders, 1, [0], [1], by=2)
        honest = holders[1].evidence.opening(PEERS[0])
        lie = frames_of(BlockBytes(FrameKind.PART, FIRST, b"x" * 40))

        async def other_bytes(stream: Stream, _request: PartsRequest) -> None:
            await stream.send(honest)
            for frame in lie:
                await stream.send(frame)

        async def other_commitment(stream: Stream, _request: PartsRequest) -> None:
            await stream.send(opening(holders, 2))

        async def garbage(stream: Stream, _request: PartsRequest) -> None:
            await stream.send(b"\xff\xff")

        async def half(stream: Stream, _request: PartsRequest) -> None:
            await stream.send(honest)

        async def silence(_stream: Stream, _request: PartsRequest) -> None:
            await pass_time(100.0)

        for liar in (other_bytes, other_commitment, garbage, half, silence):
            holders[1].lies = liar
            assert not await fetch(holders, 1, [0], [1])
            assert (1, FIRST) not in holders[0].evidence.parts
            holders[0].evidence.committed.pop(1, None)
        assert await fetch(holders, 1, [0], [1, 2])
        assert holders[0].evidence.part(1, FIRST) == holders[1].evidence.part(1, FIRST)

    play(scene)


def test_who_has_committed_to_nothing_has_no_parts() -> None:
    async def scene(holders: list[Holder]) -> None:
        nothing = commitment_to(PLAN, 1, hashes_root=b"")
        sealed = NOTARIES[1].seal(COMMITMENT, nothing.encode())

        async def empty(stream: Stream, _request: PartsRequest) -> None:
            await stream.send(pb.Committed(sealed_commitment=sealed).SerializeToString())

        holders[1].lies = empty
        assert not await fetch(holders, 1, [0], [1])

    play(scene)


def test_nothing_is_served_of_rounds_or_members_that_are_not_known() -> None:
    async def scene(holders: list[Holder]) -> None:
        class Unused:
            peer = PEERS[2]

        for evidence, member in ((None, 0), (holders[0].evidence, 2)):
            with pytest.raises(RemoteRefusal):
                await serve_parts(Unused(), evidence, PartsRequest(PLAN.digest, member, ()))  # type: ignore[arg-type]

    play(scene)
