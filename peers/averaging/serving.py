"""What a member serves to the others of its rounds, as a group's leader, as a reducer, or as one that holds a result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from peers.averaging.coin_table import SHARE
from peers.averaging.context import Blame, MemberContext
from peers.averaging.exchange import Exchange
from peers.averaging.fetching import serve_blocks
from peers.averaging.liveness import ALIVE, beat_until, next_frame
from peers.averaging.parts_transfer import PARTS, serve_parts
from peers.averaging.plans import JOIN, open_join
from peers.averaging.rounds import Rounds
from peers.averaging.settling import SETTLE, Settling
from peers.averaging.standing_in import StandIns
from peers.averaging.verdicts import VERDICT, verdict_bytes
from peers.averaging.verifying import VERIFY, Verifying
from peers.interfaces import CallHandler, Handlers, Stream, StreamHandler
from peers.transport.handling import BANNED
from protocols.errors import RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.ids import PeerId, RoundId
from protocols.messages import Closing, SealedJoin, parse
from protocols.messages_blocks import PartsRequest
from protocols.proto.swarm.v1 import control_pb2 as pb
from protocols.proto.swarm.v1 import trust_pb2


@dataclass(frozen=True, slots=True)
class Guards:
    """What a verified run adds.

    Args:
        calls: more methods.
        check_join: looks at every join that comes; raises RemoteRefusal.
    """

    calls: Mapping[str, CallHandler]
    check_join: Callable[[SealedJoin], None]


class RoundServer:
    """Handlers of the averaging round.

    Args:
        context: who we are.
        rounds: what we know of rounds.
        stand_ins: where we stand in for others.
        blame: called with a member that broke the protocol, and how.
        guards: what a verified run serves besides; None in others.
    """

    def __init__(self, context: MemberContext, rounds: Rounds, stand_ins: StandIns, blame: Blame, guards: Guards | None = None) -> None:
        self._context = context
        self._rounds = rounds
        self._stand_ins = stand_ins
        self._blame = blame
        self._guards = guards
        calls: dict[str, CallHandler] = {"closing": self._on_closing, ALIVE: self._on_alive, VERDICT: self._on_verdict}
        streams: dict[str, StreamHandler] = {
            JOIN: self._on_join,
            "exchange": self._on_exchange,
            SETTLE: self._on_settle,
            "blocks": self._on_blocks,
        }
        if guards:
            calls |= {SHARE: self._on_share, **guards.calls}
            streams |= {VERIFY: self._on_verify, PARTS: self._on_parts}
        self.handlers = Handlers(
            calls={name: self._watched_call(handler) for name, handler in calls.items()},
            streams={name: self._watched_stream(handler) for name, handler in streams.items()},
        )

    # Gather

    async def _on_join(self, stream: Stream) -> None:
        request = await self._first_message(stream)
        sealed = await self._context.heavy(lambda: open_join(self._context, request))
        if sealed.peer != stream.peer:
            raise RemoteProtocolError(stream.peer, f"it came with the join of {sealed.peer.short}")
        if self._guards:
            self._guards.check_join(sealed)
        round_id = RoundId(self._context.rules.run, sealed.join.epoch, sealed.join.round_index)
        commit = self._rounds.newest_commit(round_id)
        if commit:
            await stream.send(pb.JoinReply(commit=commit.to_message()).SerializeToString())
            return
        self._rounds.check_turn(stream.peer, round_id)
        with self._rounds.gathering(round_id).waiting(sealed) as planned:
            plan = await beat_until(stream, self._context.rules.heartbeat_s, lambda: asyncio.shield(planned))
        message = pb.JoinReply()
        message.plan.ParseFromString(plan.encode())
        await stream.send(message.SerializeToString())

    async def _on_closing(self, sender: PeerId, request: bytes) -> bytes:
        call = Closing.decode(request, sender)
        round_id = RoundId(self._context.rules.run, call.epoch, call.round_index)
        commit = self._rounds.newest_commit(round_id)
        if commit and not call.stand_in:
            return pb.ClosingReply(commit=commit.to_message()).SerializeToString()
        self._rounds.check_turn(sender, round_id)
        if call.stand_in:
            self._stand_ins.wanted(sender, round_id)
        elif plan := self._rounds.gathering(round_id).plan_with(sender):
            answer = pb.ClosingReply()
            answer.plan.ParseFromString(plan.encode())
            return answer.SerializeToString()
        else:
            self._rounds.gathering(round_id).closing_heard(sender, call.failures)
        return pb.ClosingReply(coming=self._rounds.on_our_way_to(round_id)).SerializeToString()

    async def _on_alive(self, sender: PeerId, request: bytes) -> bytes:
        """That there is an answer says it all."""
        return b""

    # Exchange

    async def _on_exchange(self, stream: Stream) -> None:
        header = parse(pb.ExchangeHeader, await self._first_message(stream), stream.peer)
        exchange: Exchange | None = await self._rounds.exchanges.get(header.plan_digest, self._context.rules.stall_timeout_s)
        if exchange is None:
            raise RemoteRefusal(stream.peer, "unknown-plan", "this member knows nothing of that plan")
        await exchange.serve(stream, header.committed)

    async def _on_blocks(self, stream: Stream) -> None:
        await serve_blocks(self._context, stream, self._rounds.results)

    # Settle

    async def _on_settle(self, stream: Stream) -> None:
        digest = await self._plan_digest(stream)
        settling: Settling | None = self._rounds.settlings.peek(digest)
        if settling is None:
            if commit := self._rounds.commit_of(digest):
                await stream.send(verdict_bytes(commit))
                return
            settling = await self._rounds.settlings.get(digest, self._context.rules.stall_timeout_s)
        if settling is None:
            raise RemoteRefusal(stream.peer, "unknown-plan", "this member knows nothing of that plan")
        await settling.serve(stream)

    async def _on_verdict(self, sender: PeerId, request: bytes) -> bytes:
        """The commit of a round, by its first plan, or nothing: not decided, as far as we know."""
        commit = self._rounds.commit_of(parse(pb.ExchangeHeader, request, sender).plan_digest)
        return verdict_bytes(commit) if commit else b""

    # Verify

    async def _on_verify(self, stream: Stream) -> None:
        digest = await self._plan_digest(stream)
        verifying: Verifying | None = await self._rounds.verifyings.get(digest, self._context.rules.stall_timeout_s)
        if verifying is None:
            raise RemoteRefusal(stream.peer, "unknown-plan", "this member has no result of that plan")
        await verifying.serve(stream)

    async def _on_share(self, sender: PeerId, request: bytes) -> bytes:
        digest = parse(trust_pb2.ShareRequest, request, sender).first_plan_digest
        verifying: Verifying | None = self._rounds.verifyings.peek(digest)
        if verifying is None:
            raise RemoteRefusal(sender, "not-ready", "this member has no result of that plan")
        return verifying.share(sender, request)

    async def _on_parts(self, stream: Stream) -> None:
        request = PartsRequest.decode(await self._first_message(stream), stream.peer)
        await serve_parts(stream, self._rounds.evidence.peek(request.first_plan_digest), request)

    async def _plan_digest(self, stream: Stream) -> bytes:
        return parse(pb.ExchangeHeader, await self._first_message(stream), stream.peer).plan_digest

    async def _first_message(self, stream: Stream) -> bytes:
        return bytes(await next_frame(stream, self._context.rules.stall_timeout_s))

    # Whoever breaks the protocol while it is served is blamed

    def _admit(self, peer: PeerId) -> None:
        if peer in self._context.ledger:
            raise RemoteRefusal(peer, BANNED, "you are banned from this run")

    def _watched_call(self, handler: CallHandler) -> CallHandler:
        async def watched(sender: PeerId, request: bytes) -> bytes:
            self._admit(sender)
            try:
                return await handler(sender, request)
            except RemoteProtocolError as error:
                self._blame(sender, error.reason)  # whoever signed what was sent: it was sent by this member
                raise

        return watched

    def _watched_stream(self, handler: StreamHandler) -> StreamHandler:
        async def watched(stream: Stream) -> None:
            self._admit(stream.peer)
            try:
                async with asyncio.timeout(self._context.rules.stream_timeout_s):
                    await handler(stream)
            except TimeoutError as error:
                raise RemoteTimeout(stream.peer, "its stream outlived the round") from error
            except RemoteProtocolError as error:
                self._blame(stream.peer, error.reason)
                raise

        return watched
