"""Bringing what our group agreed on into a group that misses it, because the member that should have brought it there is gone.

All members of a group hold its result, so a member that is lost after the first round need not cost anybody's contribution: the leader of
the group that waits for it in vain asks another member of the lost one's last group. That one takes part there beside its own round, as a
client: it sends, reduces nothing, and drops the result.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from peers.averaging.context import MemberContext
from peers.averaging.evidence import Brought, with_coin
from peers.averaging.plans import ask_to_join, seal_join
from peers.averaging.rounds import Rounds
from protocols.errors import RemoteError, RemoteRefusal, RoundError
from protocols.grid import Placement
from protocols.ids import PeerId, RoundId
from protocols.messages import Join, Plan

log = logging.getLogger(__name__)

_MOST_PER_ROUND = 4
"""A member that stands in for many would be the slowest of all of them."""


def stand_ins(placement: Placement, me: PeerId, index: int, missing: PeerId) -> tuple[PeerId, ...]:
    """Members, in turn, that hold what a missing member of our group would bring into a round; empty if a member of the group does."""
    if index == 0:
        return ()  # what a member computed, nobody else has
    ours = placement.group(me, index)
    if any(peer != missing and placement.cell(peer) == placement.cell(missing) for peer in ours):
        return ()
    return tuple(peer for peer in placement.group(missing, index - 1) if peer != missing and peer not in ours)


@dataclass(frozen=True, slots=True)
class Carried:
    """What we bring into a later round.

    Args:
        join: of our own group.
        vector_D: the result of the round before.
        placement: our view of the grid.
        brought: where it comes from.
    """

    join: Join
    vector_D: torch.Tensor
    placement: Placement
    brought: Brought


AverageAside = Callable[[Plan, torch.Tensor, Brought], Awaitable[None]]
"""Takes part in a round whose result we do not want."""


class StandIns:
    """The groups in which one member stands in for others.

    Args:
        context: who we are.
        rounds: what we know of rounds.
        average: see `AverageAside`.
    """

    def __init__(self, context: MemberContext, rounds: Rounds, average: AverageAside) -> None:
        self._context = context
        self._rounds = rounds
        self._average = average
        self._carried: Carried | None = None
        self._waiting: dict[PeerId, RoundId] = {}
        self._done: Counter[RoundId] = Counter()

    def carry(self, carried: Carried | None) -> None:
        """From now on we have this to bring; None: nothing any more, so that nobody needs to wait for it."""
        self._carried = carried
        waiting, self._waiting = self._waiting, {}
        for leader, round_id in waiting.items() if carried else ():
            with suppress(RemoteRefusal):  # its call was answered long ago: nobody is left to be told
                self.wanted(leader, round_id)

    def wanted(self, leader: PeerId, round_id: RoundId) -> None:
        """A leader misses what we will have, or have already.

        Raises:
            RemoteRefusal: not from us.
        """
        if not self._rounds.engaged or round_id.epoch != self._rounds.next.epoch:
            raise RemoteRefusal(leader, "not-ready", "this member has nothing to bring yet")
        if round_id < self._rounds.next:
            raise RemoteRefusal(leader, "round-formed", "that round of the epoch is over")
        if self._carried is None or self._round_of(self._carried) < round_id:
            if len(self._waiting) >= _MOST_PER_ROUND and leader not in self._waiting:
                raise RemoteRefusal(leader, "busy", "this member stands in for others already")
            self._waiting[leader] = round_id
            return
        crossing = self._carried.placement.group(self._context.me, round_id.index - 1) if round_id.index else ()
        expected = any(leader in self._carried.placement.group(peer, round_id.index) for peer in crossing)
        if self._round_of(self._carried) != round_id or not expected or self._done[round_id] >= _MOST_PER_ROUND:
            raise RemoteRefusal(leader, "round-formed", "this member does not bring what you miss")
        self._done = Counter({round_id: self._done[round_id] + 1})
        self._context.tasks.create_task(self._stand_in(leader, self._carried), name=f"standing in at {leader.short}")

    def _round_of(self, carried: Carried) -> RoundId:
        return RoundId(self._context.rules.run, carried.join.epoch, carried.join.round_index)

    async def _stand_in(self, leader: PeerId, carried: Carried) -> None:
        rules = self._context.rules
        join, brought = with_coin(self._context, replace(carried.join, bandwidth_bytes_per_s=0), carried.brought)
        own = seal_join(self._context, join)
        try:
            plan = await ask_to_join(self._context, leader, own, carried.vector_D.numel(), rules.stream_timeout_s)
            await self._average(plan, carried.vector_D, brought)
            self._rounds.results.pop(plan.digest, None)
        except (RoundError, RemoteError) as error:
            log.info("epoch %d: we did not stand in at %s: %s", carried.join.epoch, leader.short, error)
