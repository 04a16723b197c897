"""Breaches of the protocol in rounds that verify: whoever commits one is banned for it, and nobody can have it laid at another's door."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from google.protobuf.message import DecodeError

from peers.averaging.trust_rules import TrustRules
from peers.simulation import run_simulated
from protocols.proto.swarm.v1 import control_pb2
from protocols.proto.swarm.v1 import trust_pb2 as pb
from protocols.trust.offences import Offence
from tests.helpers.averaging_swarm import SimulatedSwarm, averaged, rules, same_bytes
from tests.helpers.swarm_tampering import Tamper
from tests.helpers.transport_worlds import pass_time
from tests.helpers.trust_values import NOTARIES

COUNT, OFFENDER, VICTIM = 5, 3, 1


def committing(change: Callable[[pb.Committed], None]) -> Tamper:
    """A member that commits to something else than it should, towards everybody."""

    def changed(method: str, message: bytes) -> list[bytes]:
        header = control_pb2.ExchangeHeader()
        if method != "exchange" or len(message) < 200 or not _parsed(header, message) or not header.committed:
            return [message]
        m = pb.Committed.FromString(header.committed)
        change(m)
        header.committed = m.SerializeToString()
        return [header.SerializeToString()]

    return Tamper(dialled=changed)


def _parsed(header: control_pb2.ExchangeHeader, message: bytes) -> bool:
    try:
        header.ParseFromString(message)
    except DecodeError:
        return False
    return len(header.plan_digest) == 32


def bans_after(tamper: Tamper | None, epochs: int = 2) -> list[set[tuple[int, Offence]]]:
    """Whom each honest member has banned, and for what."""

    async def main() -> list[set[tuple[int, Offence]]]:
        tampers = {OFFENDER: tamper} if tamper else {}
        async with SimulatedSwarm(COUNT, averaging=rules(trust=TrustRules(probation_epochs=0)), tampers=tampers) as swarm:
            honest = [number for number in range(COUNT) if number != OFFENDER or not tamper]
            for epoch in range(epochs):
                theirs = asyncio.ensure_future(swarm.round(1000, epoch=epoch, who=[OFFENDER])) if tamper else None
                outcomes = averaged(await swarm.round(1000, epoch=epoch, who=honest))
                assert len(outcomes) == len(honest)
                assert same_bytes(outcomes)
                if theirs:
                    theirs.cancel()
                await pass_time(20.0)
            numbers = {member.peer: number for number, member in enumerate(swarm.members)}
            found = []
            for number in honest:
                guarding = swarm.members[number].averager.guarding
                assert guarding
                ledger = guarding.court._context.ledger
                found.append({(numbers[ban.accused], ban.offence) for ban in ledger.bans})
            return found

    return run_simulated(main(), seed=3, limit_s=3000.0)


def test_honest_members_ban_nobody() -> None:
    assert bans_after(None) == [set()] * COUNT


def test_what_another_has_signed_for_another_purpose_is_its_senders_breach() -> None:
    """Everybody has everybody's sealed join. It is no commitment, and the error that says so names who signed it."""
    foreign = NOTARIES[VICTIM].seal("join", b"anything")

    def change(m: pb.Committed) -> None:
        m.sealed_commitment = foreign

    assert bans_after(committing(change)) == [{(OFFENDER, Offence.MALFORMED)}] * (COUNT - 1)


def test_hashes_that_were_not_signed_are_a_breach() -> None:
    def change(m: pb.Committed) -> None:
        m.block_hashes[0] = b"x" * 32

    assert bans_after(committing(change)) == [{(OFFENDER, Offence.MALFORMED)}] * (COUNT - 1)
