"""The verification of a round: everybody's shares make a coin, everybody's figures in its direction show which blocks to look at.

    every member    share ──▶ leader ──▶ everybody's shares: the coin
                    check ──▶ leader ──▶ everybody's checks: which blocks to look at

The leader is the first of the settlement's order that is there. It can leave somebody out, nothing else: shares and checks are committed to
and signed. Whoever is left out aloud is asked by everybody; whoever is left out in silence, or misses somebody whose share it has, turns to
the next leader. What a member concludes does not depend on who led.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from peers.averaging.coin_table import CoinHooks, CoinTable
from peers.averaging.context import MemberContext
from peers.averaging.evidence import Evidence
from peers.averaging.liveness import alongside, beat_forever, beat_until, has_ended, next_real_frame, plain_remote_errors
from peers.interfaces import Stream
from protocols.errors import LocalProtocolError, RemoteError, RemoteProtocolError, RemoteRefusal
from protocols.ids import PeerId
from protocols.messages import Plan, parse, require
from protocols.proto.swarm.v1 import control_pb2
from protocols.proto.swarm.v1 import trust_pb2 as pb
from protocols.settlement import settlement_order
from protocols.trust.statements import CHECK, COIN_TRIES, Check, Commitment
from protocols.trust.verification import fitting_check

log = logging.getLogger(__name__)

VERIFY = "verify"
"""Name of the stream to the leader."""

_A_SHARE, _A_CHECK = b"S", b"C"


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification gave.

    Args:
        coin: of the round.
        checks: by index into the plan, with the signed bytes.
        commitments: of everybody whose share is in the coin, by index.
    """

    coin: bytes
    checks: dict[int, tuple[bytes, Check]]
    commitments: dict[int, Commitment]


@dataclass(frozen=True, slots=True)
class VerifyingHooks:
    """What a verification needs of its owner.

    Args:
        make_check: (coin) -> our figures. Runs in the pool.
        coin: see `CoinHooks`.
    """

    make_check: Callable[[bytes], Check]
    coin: CoinHooks


def _no_more_checks(_coin: bytes) -> Check:
    raise LocalProtocolError("a check of a round whose verification is over")


