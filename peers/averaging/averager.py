"""The averaging round. Read `Averager.run_round`: gather, exchange, settle, in that order."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from peers.averaging.context import Expected, MemberContext
from peers.averaging.exchange import Exchange, RoundResult
from peers.averaging.fetching import fetch_blocks, serve_blocks
from peers.averaging.gathering import JOIN, Gathering, LeftOut, NotFormed, TooLate, open_join
from peers.averaging.settling import Settling, verdict_bytes
from peers.interfaces import CallHandler, Handlers, Stream, StreamHandler
from protocols.butterfly import accepted_weight, contributors_in
from protocols.codecs.full import all_finite
from protocols.deadline import AdaptiveDeadline
from protocols.errors import LocalProtocolError, RemoteProtocolError, RemoteRefusal, RemoteTimeout, RoundError
from protocols.ids import BlockIndex, Epoch, PeerId, RoundId
from protocols.messages import BlockTask, Commit, Join, Plan, Report, parse
from protocols.proto.swarm.v1 import control_pb2 as pb
from protocols.rendezvous import RendezvousRules
from protocols.settlement import GiveUp

log = logging.getLogger(__name__)

_REMEMBERED_ROUNDS = 8
_TRIES = 2
"""A group that breaks down is formed anew once: who was cut off from it usually finds that the others have finished."""


@dataclass(frozen=True, slots=True)
class Averaged:
    """What a round gave.

    Args:
        epoch: the epoch it closed.
        vector_D: weighted mean; read-only, because late members are served from it.
        weight: samples that went in.
        contributors: who is in it.
        members: the group, helpers and ourselves included; of a group that closed the epoch without us, the one who gave us its result.
        included_us: False if the group closed the epoch before our contribution was there.
        blamed: members that broke the protocol since the round before, and how.
    """

    epoch: Epoch
    vector_D: torch.Tensor
    weight: float
    contributors: tuple[PeerId, ...]
    members: tuple[PeerId, ...]
    included_us: bool
    blamed: dict[PeerId, str]


class Averager:
    """Runs rounds of one member and serves those of the others.

    Args:
        context: who we are.
        on_close: called with the epoch when others close it before our contribution is ready.
    """

    def __init__(self, context: MemberContext, on_close: Callable[[Epoch], None]) -> None:
        self._context = context
        self._on_close = on_close
        self._blamed: dict[PeerId, str] = {}
        self._failures: Counter[PeerId] = Counter()
        self._failures_epoch = Epoch(0)
        rules = context.rules
        self._gatherings: dict[Epoch, Gathering] = {}
        self._exchanges: Expected[bytes, Exchange] = Expected(limit=_REMEMBERED_ROUNDS)
        self._settlings: Expected[bytes, Settling] = Expected(limit=_REMEMBERED_ROUNDS)
        self._results: dict[Epoch, RoundResult] = {}
        self._commits: dict[Epoch, Commit] = {}
        self._join_deadline = AdaptiveDeadline(rules.stall_timeout_s, rules.join_timeout_s)
        self._exchange_deadline = AdaptiveDeadline(2 * rules.stall_timeout_s, rules.round_timeout_s)
        self.epoch = Epoch(0)
        calls: dict[str, CallHandler] = {JOIN: self._on_join, "closing": self._on_closing, "report": self._on_report}
        streams: dict[str, StreamHandler] = {"exchange": self._on_exchange, "blocks": self._on_blocks}
        self.handlers = Handlers(
            calls={name: self._watched_call(handler) for name, handler in calls.items()},
            streams={name: self._watched_stream(handler) for name, handler in streams.items()},
        )

    # The round, in order

    async def run_round(self, join: Join, own_D: torch.Tensor) -> Averaged:
        """Average our contribution with whoever takes part in closing this epoch.

        Args:
            join: epoch, weight and what the contribution was computed on.
            own_D: the contribution, fp32; not changed and not kept.

        Raises:
            LeftOut: the others hold another state or are ahead of us.
            RoundError: nothing was averaged; the contribution may be offered again.
            LocalProtocolError: our contribution is not finite.
        """
        if join.weight > 0 and not await self._context.heavy(lambda: all_finite(own_D)):
            raise LocalProtocolError("our contribution holds a number that is NaN or infinite")
        for tries_left in range(_TRIES, 0, -1):
            try:
                plan = await self._gather(join, own_D.numel())
                plan, result, commit = await self._average(plan, own_D)
                break
            except TooLate as late:
                return await self._collect(late, own_D.numel())
            except RoundError as error:
                self._forget_gathering(join.epoch)
                if tries_left == 1 or isinstance(error, LeftOut):
                    raise
                log.info("epoch %d: %s; joining again", join.epoch, error)
        blamed = self._conclude(join.epoch, result, commit)
        mask = 0
        for block_mask in result.masks.values():
            mask |= block_mask
        contributors = tuple(plan.members[i].peer for i in contributors_in(plan, mask) or ())
        members = tuple(member.peer for i, member in enumerate(plan.members) if i not in plan.absent)
        return Averaged(join.epoch, result.averaged_D, commit.weight, contributors, members, included_us=True, blamed=blamed)

    async def _gather(self, join: Join, size_elems: int) -> Plan:
        """1. Who takes part."""
        self.epoch = join.epoch
        started_s = asyncio.get_running_loop().time()
        gathering = self._gathering(join.epoch)
        try:
            plan = await gathering.form(join, size_elems)
        except NotFormed as error:
            self._note_failure(join.epoch, error.leader)
            raise
        to_be_dialled = [member.peer for member in plan.members if member.join.bandwidth_bytes_per_s and member.peer != self._context.me]
        if any(self._context.directory.endpoint(peer) is None for peer in to_be_dialled):
            with suppress(TimeoutError):  # others wait for our exchange: better one unknown reducer than a late member
                async with asyncio.timeout(self._context.rules.stall_timeout_s / 2):
                    await self._context.directory.refresh()
        self._join_deadline.observe(asyncio.get_running_loop().time() - started_s)
        return plan

    async def _average(self, plan: Plan, own_D: torch.Tensor) -> tuple[Plan, RoundResult, Commit]:
        """2. Exchange blocks; 3. settle; again for what is missing, until everybody who is left holds the same.

        Returns:
            The last attempt's plan, what we hold, and what was agreed.
        """
        try:
            return await self._attempts(plan, own_D)
        except RoundError:
            self._note_failure(plan.epoch, plan.members[0].peer)
            raise

    async def _attempts(self, plan: Plan, own_D: torch.Tensor) -> tuple[Plan, RoundResult, Commit]:
        result = RoundResult(self._context.blocks_of(own_D.numel()))
        self._results[plan.epoch] = result
        first_digest = plan.digest
        while True:
            started_s = asyncio.get_running_loop().time()
            exchange = Exchange(self._context, plan, own_D, result, self._exchange_deadline.value_s(), self._blame)
            settling = Settling(self._context, plan, first_digest, self._blame)
            self._settlings.put(plan.digest, settling)
            self._exchanges.put(plan.digest, exchange)
            await self._fetch(plan, result)
            await exchange.run()
            self._exchange_deadline.observe(asyncio.get_running_loop().time() - started_s)
            verdict = await settling.run(result, exchange.gone)
            match verdict:
                case Commit():
                    if tuple(result.hashes) != verdict.block_hashes:
                        raise RoundError("the group committed to blocks that we do not hold")
                    own_weight = accepted_weight(plan, result.masks)  # the leader's is a claim
                    return plan, result, replace(verdict, weight=own_weight)
                case GiveUp(reason):
                    raise RoundError(reason)
                case Plan():
                    plan = verdict
                    log.info("epoch %d: attempt %d repairs %d blocks", plan.epoch, plan.attempt, len(plan.reduce) + len(plan.fetch))

    async def _fetch(self, plan: Plan, result: RoundResult) -> None:
        """In a repair: get blocks that another member already holds."""
        wanted: dict[int, list[tuple[BlockTask, bytes]]] = {}
        for task, value in zip(plan.fetch, plan.fetch_hashes, strict=True):
            if result.hashes[task.block] != value:
                wanted.setdefault(task.member, []).append((task, value))
        for holder, items in wanted.items():
            blocks = {task.block: value for task, value in items}
            await fetch_blocks(self._context, plan.members[holder].peer, plan.epoch, blocks, result)

    async def _collect(self, late: TooLate, size_elems: int) -> Averaged:
        """The others closed the epoch without us: take their result."""
        result = RoundResult(self._context.blocks_of(size_elems))
        commit = late.commit
        wanted = {BlockIndex(block): value for block, value in enumerate(commit.block_hashes)}
        await fetch_blocks(self._context, late.holder, commit.epoch, wanted, result)
        if tuple(result.hashes) != commit.block_hashes:
            raise RoundError("the result of the round we missed could not be fetched")
        blamed = self._conclude(commit.epoch, result, commit)
        return Averaged(commit.epoch, result.averaged_D, commit.weight, (), (late.holder,), included_us=False, blamed=blamed)

    def _conclude(self, epoch: Epoch, result: RoundResult, commit: Commit) -> dict[PeerId, str]:
        """Remember this round for members that come late, and forget older ones; returns whom to blame."""
        blamed, self._blamed = self._blamed, {}
        self._results = {epoch: result}
        self._commits = {epoch: commit}
        self._forget_gathering(epoch)
        self.epoch = Epoch(epoch + 1)
        return blamed

    def _blame(self, peer: PeerId, reason: str) -> None:
        log.info("member %s broke the protocol: %s", peer.short, reason)
        self._blamed.setdefault(peer, reason)

    def _note_failure(self, epoch: Epoch, leader: PeerId) -> None:
        if self._failures_epoch != epoch:
            self._failures_epoch = epoch
            self._failures.clear()
        self._failures[leader] += 1

    def _forget_gathering(self, up_to: Epoch) -> None:
        for epoch in [known for known in self._gatherings if known <= up_to]:
            self._gatherings.pop(epoch).close()

    def _gathering(self, epoch: Epoch) -> Gathering:
        if epoch not in self._gatherings:
            self._forget_gathering(Epoch(epoch - 1))
            round_id = RoundId(self._context.rules.run, epoch)
            failures = dict(self._failures) if self._failures_epoch == epoch else {}
            rules = RendezvousRules(self._join_deadline.value_s(), self._context.rules.max_group, failures)
            self._gatherings[epoch] = Gathering(self._context, round_id, rules, lambda: self._on_close(epoch), self._blame)
        return self._gatherings[epoch]

    # What we serve to others

    def _watched_call(self, handler: CallHandler) -> CallHandler:
        async def watched(sender: PeerId, request: bytes) -> bytes:
            try:
                return await handler(sender, request)
            except RemoteProtocolError as error:
                self._blame(sender, error.reason)  # whoever signed what was sent: it was sent by this member
                raise

        return watched

    def _watched_stream(self, handler: StreamHandler) -> StreamHandler:
        async def watched(stream: Stream) -> None:
            try:
                async with asyncio.timeout(self._context.rules.stream_timeout_s):
                    await handler(stream)
            except TimeoutError as error:
                raise RemoteTimeout(stream.peer, "its stream outlived the round") from error
            except RemoteProtocolError as error:
                self._blame(stream.peer, error.reason)
                raise

        return watched

    def _committed(self, epoch: Epoch) -> Commit | None:
        return self._commits.get(epoch)

    def _refuse_other_epoch(self, sender: PeerId, epoch: Epoch) -> None:
        if epoch < self.epoch:
            raise RemoteRefusal(sender, "behind", f"you are at epoch {epoch}, the swarm is at {self.epoch}")
        if epoch > self.epoch:
            raise RemoteRefusal(sender, "ahead", f"you are at epoch {epoch}, this member is only at {self.epoch}")

    async def _on_join(self, sender: PeerId, request: bytes) -> bytes:
        sealed = await self._context.heavy(lambda: open_join(self._context, request))
        if sealed.peer != sender:
            raise RemoteProtocolError(sender, f"it came with the join of {sealed.peer.short}")
        commit = self._committed(sealed.join.epoch)
        if commit:
            return pb.JoinReply(commit=commit.to_message()).SerializeToString()
        self._refuse_other_epoch(sender, sealed.join.epoch)
        plan = await self._gathering(sealed.join.epoch).answer(sealed)
        if plan.index_of(sender) is None:
            raise RemoteRefusal(sender, "group-full", "the group was formed without you")
        message = pb.JoinReply()
        message.plan.ParseFromString(plan.encode())
        return message.SerializeToString()

    async def _on_closing(self, sender: PeerId, request: bytes) -> bytes:
        epoch = Epoch(parse(pb.Closing, request, sender).epoch)
        commit = self._committed(epoch)
        if commit:
            return pb.JoinReply(commit=commit.to_message()).SerializeToString()
        self._refuse_other_epoch(sender, epoch)
        self._gathering(epoch).closing_heard(sender)
        return pb.JoinReply().SerializeToString()

    async def _on_report(self, sender: PeerId, request: bytes) -> bytes:
        report = Report.decode(request, sender)
        for commit in self._commits.values():
            if self._settlings.peek(report.plan_digest) is None and commit.first_plan_digest == report.plan_digest:
                return verdict_bytes(commit)
        settling = await self._settlings.get(report.plan_digest, self._context.rules.settle_timeout_s)
        if settling is None:
            raise RemoteRefusal(sender, "unknown-plan", "this member knows nothing of that plan")
        verdict = await settling.serve(sender, report)
        if isinstance(verdict, GiveUp):
            raise RemoteRefusal(sender, "given-up", verdict.reason)
        return verdict_bytes(verdict)

    async def _on_exchange(self, stream: Stream) -> None:
        try:
            async with asyncio.timeout(self._context.rules.stall_timeout_s):
                first = await stream.receive()
        except TimeoutError as error:
            raise RemoteTimeout(stream.peer, "it opened an exchange and said nothing") from error
        digest = parse(pb.ExchangeHeader, first or b"", stream.peer).plan_digest
        exchange = await self._exchanges.get(digest, self._context.rules.stall_timeout_s)
        if exchange is None:
            raise RemoteRefusal(stream.peer, "unknown-plan", "this member knows nothing of that plan")
        await exchange.serve(stream)

    async def _on_blocks(self, stream: Stream) -> None:
        await serve_blocks(self._context, stream, self._results)
