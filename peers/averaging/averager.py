"""The averaging round. Read `Averager.run_round`: gather, exchange, settle, in that order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from peers.averaging.context import Expected, MemberContext
from peers.averaging.exchange import Exchange, RoundResult
from peers.averaging.fetching import fetch_blocks, serve_blocks
from peers.averaging.gathering import JOIN, Gathering, LeftOut, TooLate, open_join
from peers.averaging.settling import Settling, verdict_bytes
from peers.interfaces import Handlers, Stream
from protocols.butterfly import contributors_in
from protocols.deadline import AdaptiveDeadline
from protocols.errors import RemoteRefusal, RemoteTimeout, RoundError
from protocols.ids import Epoch, PeerId, RoundId
from protocols.messages import BlockTask, Commit, Join, Plan, Report, parse
from protocols.proto.swarm.v1 import control_pb2 as pb
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
        group_size: members of the group, helpers included.
        included_us: False if the group closed the epoch before our contribution was there.
        blamed: members that broke the protocol, and how.
    """

    epoch: Epoch
    vector_D: torch.Tensor
    weight: float
    contributors: tuple[PeerId, ...]
    group_size: int
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
        rules = context.rules
        self._gatherings: dict[Epoch, Gathering] = {}
        self._exchanges: Expected[bytes, Exchange] = Expected(limit=_REMEMBERED_ROUNDS)
        self._settlings: Expected[bytes, Settling] = Expected(limit=_REMEMBERED_ROUNDS)
        self._results: dict[Epoch, RoundResult] = {}
        self._commits: dict[Epoch, Commit] = {}
        self._join_deadline = AdaptiveDeadline(rules.stall_timeout_s, rules.join_timeout_s)
        self._exchange_deadline = AdaptiveDeadline(2 * rules.stall_timeout_s, rules.round_timeout_s)
        self.epoch = Epoch(0)
        self.handlers = Handlers(
            calls={JOIN: self._on_join, "closing": self._on_closing, "report": self._on_report},
            streams={"exchange": self._on_exchange, "blocks": self._on_blocks},
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
        """
        for tries_left in range(_TRIES, 0, -1):
            try:
                plan = await self._gather(join, own_D.numel())
                result, commit, exchange = await self._average(plan, own_D)
                break
            except TooLate as late:
                return await self._collect(late, own_D.numel())
            except RoundError as error:
                self._forget_gathering(join.epoch)
                if tries_left == 1 or isinstance(error, LeftOut):
                    raise
                log.info("epoch %d: %s; joining again", join.epoch, error)
        self._conclude(join.epoch, result, commit)
        members = plan.members
        mask = 0
        for block_mask in result.masks.values():
            mask |= block_mask
        return Averaged(
            join.epoch,
            result.averaged_D,
            commit.weight,
            tuple(members[i].peer for i in contributors_in(plan, mask) or ()),
            len(members),
            included_us=True,
            blamed={members[i].peer: reason for i, reason in exchange.blamed.items()},
        )

    async def _gather(self, join: Join, size_elems: int) -> Plan:
        """1. Who takes part."""
        self.epoch = join.epoch
        started_s = asyncio.get_running_loop().time()
        gathering = self._gathering(join.epoch)
        plan = await gathering.form(join, size_elems)
        if any(self._context.directory.endpoint(member.peer) is None for member in plan.members if member.peer != self._context.me):
            await self._context.directory.refresh()
        self._join_deadline.observe(asyncio.get_running_loop().time() - started_s)
        return plan

    async def _average(self, plan: Plan, own_D: torch.Tensor) -> tuple[RoundResult, Commit, Exchange]:
        """2. Exchange blocks; 3. settle; again for what is missing, until everybody who is left holds the same."""
        result = RoundResult(self._context.blocks_of(own_D.numel()))
        self._results[plan.epoch] = result
        first_digest = plan.digest
        while True:
            started_s = asyncio.get_running_loop().time()
            exchange = Exchange(self._context, plan, own_D, result, self._exchange_deadline.value_s())
            settling = Settling(self._context, plan, first_digest)
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
                    return result, verdict, exchange
                case GiveUp(reason):
                    raise RoundError(reason)
                case Plan():
                    log.info("epoch %d: attempt %d repairs %d blocks", plan.epoch, verdict.attempt, len(verdict.reduce) + len(verdict.fetch))
                    plan = verdict

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
        if len(commit.block_hashes) != result.blocks.count:
            raise RoundError("the group closed the epoch with a vector of another size")
        wanted = dict(enumerate(commit.block_hashes))
        await fetch_blocks(self._context, late.holder, commit.epoch, wanted, result)  # type: ignore[arg-type]
        if tuple(result.hashes) != commit.block_hashes:
            raise RoundError("the result of the round we missed could not be fetched")
        self._conclude(commit.epoch, result, commit)
        return Averaged(commit.epoch, result.averaged_D, commit.weight, (), 0, included_us=False, blamed={})

    def _conclude(self, epoch: Epoch, result: RoundResult, commit: Commit) -> None:
        """Remember this round for members that come late, and forget older ones."""
        self._results = {epoch: result}
        self._commits = {epoch: commit}
        self._forget_gathering(epoch)
        self.epoch = Epoch(epoch + 1)

    def _forget_gathering(self, up_to: Epoch) -> None:
        for epoch in [known for known in self._gatherings if known <= up_to]:
            self._gatherings.pop(epoch).close()

    def _gathering(self, epoch: Epoch) -> Gathering:
        if epoch not in self._gatherings:
            self._forget_gathering(Epoch(epoch - 1))
            round_id = RoundId(self._context.rules.run, epoch)
            self._gatherings[epoch] = Gathering(self._context, round_id, self._join_deadline.value_s(), lambda: self._on_close(epoch))
        return self._gatherings[epoch]

    # What we serve to others

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
            raise RemoteRefusal(sender, "not-yours", "that join is another member's")
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
