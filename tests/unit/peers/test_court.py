"""Judgements of a group as one member counts and spreads them; garbage from others changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from peers.averaging.context import Expected, MemberContext
from peers.averaging.court import BAN, JUDGE, LEDGER, Court
from peers.averaging.guarding import Guarding, cannot_replay
from peers.interfaces import Endpoint, Handlers
from peers.simulation import run_simulated
from peers.testing import FixedDirectory
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.errors import RemoteProtocolError, RemoteRefusal
from protocols.grid import place
from protocols.ids import Epoch, PeerId
from protocols.messages import Plan
from protocols.proto.swarm.v1 import trust_pb2 as pb
from protocols.trust.ledger import ABSURD_AHEAD, MAX_JUDGEMENT_BYTES, Ban, Quorum, ban_by_judgements, majority, two_thirds
from protocols.trust.offences import Offence
from protocols.trust.statements import COMMITMENT, JUDGEMENT, Charge
from tests.helpers.averaging_swarm import rules
from tests.helpers.transport_worlds import pass_time
from tests.helpers.trust_values import (
    EPOCH,
    NOTARIES,
    PEERS,
    commitment_to,
    judgements_of,
    sealed_commitment,
    signed_join,
    signed_plan,
)

COUNT = 5
PLAN = signed_plan(range(COUNT))
GUILTY = Offence.REDUCTION
VICTIM = 4


@dataclass
class Seat:
    """A member with a court; what it hears and who is banned."""

    court: Court
    context: MemberContext
    bans: list[Ban]
    calls: list[str]

    async def hears(self, method: str, message: bytes, sender: int = 1) -> bytes:
        return await self.court.calls[method](PEERS[sender], message)

    def banned(self, number: int) -> bool:
        return self.court.is_banned(PEERS[number])


Scene = Callable[[list[Seat]], Awaitable[None]]


def play(
    scene: Scene,
    *,
    count: int = COUNT,
    group_size: int = COUNT,
    commitments: bool = True,
    in_round: Sequence[int] | None = None,
    quorum: Quorum = majority,
) -> None:
    """Courts of members on one network; all but those left out have opened the round."""

    async def main() -> None:
        network = SimulatedNetwork(0, LinkSpec(latency_s=0.01))
        endpoints = {peer: Endpoint(peer, str(peer)) for peer in PEERS}
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            seats = []
            for number in range(count):
                seats.append(await seat(number, network, endpoints, tasks, stack))
            for number in range(count) if in_round is None else in_round:
                seats[number].court.open_round(PLAN)
            await scene(seats)

    async def seat(
        number: int, network: SimulatedNetwork, endpoints: dict[PeerId, Endpoint], tasks: asyncio.TaskGroup, stack: AsyncExitStack
    ) -> Seat:
        peer, bans, calls = PEERS[number], [], []  # type: ignore[var-annotated]
        transport = SimulatedTransport(network, peer)
        context = MemberContext(peer, transport, FixedDirectory(peer, endpoints), NOTARIES[number], rules(), tasks)

        def commitment_of(digest: bytes, who: PeerId) -> bytes | None:
            return sealed_commitment(PLAN, PEERS.index(who)) if commitments and digest == PLAN.digest else None

        court = Court(context, lambda _epoch, _round, _peer: group_size, commitment_of, bans.append, quorum)
        watched = {name: _counted(handler, name, calls) for name, handler in court.calls.items()}
        await stack.enter_async_context(transport.serve(Handlers(calls=watched, streams={})))
        return Seat(court, context, bans, calls)

    run_simulated(main(), seed=1, limit_s=500.0)


def _counted(
    handler: Callable[[PeerId, bytes], Awaitable[bytes]], name: str, calls: list[str]
) -> Callable[[PeerId, bytes], Awaitable[bytes]]:
    async def counted(sender: PeerId, request: bytes) -> bytes:
        calls.append(name)
        return await handler(sender, request)

    return counted


def judgement(juror: int, accused: int = VICTIM, plan: Plan = PLAN, offence: Offence = GUILTY) -> bytes:
    return judgements_of(plan, accused, (juror,), offence)[0]


def ban_of(accused: int, *, plan: Plan = PLAN, committed: bool = True) -> bytes:
    jurors = [number for number in range(COUNT) if number != accused][: COUNT // 2 + 1]
    return ban_by_judgements(
        PEERS[accused], GUILTY, plan, judgements_of(plan, accused, jurors), sealed_commitment(plan, accused) if committed else None
    )


def page_of(*accused: int) -> bytes:
    return pb.LedgerPage(bans=[ban_of(number) for number in accused]).SerializeToString()


async def refused(work: Awaitable[object], kind: type[Exception] = RemoteProtocolError) -> None:
    with pytest.raises(kind):
        await work


def test_more_than_half_ban_and_not_before() -> None:
    async def scene(seats: list[Seat]) -> None:
        for juror, banned in ((1, False), (2, False), (3, True)):
            await seats[0].hears(JUDGE, judgement(juror))
            assert seats[0].banned(VICTIM) is banned
        await seats[0].hears(JUDGE, judgement(0), sender=1)
        assert [ban.accused for ban in seats[0].bans] == [PEERS[VICTIM]]

    play(scene)


def test_a_judgement_counts_once_whoever_brings_it_and_offences_are_not_added_up() -> None:
    async def scene(seats: list[Seat]) -> None:
        for sender in (1, 2, 3):
            await seats[0].hears(JUDGE, judgement(1), sender)
            await seats[0].hears(JUDGE, judgement(2), sender)
        await seats[0].hears(JUDGE, judgement(3, offence=Offence.CHECK))
        assert not seats[0].banned(VICTIM)

    play(scene)


def test_all_are_told_what_one_has_found_and_all_end_with_the_ban() -> None:
    async def scene(seats: list[Seat]) -> None:
        for seat in seats[:3]:
            seat.court.judge(PLAN.digest, PEERS[VICTIM], GUILTY)
            seat.court.judge(PLAN.digest, PEERS[VICTIM], GUILTY)
        await pass_time(1.0)
        assert [seat.banned(VICTIM) for seat in seats[:VICTIM]] == [True] * VICTIM
        assert seats[3].calls.count(JUDGE) == 3
        assert all(len(seat.bans) == 1 for seat in seats[:VICTIM])
        assert seats[VICTIM].banned(VICTIM)  # it is told as well

    play(scene)


def test_whoever_saw_a_larger_group_needs_more() -> None:
    async def scene(seats: list[Seat]) -> None:
        for juror in (0, 1, 2):
            await seats[3].hears(JUDGE, judgement(juror))
        assert not seats[3].banned(VICTIM)
        seats[3].court.judge(PLAN.digest, PEERS[VICTIM], GUILTY)
        assert seats[3].banned(VICTIM)

    play(scene, group_size=7)


def test_in_one_group_of_several_it_takes_two_thirds() -> None:
    async def scene(seats: list[Seat]) -> None:
        for juror in (1, 2, 3):
            await seats[0].hears(JUDGE, judgement(juror))
        assert not seats[0].banned(VICTIM)
        await seats[0].hears(BAN, page_of(VICTIM))
        assert not seats[0].banned(VICTIM)
        seats[0].court.judge(PLAN.digest, PEERS[VICTIM], GUILTY)
        assert seats[0].banned(VICTIM)

    play(scene, quorum=two_thirds)


def test_nobody_judges_itself_or_in_a_round_that_it_was_not_in() -> None:
    async def scene(seats: list[Seat]) -> None:
        seats[1].court.judge(PLAN.digest, PEERS[1], GUILTY)
        seats[0].court.judge(PLAN.digest, PEERS[VICTIM], GUILTY)
        await pass_time(1.0)
        assert all(not seat.calls for seat in seats[:VICTIM])

    play(scene, in_round=(1, 2, 3))


def test_garbage_changes_nothing() -> None:
    async def scene(seats: list[Seat]) -> None:
        hears = seats[0].hears
        other_round = signed_plan(range(COUNT), number=1)
        await refused(hears(JUDGE, judgement(1, plan=other_round)), RemoteRefusal)
        charge = Charge(PLAN.digest, EPOCH, PEERS[VICTIM], GUILTY)
        forged = PEERS[2].public_key + judgement(1)[32:]
        for bad in (
            b"",
            judgement(1)[:-1],
            forged,
            NOTARIES[1].seal("accusation", charge.encode_judgement()),
            NOTARIES[1].seal(JUDGEMENT, b"\xff"),
            NOTARIES[9].seal(JUDGEMENT, charge.encode_judgement()),
            NOTARIES[1].seal(JUDGEMENT, replace(charge, accused=PEERS[9]).encode_judgement()),
            NOTARIES[1].seal(JUDGEMENT, charge.encode_judgement() + b"\xba\x3e\x80\x80\x01" + bytes(MAX_JUDGEMENT_BYTES)),
        ):
            await refused(hears(JUDGE, bad))
        for bad in (b"", b"\xff", ban_of(VICTIM)[:-1], pb.Ban(accused=PEERS[VICTIM].public_key, offence="check").SerializeToString()):
            await refused(hears(BAN, pb.LedgerPage(bans=[bad]).SerializeToString()))
        await refused(hears(BAN, b"\xff"))
        await refused(hears(LEDGER, b"\xff\xff"))
        assert not seats[0].context.ledger.bans
        for juror in (1, 2, 3):
            await hears(JUDGE, judgement(juror))
        assert seats[0].banned(VICTIM)

    play(scene)


def test_the_banned_have_no_voice() -> None:
    async def scene(seats: list[Seat]) -> None:
        await seats[0].hears(BAN, page_of(3))
        for juror in (1, 2, 3):
            await seats[0].hears(JUDGE, judgement(juror))
        assert not seats[0].banned(VICTIM)

    play(scene)


def test_a_ban_is_told_to_all_whom_one_meets_and_they_believe_it() -> None:
    async def scene(seats: list[Seat]) -> None:
        for juror in (1, 2, 3):
            await seats[0].hears(JUDGE, judgement(juror))
        later = signed_plan([0, 5, 6], epoch=Epoch(EPOCH + 1))
        seats[0].court.open_round(later)
        await pass_time(1.0)
        assert seats[5].banned(VICTIM)
        assert seats[6].banned(VICTIM)
        seats[0].court.open_round(signed_plan([0, 5, 7], epoch=Epoch(EPOCH + 3)))
        await pass_time(1.0)
        assert seats[5].calls.count(BAN) == 1
        assert not seats[7].calls  # by then it is in everybody's ledger

    play(scene, count=8, group_size=0, in_round=range(COUNT))


def test_newcomers_read_ledgers_page_by_page() -> None:
    async def scene(seats: list[Seat]) -> None:
        for accused in range(1, COUNT):
            await seats[0].hears(BAN, page_of(accused))
        assert await seats[7].court.fetch_ledger([PEERS[0]]) == 4
        assert [ban.accused for ban in seats[7].bans] == sorted(PEERS[1:COUNT])
        page = pb.LedgerPage.FromString(await seats[0].hears(LEDGER, pb.LedgerRequest(offset=3).SerializeToString(), 7))
        assert (len(page.bans), page.more) == (1, False)
        page = pb.LedgerPage.FromString(await seats[0].hears(LEDGER, pb.LedgerRequest(offset=9).SerializeToString(), 7))
        assert (len(page.bans), page.more) == (0, False)

    play(scene, count=8, group_size=0, in_round=range(COUNT))


def test_pages_are_short_enough_for_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peers.averaging.court._PAGE_BYTES", 2 * len(ban_of(1)))

    async def scene(seats: list[Seat]) -> None:
        for accused in range(1, COUNT):
            await seats[0].hears(BAN, page_of(accused))
        page = pb.LedgerPage.FromString(await seats[0].hears(LEDGER, b"", 7))
        assert (len(page.bans), page.more) == (2, True)
        assert await seats[7].court.fetch_ledger([PEERS[0]]) == 4
        assert seats[0].calls.count(LEDGER) == 2

    play(scene, count=8, group_size=0, in_round=range(COUNT))


def test_many_bans_at_once_are_told_in_calls_that_are_short_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peers.averaging.court._PAGE_BYTES", 2 * len(ban_of(1)))

    async def scene(seats: list[Seat]) -> None:
        await seats[0].hears(BAN, page_of(1, 2, 3, 4))
        seats[0].court.open_round(signed_plan([0, 5], epoch=Epoch(EPOCH + 1)))
        await pass_time(1.0)
        assert all(seats[5].banned(number) for number in range(1, COUNT))
        assert seats[5].calls.count(BAN) == 2

    play(scene, count=8, group_size=0, in_round=range(COUNT))


def test_a_ledger_without_end_ends() -> None:
    async def scene(seats: list[Seat]) -> None:
        endless = pb.LedgerPage(bans=[ban_of(1)], more=True).SerializeToString()
        asked = []

        async def serve(sender: PeerId, request: bytes) -> bytes:
            asked.append(request)
            return endless

        liar = SimulatedTransport(seats[0].context.transport._network, PEERS[9])  # type: ignore[attr-defined]
        async with liar.serve(Handlers(calls={LEDGER: serve}, streams={})):
            assert await seats[7].court.fetch_ledger([PEERS[9]]) == 1
        assert len(asked) == 2

    play(scene, count=8, group_size=0)


def test_a_ban_that_proves_nothing_to_us_hides_no_other() -> None:
    async def scene(seats: list[Seat]) -> None:
        proofs = [ban_of(1, committed=False), ban_of(2)]
        await seats[7].court.learn(proofs, PEERS[0])
        assert not seats[7].banned(1)
        assert seats[7].banned(2)

    play(scene, count=8, group_size=0)


def test_two_accomplices_cannot_ban_whoever_they_like() -> None:
    """They have its join of some old round, as everybody does."""
    forged = signed_plan([VICTIM, 5, 6])
    proof = ban_by_judgements(PEERS[VICTIM], GUILTY, forged, judgements_of(forged, VICTIM, (5, 6)))

    async def scene(seats: list[Seat]) -> None:
        await seats[0].hears(BAN, pb.LedgerPage(bans=[proof]).SerializeToString(), sender=5)
        assert not seats[0].banned(VICTIM)

    play(scene, group_size=0)
    play(scene, group_size=COUNT)


def test_two_commitments_convict_at_once_and_one_does_not() -> None:
    one, other = (NOTARIES[1].seal(COMMITMENT, commitment_to(PLAN, 1, samples=samples).encode()) for samples in (8, 9))

    async def scene(seats: list[Seat]) -> None:
        seats[0].court.convict(PEERS[1], Offence.EQUIVOCATION, [(COMMITMENT, one), (COMMITMENT, one)])
        assert not seats[0].banned(1)
        seats[0].court.convict(PEERS[1], Offence.EQUIVOCATION, [(COMMITMENT, one), (COMMITMENT, other)])
        await pass_time(1.0)
        assert all(seats[number].banned(1) for number in (0, 2, 3, 4))

    play(scene, group_size=0)


def test_an_absurd_join_convicts_and_the_banned_cannot_join() -> None:
    async def scene(seats: list[Seat]) -> None:
        court = seats[0].court
        court.check_join(signed_join(1, Epoch(EPOCH + ABSURD_AHEAD)))
        with pytest.raises(RemoteRefusal):
            court.check_join(signed_join(1, Epoch(EPOCH + ABSURD_AHEAD + 1)))
        with pytest.raises(RemoteRefusal) as caught:
            court.check_join(signed_join(1))
        assert caught.value.code == "banned"
        court.check_join(signed_join(2))

    play(scene)


def test_old_rounds_are_forgotten_with_what_was_said_of_them() -> None:
    async def scene(seats: list[Seat]) -> None:
        await seats[0].hears(JUDGE, judgement(1))
        await seats[0].hears(JUDGE, judgement(2))
        for number in range(64):
            seats[0].court.open_round(signed_plan([0, 1], number=number + 1))
        await refused(seats[0].hears(JUDGE, judgement(3)), RemoteRefusal)
        assert seats[0].court._judgements == {}

    play(scene)


def test_what_was_too_weak_in_a_grid_is_too_weak_when_the_grid_is_forgotten() -> None:
    """Liars who had the majority of one group of many keep their proof until nobody knows the group any more."""

    async def scene(seats: list[Seat]) -> None:
        guarding = Guarding(seats[0].context, SimpleNamespace(evidence=Expected(1), verifyings=Expected(1)), lambda *_: None, cannot_replay)  # type: ignore[arg-type]
        members = frozenset(PEERS[:COUNT])
        for epoch in range(EPOCH, EPOCH + 40):
            guarding.see(Epoch(epoch), place(bytes(32), members, frozenset(), 3))
        assert guarding._group_size(EPOCH, 0, PEERS[VICTIM]) == 0
        await guarding.court.learn([ban_of(VICTIM)], PEERS[1])
        assert not guarding.court.is_banned(PEERS[VICTIM])
        unseen = signed_plan(range(COUNT), epoch=Epoch(EPOCH - 1))
        await guarding.court.learn([ban_of(VICTIM, plan=unseen)], PEERS[1])
        assert guarding.court.is_banned(PEERS[VICTIM])

    play(scene)