class Verifying:
    """Of one round, seen by one member.

    Args:
        context: who we are.
        evidence: of the round.
        plan: of its last attempt.
        hooks: of our owner.
        patience_s: how long members may need for their figures.
    """

    def __init__(self, context: MemberContext, evidence: Evidence, plan: Plan, hooks: VerifyingHooks, patience_s: float) -> None:
        self._context = context
        self._evidence = evidence
        self._plan = plan
        self._me = evidence.me
        self._hooks = hooks
        self._patience_s = max(patience_s, context.rules.stall_timeout_s)
        self._table = CoinTable(context, evidence, plan, hooks.coin)
        self.share = self._table.share
        self.sealed_commitment = self._table.sealed_commitment
        self._checks: dict[int, tuple[bytes, Check]] = {}
        self._coin = b""
        self._own_check: tuple[bytes, Check] | None = None
        self._made: dict[bytes, tuple[bytes, Check]] = {}
        self._in_touch: set[int] = set()
        self._gone: set[int] = set()
        self._changed = asyncio.Event()
        self._log: list[bytes] = []
        self._finished = False

    # Our own side, in order

    async def run(self) -> Verified | None:
        """Verify under the first leader that is there; None if nobody could lead us through."""
        try:
            for leader in settlement_order(self._plan):
                if await (self._lead() if leader == self._me else self._follow(leader)):
                    return Verified(self._coin, self._checks, self._table.shown)
            return None
        finally:
            self._finished = True
            self._hooks = replace(self._hooks, make_check=_no_more_checks)  # we are remembered for a while, and the result is large
            self._tell()

    # Following

    async def _follow(self, leader: int) -> bool:
        """Whether a leader has led us through."""
        peer = self._plan.members[leader].peer
        endpoint = self._context.directory.endpoint(peer)
        if endpoint is None or leader in self._plan.absent:
            return False
        rules = self._context.rules
        try:
            with plain_remote_errors():
                async with (
                    asyncio.timeout(3 * self._patience_s + rules.stall_timeout_s),
                    self._context.transport.stream(endpoint, VERIFY, timeout_s=rules.stream_timeout_s) as stream,
                ):
                    await stream.send(control_pb2.ExchangeHeader(plan_digest=self._evidence.digest).SerializeToString())
                    await self._led(stream, leader)
                    return True
        except RemoteError as error:
            log.info("not verified under %s: %s", peer.short, error)
            if isinstance(error, RemoteProtocolError):
                self._hooks.coin.blame(peer, error.reason)
        except TimeoutError:
            log.info("not verified under %s: it keeps us waiting", peer.short)
        return False

    async def _led(self, stream: Stream, leader: int) -> None:
        async with alongside(beat_forever(stream, self._context.rules.heartbeat_s)):
            if self._context.conduct.shows_share(stream.peer):
                await stream.send(_A_SHARE + self._table.share_message(0, ()))
            while True:
                message = bytes(await next_real_frame(stream, self._context.rules.stall_timeout_s))
                shown = parse(pb.Coin, message, stream.peer)
                if not shown.missing:
                    break
                relayed = await self._table.look_for(shown, stream.peer)
                await stream.send(_A_SHARE + self._table.share_message(shown.attempt + 1, relayed))
            self._coin = await self._table.accept_coin(shown, leader)
            own_check = await self._sealed_check()
            if self._context.conduct.reports(stream.peer):
                await stream.send(_A_CHECK + own_check)
            checks = bytes(await next_real_frame(stream, self._context.rules.stall_timeout_s))
            await self._accept_checks(parse(pb.Checks, checks, stream.peer), stream.peer)
            self._log = [message, checks]

    async def _sealed_check(self) -> bytes:
        """Our check, made once for a coin, even if leaders show one coin, another one, and the first again: two would convict us."""
        coin = self._coin
        if coin not in self._made:
            check = self._context.conduct.check(await self._context.heavy(lambda: self._hooks.make_check(coin)))
            self._made[coin] = (self._context.notary.seal(CHECK, check.encode()), check)
        self._own_check = self._made[coin]
        return self._own_check[0]

    async def _accept_checks(self, shown: pb.Checks, leader: PeerId) -> None:
        require(len(shown.sealed) <= len(self._plan.members), leader, "more checks than members")
        checks: dict[int, tuple[bytes, Check]] = {}
        for sealed in shown.sealed:
            member, check = await self._read_check(bytes(sealed), leader)
            checks[member] = (bytes(sealed), check)
        left_out = self._me not in checks and self._context.conduct.reports(leader)
        require(not left_out, leader, "checks without ours")
        self._checks = checks

    async def _read_check(self, sealed: bytes, by: PeerId) -> tuple[int, Check]:
        signer, payload = await self._context.heavy(lambda: self._context.notary.open_old(CHECK, sealed))
        member = self._plan.index_of(signer)
        if member is None:
            raise RemoteProtocolError(by, "a check of a stranger")
        check = Check.decode(payload, signer)
        fitting_check(self._evidence.plan, check, self._coin, self._evidence.blocks.count, by)
        return member, check

    # Leading

    async def _lead(self) -> bool:
        """Whether we have led: not if others spoil every try of the coin, one after the other."""
        try:
            with plain_remote_errors():
                await self._lead_through()
        except RemoteRefusal as error:
            log.info("epoch %d: not verified: %s", self._plan.epoch, error)
            return False
        return True

    async def _lead_through(self) -> None:
        everyone = set(range(len(self._plan.members))) - self._plan.absent - {self._me}
        attempt = 0
        async with alongside(self._give_up_strangers(everyone)):
            while True:
                self._table.shares[attempt][self._me] = self._evidence.secret.share(attempt)
                missing = await self._missing_shares(attempt, everyone - self._table.declared)
                if not missing or attempt + 1 == COIN_TRIES:
                    break
                await self._announce_missing(attempt, missing)
                if not missing - self._table.shares[attempt].keys():
                    break
                self._table.declared |= missing - self._table.shares[attempt].keys()
                attempt += 1
            await self._announce_coin(attempt)
            self._checks[self._me] = (await self._sealed_check(), self._own_check[1])  # type: ignore[index]
            await self._wait_while(lambda: bool(self._table.shares[attempt].keys() - self._checks.keys() - self._gone), self._patience_s)
        self._say(pb.Checks(sealed=[sealed for sealed, _ in self._checks.values()]))

    async def _missing_shares(self, attempt: int, expected: set[int]) -> set[int]:
        shares = self._table.shares[attempt]
        await self._wait_while(lambda: bool(expected - shares.keys() - self._gone), self._context.rules.stall_timeout_s)
        return expected - shares.keys()

    async def _announce_missing(self, attempt: int, missing: set[int]) -> None:
        """Say aloud whom we miss; everybody looks for them, and shows the next share."""
        log.info("epoch %d: no share of the coin from %d members", self._plan.epoch, len(missing))
        self._say(pb.Coin(attempt=attempt, missing=sorted(missing)))
        self._table.highest_attempt = attempt + 1
        await asyncio.gather(*(self._table.ask_for_share(member, attempt) for member in sorted(missing)))
        waited_for = self._in_touch - missing
        longest_s = 2 * self._context.rules.stall_timeout_s
        await self._wait_while(lambda: bool(waited_for - self._table.shares[attempt + 1].keys() - self._gone), longest_s)

    async def _announce_coin(self, attempt: int) -> None:
        shares = self._table.shares[attempt]
        entries = [pb.MemberShare(member=i, sealed_commitment=self._table.commitments[i][0], share=shares[i]) for i in sorted(shares)]
        reductions = [sealed for _, sealed, _ in self._evidence.statements]
        shown = pb.Coin(attempt=attempt, shares=entries, sealed_reductions=reductions)
        self._coin = await self._table.accept_coin(shown, self._me)
        self._say(shown)

    def _say(self, message: pb.Coin | pb.Checks) -> None:
        self._log.append(message.SerializeToString())
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait_while(self, condition: Callable[[], bool], longest_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                while condition():
                    await self._changed.wait()

    async def _give_up_strangers(self, everyone: set[int]) -> None:
        """Whoever has not turned to us is gone at once if its process has ended."""
        await asyncio.sleep(self._context.rules.heartbeat_s)
        await asyncio.gather(*(self._learn_its_end(stranger) for stranger in everyone - self._in_touch))

    async def _learn_its_end(self, stranger: int) -> None:
        if await has_ended(self._context, self._plan.members[stranger].peer) and stranger not in self._in_touch:
            self._gone.add(stranger)
            self._tell()

    async def serve(self, stream: Stream) -> None:
        """Take a member's shares and check, tell it what we announce. Whoever comes before we lead waits; whoever comes after gets it all.

        Raises:
            RemoteRefusal: it is not in this plan, or we could not verify ourselves.
            RemoteProtocolError: it broke the protocol.
        """
        index = self._plan.index_of(stream.peer)
        if index is None or index in self._plan.absent:
            raise RemoteRefusal(stream.peer, "not-in-plan", "you are not in this plan")
        self._in_touch.add(index)
        try:
            with plain_remote_errors():
                async with alongside(self._listen(stream, index)):
                    await self._answer(stream)
        finally:
            if index not in self._checks:
                self._gone.add(index)
                self._tell()
        if not self._log:
            raise RemoteRefusal(stream.peer, "not-verified", "this member could not verify the round")

    async def _answer(self, stream: Stream) -> None:
        said = 0
        while said < len(self._log) or not self._finished:
            if said == len(self._log):
                await beat_until(stream, self._context.rules.heartbeat_s, self._news_after(said))
            else:
                await stream.send(self._log[said])
                said += 1

    def _news_after(self, said: int) -> Callable[[], Awaitable[None]]:
        async def wait() -> None:
            while said == len(self._log) and not self._finished:
                await self._changed.wait()

        return wait

    async def _listen(self, stream: Stream, index: int) -> None:
        while True:
            message = bytes(await next_real_frame(stream, self._context.rules.stall_timeout_s))
            if message[:1] == _A_SHARE:
                await self._table.hear_share(message[1:], index, stream.peer)
            elif message[:1] == _A_CHECK and self._coin:
                member, check = await self._read_check(message[1:], stream.peer)
                require(member == index, stream.peer, "a check of somebody else")
                self._checks.setdefault(member, (message[1:], check))
            else:
                raise RemoteProtocolError(stream.peer, "neither a share of the coin nor a check")
            self._tell()
