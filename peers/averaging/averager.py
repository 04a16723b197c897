"""One epoch of averaging. Read `Averager.average_epoch`, the rounds of an epoch, then `_round`: gather, exchange, settle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from peers.averaging.attempts import average_by_plan
from peers.averaging.auditing import Replayer
from peers.averaging.context import MemberContext
from peers.averaging.evidence import Brought, with_coin
from peers.averaging.fetching import fetch_blocks
from peers.averaging.gathering import Group, LeftOut, NotFormed
from peers.averaging.guarding import Guarding, cannot_replay
from peers.averaging.plans import TooLate
from peers.averaging.result import RoundResult
from peers.averaging.rounds import Rounds
from peers.averaging.serving import RoundServer
from peers.averaging.standing_in import Carried, StandIns, stand_ins
from peers.averaging.unbanned import Unbanned
from peers.averaging.verified import Case
from protocols.butterfly import contributors_in
from protocols.codecs.full import all_finite
from protocols.content import input_hash
from protocols.errors import LocalProtocolError, RoundError
from protocols.grid import Placement, epoch_coin, place
from protocols.ids import BlockIndex, Epoch, PeerId, RoundId
from protocols.messages import Commit, Join, Plan
from protocols.trust.traced import UNTRACED, Traced

log = logging.getLogger(__name__)

_TRIES = 2
"""A group that breaks down is formed anew once: who was cut off from it usually finds that the others have finished."""


@dataclass(frozen=True, slots=True)
class RoundDone:
    """What one round gave.

    Args:
        round_id: which.
        vector_D: the group's weighted mean; read-only, because late members are served from it.
        commit: what the group agreed on; its weight is as we count it.
        input_hash: names the result in the next round.
        members: the group, helpers and ourselves included; of a round that was closed without us, the one who gave us its result.
        shares: of every member whose contribution is in it: the fraction of the vector in which it is.
        plan_s: from our being ready to the plan.
        exchange_s: from the plan to the agreement.
        included_us: False if the round was closed before we were there.
        case: of a verified round that we were in: what can be looked into.
    """

    round_id: RoundId
    vector_D: torch.Tensor
    commit: Commit
    input_hash: bytes
    members: tuple[PeerId, ...]
    shares: dict[PeerId, float]
    plan_s: float
    exchange_s: float
    included_us: bool = True
    case: Case | None = None


@dataclass(frozen=True, slots=True)
class Averaged:
    """What an epoch's rounds gave.

    Args:
        epoch: the epoch it closed.
        vector_D: weighted mean; read-only, because late members are served from it.
        weight: samples that went in.
        shares: of the members of our first group whose contributions are in it: in which fraction of the vector.
        members: everybody we averaged with, ourselves included.
        included_us: False if our contribution is not in it.
        missed: rounds of the epoch that this member had to skip.
        blamed: members that broke the protocol since the epoch before, and how.
    """

    epoch: Epoch
    vector_D: torch.Tensor
    weight: float
    shares: dict[PeerId, float]
    members: tuple[PeerId, ...]
    included_us: bool
    missed: int
    blamed: dict[PeerId, str]

    @property
    def contributors(self) -> tuple[PeerId, ...]:
        """Whose contributions are in it, of our first group."""
        return tuple(self.shares)


def _unwatched(_done: RoundDone) -> None:
    """Nobody looks."""


class Averager:
    """Runs the rounds of one member and serves those of the others.

    Args:
        context: who we are.
        on_close: called with the epoch when others close it before our contribution is ready.
        observe: called after every round that ended well.
        replayer: computes others' contributions again; in runs that verify.
    """

    def __init__(
        self,
        context: MemberContext,
        on_close: Callable[[Epoch], None],
        observe: Callable[[RoundDone], None] = _unwatched,
        replayer: Replayer = cannot_replay,
    ) -> None:
        self._context = context = replace(context, directory=Unbanned(context.directory, context.ledger))
        self._observe = observe
        self._blamed: dict[PeerId, str] = {}
        self._rounds = Rounds(context, on_close, self._blame)
        self.guarding = Guarding(context, self._rounds, self._blame, replayer) if context.rules.trust else None
        self._stand_ins = StandIns(context, self._rounds, self._average_aside)
        guards = self.guarding.guards if self.guarding else None
        self.handlers = RoundServer(context, self._rounds, self._stand_ins, self._blame, guards).handlers

    def held_epoch(self, epoch: Epoch) -> None:
        """The trainer holds this epoch's state: it takes part in closing it next."""
        self._rounds.go_to(RoundId(self._context.rules.run, epoch))

    # The epoch, in order

    async def average_epoch(self, join: Join, own_D: torch.Tensor, first_sample: int = 0, traced: Traced = UNTRACED) -> Averaged:
        """Average our contribution with everybody who takes part in closing this epoch: one round for each axis of the grid.

        The first round takes in what members computed. In each later one a member brings what its group of the round before agreed on,
        and meets members of other groups. A later round that fails is skipped: the member keeps what it has.

        Args:
            join: of the first round: epoch, weight and what the contribution was computed on.
            own_D: the contribution, fp32; not changed.
            first_sample: of our samples of the epoch, which the contribution begins with.
            traced: how it came about.

        Raises:
            LeftOut: the others hold another state or are ahead of us.
            RoundError: nothing was averaged; the contribution may be offered again.
            LocalProtocolError: our contribution is not finite, or has no elements.
        """
        if not own_D.numel():
            raise LocalProtocolError("our contribution has no elements")
        if join.weight > 0 and not await self._context.heavy(lambda: all_finite(own_D)):
            raise LocalProtocolError("our contribution holds a number that is NaN or infinite")
        self._rounds.engaged = True
        own_D, weight = self._context.conduct.contribution(join.epoch, own_D, join.weight)
        brought = Brought(first_sample, round(weight), traced=traced)
        try:
            return await self._all_rounds(replace(join, weight=weight), own_D, brought)
        finally:
            self._rounds.engaged = False
            self._stand_ins.carry(None)

    async def _all_rounds(self, join: Join, own_D: torch.Tensor, brought: Brought) -> Averaged:
        placement = self._placement(join.epoch)
        first = done = await self._round(join, own_D, placement, brought)
        if self.guarding and first.case:
            self.guarding.auditing.begin(first.case)
        members, missed = set(done.members), 0
        index = done.round_id.index + 1
        while index < placement.rounds:
            next_join = replace(join, round_index=index, weight=done.commit.weight, input_hash=done.input_hash)
            brought = Brought(previous_plan_digest=done.commit.first_plan_digest, certificate=done.commit.certificate)
            try:
                if self.guarding:
                    self.guarding.require_certificate(done.commit)
                done = await self._round(next_join, done.vector_D, placement, brought)
                members.update(done.members)
                index = done.round_id.index + 1
            except RoundError as error:
                log.info("epoch %d: round %d is skipped: %s", join.epoch, index, error)
                missed += 1
                index += 1
        self._rounds.go_to(RoundId(self._context.rules.run, Epoch(join.epoch + 1)))
        blamed, self._blamed = self._blamed, {}
        included_us = first.included_us and (join.weight == 0 or self._context.me in first.shares)
        return Averaged(join.epoch, done.vector_D, done.commit.weight, first.shares, tuple(sorted(members)), included_us, missed, blamed)

    def _placement(self, epoch: Epoch) -> Placement:
        """Our view of this epoch's grid; it holds for all of its rounds, or a member that leaves between them would move everybody."""
        context = self._context
        dialable, undialable = context.directory.placed(epoch)
        here = frozenset({context.me})
        if context.dialable:
            dialable |= here
        else:
            undialable |= here
        placement = place(epoch_coin(context.rules.run, epoch), dialable, undialable, context.rules.max_group)
        if self.guarding:
            self.guarding.see(epoch, placement)
        return placement

    # A round, in order

    async def _round(self, join: Join, own_D: torch.Tensor, placement: Placement, brought: Brought) -> RoundDone:
        """Average with one group; whoever finds it closed already takes over its result."""
        round_id = RoundId(self._context.rules.run, join.epoch, join.round_index)
        self._rounds.go_to(round_id)
        if round_id.index:
            self._stand_ins.carry(Carried(join, own_D, placement, brought))
        tries_left = _TRIES
        while True:
            try:
                started_s = asyncio.get_running_loop().time()
                named_join, own = with_coin(self._context, join, brought)
                plan = await self._gather(round_id, named_join, own_D.numel(), placement)
                planned_s = asyncio.get_running_loop().time()
                plan, result, commit, case = await self._average(plan, round_id, own_D, own)
                break
            except TooLate as late:
                if done := await self._collect(late, own_D.numel()):
                    return done
                self._rounds.disbelieve(round_id, late.holder)
            except RoundError as error:
                tries_left -= 1
                if not tries_left or isinstance(error, LeftOut):
                    raise
                log.info("epoch %d: %s; joining again", join.epoch, error)
            finally:
                self._rounds.forget_gathering(round_id)  # the next try forms a new group, also if this one was cancelled
        self._rounds.conclude(round_id, result, commit)
        members = tuple(member.peer for i, member in enumerate(plan.members) if i not in plan.absent)
        ended_s = asyncio.get_running_loop().time()
        named, shares = input_hash(result.contents, commit.first_plan_digest), _shares(plan, result)
        took_s = planned_s - started_s, ended_s - planned_s
        done = RoundDone(round_id, result.averaged_D, commit, named, members, shares, *took_s, case=case)
        self._observe(done)
        return done

    async def _gather(self, round_id: RoundId, join: Join, size_elems: int, placement: Placement) -> Plan:
        """1. Who takes part."""
        started_s = asyncio.get_running_loop().time()
        me, index = self._context.me, round_id.index
        members = frozenset(placement.group(me, index))
        group = Group(members, placement.rounds == 1, lambda missing: stand_ins(placement, me, index, missing))
        try:
            plan = await self._rounds.gathering(round_id).form(join, size_elems, group)
        except NotFormed as error:
            self._rounds.note_failure(round_id, error.leader)
            raise
        to_be_dialled = [member.peer for member in plan.members if member.join.bandwidth_bytes_per_s and member.peer != self._context.me]
        if any(self._context.directory.endpoint(peer) is None for peer in to_be_dialled):
            with suppress(TimeoutError):  # others wait for our exchange: better one unknown reducer than a late member
                async with asyncio.timeout(self._context.rules.stall_timeout_s / 2):
                    await self._context.directory.refresh()
        self._rounds.observe_gathering(round_id, asyncio.get_running_loop().time() - started_s)
        return plan

    async def _average(
        self, plan: Plan, round_id: RoundId, own_D: torch.Tensor, brought: Brought
    ) -> tuple[Plan, RoundResult, Commit, Case | None]:
        """2. Exchange blocks; 3. settle; again for what is missing; 4. verify, in runs that do."""
        try:
            if self.guarding:
                case, commit = await self.guarding.average(plan, own_D, brought)
                return case.plan, case.result, commit, case
            return *await average_by_plan(self._context, self._rounds, plan, own_D, self._blame), None
        except (RoundError, asyncio.CancelledError):  # a leader that is stopped shall know of it as the others do
            self._rounds.note_failure(round_id, plan.members[0].peer)
            raise

    async def _average_aside(self, plan: Plan, own_D: torch.Tensor, brought: Brought) -> None:
        if self.guarding:
            await self.guarding.average(plan, own_D, brought)
        else:
            await average_by_plan(self._context, self._rounds, plan, own_D, self._blame)

    async def _collect(self, late: TooLate, size_elems: int) -> RoundDone | None:
        """The others closed the round without us: take their result; None if whoever says so cannot give it."""
        commit = late.commit
        round_id = RoundId(self._context.rules.run, commit.epoch, commit.round_index)
        result = RoundResult(self._context.blocks_of(size_elems), self._context.rules.result_codec, self._context.memory)
        wanted = {BlockIndex(block): value for block, value in enumerate(commit.block_hashes)}
        await fetch_blocks(self._context, late.holder, commit.first_plan_digest, wanted, result)
        if tuple(result.hashes) != commit.block_hashes:
            log.info("the result of a round that %s says is closed cannot be had there", late.holder.short)
            return None
        if self.guarding and not await self.guarding.certified(commit, result, late.holder):
            return None
        self._rounds.conclude(round_id, result, commit)
        named = input_hash(result.contents, commit.first_plan_digest)
        return RoundDone(round_id, result.averaged_D, commit, named, (late.holder,), {}, 0.0, 0.0, included_us=False)

    def _blame(self, peer: PeerId, reason: str) -> None:
        log.info("member %s broke the protocol: %s", peer.short, reason)
        self._blamed.setdefault(peer, reason)


def _shares(plan: Plan, result: RoundResult) -> dict[PeerId, float]:
    """Of every member whose contribution is in a result: the fraction of the vector in which it is."""
    elems: dict[PeerId, int] = {}
    for block, mask in result.masks.items():
        for index in contributors_in(plan, mask) or ():
            peer = plan.members[index].peer
            elems[peer] = elems.get(peer, 0) + result.blocks.elems(block)
    return {peer: elems[peer] / plan.size_elems for peer in sorted(elems)}
