"""Several `Rendezvous` machines at one table. What one says reaches another after a delay of its own, so that anything may overtake
anything, except that a member's joins to another, and their withdrawals, arrive in order.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count

from protocols.ids import PeerId
from protocols.rendezvous import Rendezvous, RendezvousRules
from protocols.rendezvous_events import (
    Action,
    Announce,
    CallAnswered,
    ClosingHeard,
    Event,
    Fail,
    JoinArrived,
    JoinWithdrawn,
    Lead,
    LeaderFollows,
    LeaderUnwilling,
    Ready,
    Refuse,
    RosterChanged,
    SendJoin,
    Tick,
    WakeAt,
    WithdrawJoin,
)
from tests.helpers.round_values import ROUND, join_of, peer

JOIN_TIMEOUT_S = 5.0
GROUP_REFUSALS = ("no-quorum", "group-full")


@dataclass
class Seat:
    """One member.

    Args:
        me: who.
        machine: its machine.
        failures: how often it has led a round that failed.
        asking: number of its join that is out, and whose answer it waits for.
        waiting: by member, the number of the join that waits here.
        plan: the plan it takes part in, as (leader, number of the plan).
        failed: no group for it.
    """

    me: PeerId
    machine: Rendezvous
    failures: int = 0
    asking: tuple[int, PeerId] | None = None
    waiting: dict[PeerId, int] = field(default_factory=dict)
    plan: PeerId | None = None
    failed: bool = False

    @property
    def over(self) -> bool:
        return self.failed or self.plan is not None


class Table:
    """Members 0 to `count` - 1 who all know each other.

    Args:
        count: how many.
        seed: of the delays.
        most_delay_s: longest delay of a message; each has its own.
        failures: what each member has seen of failures under leaders.
    """

    def __init__(self, count_: int, seed: int, most_delay_s: float, failures: Mapping[int, Mapping[int, int]]) -> None:
        self._random = random.Random(seed)
        self._most_delay_s = most_delay_s
        self._numbers = count()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._lanes: dict[tuple[PeerId, PeerId] | None, float] = {}
        self.now = 0.0
        self.plans: dict[PeerId, Lead] = {}
        everybody = [peer(number) for number in range(count_)]
        self.seats = {}
        for number, me in enumerate(everybody):
            seen = {everybody[other]: times for other, times in failures.get(number, {}).items()}
            rules = RendezvousRules(JOIN_TIMEOUT_S, JOIN_TIMEOUT_S, 3.0, 64, seen)
            self.seats[me] = Seat(me, Rendezvous(ROUND, me, rules), seen.get(me, 0))
            self._give(self.seats[me], RosterChanged(frozenset(everybody) - {me}))

    def ready(self, number: int, at_s: float) -> None:
        """A member's contribution is complete at that time."""
        seat = self.seats[peer(number)]
        self._at(at_s, lambda: self._give(seat, Ready(join_of(seat.me))))

    def run(self, until_s: float) -> None:
        """Whatever happens, until that time."""
        while self._queue and self._queue[0][0] <= until_s:
            self.now, _, happen = heapq.heappop(self._queue)
            happen()

    def groups_that_commit(self) -> list[PeerId]:
        """Leaders of the plans that more than half of those counted take part in."""
        takers = [seat.plan for seat in self.seats.values()]
        return [leader for leader, plan in self.plans.items() if 2 * takers.count(leader) > plan.counted]

    # The network

    def _at(self, time_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (time_s, next(self._numbers), happen))

    def _send(self, happen: Callable[[], None], lane: tuple[PeerId, PeerId] | None = None) -> None:
        """What goes through one lane arrives in order."""
        arrives_s = max(self.now + self._random.random() * self._most_delay_s, self._lanes.get(lane, 0.0))
        if lane:
            self._lanes[lane] = arrives_s
        self._at(arrives_s, happen)

    def _give(self, seat: Seat, event: Event) -> None:
        if not seat.over:
            for action in seat.machine.handle(event, self.now):
                self._do(seat, action)

    # What the driver does (`peers.averaging.gathering`)

    def _do(self, seat: Seat, action: Action) -> None:
        match action:
            case Announce(to):
                for other in to:
                    self._send(lambda other=other: self._call_arrives(self.seats[other], seat))  # type: ignore[misc]
            case SendJoin(leader):
                self._withdraw(seat)
                seat.asking = (next(self._numbers), leader)
                number = seat.asking[0]
                self._send(lambda: self._join_arrives(self.seats[leader], seat, number), (seat.me, leader))
            case WithdrawJoin():
                self._withdraw(seat)
            case Refuse(other, code, _):
                self._refuse(seat, other, code)
            case WakeAt(time_s):
                self._at(time_s, lambda: self._give(seat, Tick()))
            case Lead():
                self._lead(seat, action)
            case Fail():
                self._conclude(seat, None)

    def _lead(self, seat: Seat, plan: Lead) -> None:
        self.plans[seat.me] = plan
        for join in plan.joins[1:]:
            number = seat.waiting.pop(join.peer)
            self._send(lambda other=join.peer, number=number: self._plan_arrives(self.seats[other], seat.me, number))  # type: ignore[misc]
        self._conclude(seat, seat.me)

    def _conclude(self, seat: Seat, plan: PeerId | None) -> None:
        seat.plan, seat.failed = plan, plan is None
        self._withdraw(seat)
        for other in list(seat.waiting):
            self._refuse(seat, other, "round-formed")

    def _withdraw(self, seat: Seat) -> None:
        if seat.asking:
            (number, leader), seat.asking = seat.asking, None
            self._send(lambda: self._withdrawal_arrives(self.seats[leader], seat.me, number), (seat.me, leader))

    def _refuse(self, seat: Seat, other: PeerId, code: str) -> None:
        number = seat.waiting.pop(other)
        self._send(lambda: self._refusal_arrives(self.seats[other], seat.me, number, code))

    def _call_arrives(self, seat: Seat, caller: Seat) -> None:
        refused = seat.over
        self._give(seat, ClosingHeard(caller.me, caller.failures))
        self._send(lambda: self._call_is_answered(caller, seat.me, refused))

    def _call_is_answered(self, caller: Seat, called: PeerId, refused: bool) -> None:
        if not refused:
            self._give(caller, CallAnswered(called, coming=False))
        elif not caller.asking or caller.asking[1] != called:
            self._give(caller, LeaderUnwilling(called))

    def _join_arrives(self, seat: Seat, sender: Seat, number: int) -> None:
        planned = self.plans.get(seat.me)
        if planned and any(join.peer == sender.me for join in planned.joins):
            self._send(lambda: self._plan_arrives(sender, seat.me, number))
            return
        seat.waiting[sender.me] = number
        if seat.over:
            self._refuse(seat, sender.me, "round-formed")
        self._give(seat, JoinArrived(join_of(sender.me)))

    def _withdrawal_arrives(self, seat: Seat, sender: PeerId, number: int) -> None:
        if seat.waiting.get(sender) == number:
            del seat.waiting[sender]
            self._give(seat, JoinWithdrawn(sender))

    def _plan_arrives(self, seat: Seat, leader: PeerId, number: int) -> None:
        if seat.asking == (number, leader):
            self._conclude(seat, leader)

    def _refusal_arrives(self, seat: Seat, leader: PeerId, number: int, code: str) -> None:
        if seat.asking != (number, leader):
            return
        seat.asking = None
        if code in GROUP_REFUSALS:
            self._conclude(seat, None)
        else:
            self._give(seat, LeaderFollows(leader) if code == "following" else LeaderUnwilling(leader))
