"""Who takes part in a round: drives one `Rendezvous` with calls, timers and our own readiness."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from peers.averaging.context import Blame, MemberContext
from peers.averaging.plans import TooLate, ask_to_join, checked_commit, checked_plan, first_plan, seal_join
from protocols.errors import RemoteError, RemoteGone, RemoteProtocolError, RemoteRefusal, RoundError
from protocols.ids import PeerId, RoundId
from protocols.messages import Closing, Join, Plan, SealedJoin, parse
from protocols.proto.swarm.v1 import control_pb2 as pb
from protocols.rendezvous import Rendezvous, RendezvousRules
from protocols.rendezvous_events import (
    Action,
    Announce,
    CallAnswered,
    CloseEpoch,
    ClosingHeard,
    Event,
    Fail,
    JoinArrived,
    JoinWithdrawn,
    Lead,
    LeaderFollows,
    LeaderGone,
    LeaderUnwilling,
    Ready,
    Refuse,
    RosterChanged,
    SendJoin,
    Tick,
    WakeAt,
    WithdrawJoin,
)

log = logging.getLogger(__name__)

_FINAL_REFUSALS = frozenset({"state-differs", "behind"})
_GROUP_REFUSALS = frozenset({"group-full", "no-quorum"})
_FOLLOWING = "following"


class LeftOut(RoundError):
    """The others average something that does not fit ours; trying again with the same contribution is useless."""


class NotFormed(RoundError):
    """A leader could not form the group.

    Args:
        leader: who; somebody else should lead the next try.
    """

    def __init__(self, reason: str, leader: PeerId) -> None:
        super().__init__(reason)
        self.leader = leader


@dataclass(frozen=True, slots=True)
class Group:
    """Who belongs into the group of a round, by our view of the grid.

    Args:
        members: ourselves included.
        whole_swarm: everybody does.
        stand_ins: for a member of the group, others in turn who hold what it would bring; empty if nobody else needs to bring it.
    """

    members: frozenset[PeerId]
    whole_swarm: bool = True
    stand_ins: Callable[[PeerId], tuple[PeerId, ...]] = lambda _missing: ()


@dataclass(frozen=True, slots=True)
class GatheringHooks:
    """What a gathering needs of its owner.

    Args:
        on_close: called once when the epoch closes before our own contribution is ready.
        on_our_way: whether we are still in an earlier round of the epoch.
        blame: called with a member that broke the protocol, and how.
        believes: whether a member may tell us that the round is closed: not if it has, and could not show the result.
        is_new: whether we may take part in a plan: not if we have, and did not get to its end.
        probation: which of these joins are newcomers', whose work does not count yet.
    """

    on_close: Callable[[], None]
    on_our_way: Callable[[], bool]
    blame: Blame
    believes: Callable[[PeerId], bool] = lambda _peer: True
    is_new: Callable[[Plan], bool] = lambda _plan: True
    probation: Callable[[tuple[SealedJoin, ...]], frozenset[int]] = lambda _joins: frozenset()


class Gathering:
    """One member's part in forming the group of one round.

    Args:
        context: who we are.
        round_id: which round.
        rules: of the rendezvous; their join timeout is how long we wait for others when we lead.
        hooks: of our owner.
        number: how many there were before for this round.
    """

    def __init__(self, context: MemberContext, round_id: RoundId, rules: RendezvousRules, hooks: GatheringHooks, number: int) -> None:
        self._context = context
        self._number = number
        self._round_id = round_id
        self._hooks = hooks
        self._rules = rules
        self._machine = Rendezvous(round_id, context.me, rules)
        self._left_out = ""
        self._waiting: dict[PeerId, asyncio.Future[Plan]] = {}
        self._sealed: dict[PeerId, bytes] = {}
        self._own: SealedJoin | None = None
        self._size_elems = 0
        self._formed: asyncio.Future[Plan] = asyncio.get_running_loop().create_future()
        self._asking: asyncio.Task[None] | None = None
        self._asked: PeerId | None = None
        self._group = Group(frozenset())
        self._live: frozenset[PeerId] = frozenset()
        self._standing: dict[PeerId, PeerId] = {}
        self._called: Counter[PeerId] = Counter()
        self._ask_until_s = 0.0

    async def form(self, join: Join, size_elems: int, group: Group) -> Plan:
        """Offer our contribution and wait for the group.

        Args:
            join: what we bring.
            size_elems: length of our vector.
            group: who belongs into it by our view of the grid.

        Raises:
            TooLate: the others have closed this round already.
            RoundError: no group could be formed now.
        """
        self._own = seal_join(self._context, join, group.members)
        self._size_elems = size_elems
        self._group = group
        self._live = self._context.directory.live(self._round_id.epoch) & group.members
        for missing in sorted(group.members - self._live - {self._context.me}):
            self._stand_in_for(missing)
        self._show_roster()
        # One member after the other may keep us waiting, each within its rights; all together they may not for longer than this.
        self._ask_until_s = asyncio.get_running_loop().time() + 2 * (self._rules.join_timeout_s + self._rules.longest_wait_s)
        self._dispatch(Ready(self._own))
        return await asyncio.shield(self._formed)  # whoever stops waiting does not make it fail for a later try

    @contextmanager
    def waiting(self, join: SealedJoin) -> Iterator[asyncio.Future[Plan]]:
        """A member that takes us for the leader waits, while this context is open, for the plan in the future that is yielded.

        Raises:
            RemoteRefusal: it cannot take part, and why; also as the future's exception.
        """
        if self._formed.done():
            yield self._plan_again(join)
            return
        previous = self._waiting.pop(join.peer, None)
        if previous and not previous.done():
            previous.set_exception(RemoteRefusal(join.peer, "replaced", "you joined again"))
        future: asyncio.Future[Plan] = asyncio.get_running_loop().create_future()
        self._waiting[join.peer], self._sealed[join.peer] = future, join.sealed
        if join.peer in self._standing:  # nobody needs to wait for the missing one any longer
            self._dispatch(LeaderUnwilling(self._standing[join.peer]))
        self._dispatch(JoinArrived(join))
        try:
            yield future
        finally:
            future.cancel()
            if self._waiting.get(join.peer) is future:
                del self._waiting[join.peer]
                self._dispatch(JoinWithdrawn(join.peer))

    def _plan_again(self, join: SealedJoin) -> asyncio.Future[Plan]:
        """The plan for a member that is in it and has not got it: it had left us when we led, or our leader died before it had told all."""
        plan = None if self._formed.exception() else self._formed.result()
        if plan is None or all(member.sealed != join.sealed for member in plan.members):
            raise RemoteRefusal(join.peer, "round-formed", "the group of this round was formed without you")
        return self._formed

    def plan_with(self, peer: PeerId) -> Plan | None:
        """The plan that we have, if that member is in it."""
        plan = self._formed.result() if self._formed.done() and not self._formed.exception() else None
        return plan if plan and plan.index_of(peer) is not None else None

    def closing_heard(self, leader: PeerId, failures: int) -> None:
        """Another member says that the epoch closes and leads.

        Args:
            leader: who.
            failures: how often a round of this epoch has failed under it.

        Raises:
            RemoteRefusal: it need not wait for us: we are in another group.
        """
        if self._formed.done():
            raise RemoteRefusal(leader, "round-formed", "this member is in another group of this round")
        self._dispatch(ClosingHeard(leader, failures))

    def close(self) -> None:
        """Give up: everybody who waits is told."""
        self._conclude(RoundError("the round was abandoned"))

    # Driving the machine

    def _dispatch(self, event: Event, due_s: float = 0.0) -> None:
        """Give the machine an event; a timer's may come a trifle before its time by the loop's clock."""
        if self._formed.done():
            return  # whatever happens now is the round's business, or a later gathering's
        for action in self._machine.handle(event, max(asyncio.get_running_loop().time(), due_s)):
            self._do(action)

    def _tick(self, due_s: float) -> None:
        self._dispatch(Tick(self._hooks.on_our_way()), due_s)

    def _do(self, action: Action) -> None:
        match action:
            case CloseEpoch():
                self._hooks.on_close()
            case Announce(to):
                for peer in to:
                    self._call(peer)
            case SendJoin(leader):
                self._withdraw()
                self._asked = leader
                self._asking = self._context.tasks.create_task(self._ask(leader), name=f"join to {leader.short}")
            case WithdrawJoin():
                self._withdraw()
            case Refuse(peer, code, sentence):
                self._refuse(peer, code, sentence)
            case WakeAt(time_s):
                asyncio.get_running_loop().call_at(time_s, self._tick, time_s)
            case Lead(joins, counted):
                self._lead(joins, counted)
            case Fail(reason, left_out):
                # One refusal is one member's word; now everybody has had the chance to take us in.
                final = left_out or self._left_out
                self._conclude(LeftOut(self._left_out or reason) if final else NotFormed(reason, self._context.me))

    def _refuse(self, peer: PeerId, code: str, sentence: str) -> None:
        future = self._waiting.get(peer)
        if future and not future.done():
            future.set_exception(RemoteRefusal(peer, code, sentence))

    def _withdraw(self) -> None:
        if self._asking:
            self._asking.cancel()
        self._asking = self._asked = None

    def _lead(self, joins: tuple[SealedJoin, ...], counted: int) -> None:
        try:
            newcomers = self._hooks.probation(joins)
            plan = first_plan(self._context, joins, self._size_elems, counted, self._number, newcomers)
        except RoundError as error:
            self._conclude(error)
            return
        for join in joins:
            future = self._waiting.get(join.peer)
            if future and not future.done():
                future.set_result(plan)
        self._conclude(plan)

    def _conclude(self, outcome: Plan | RoundError) -> None:
        if self._formed.done():
            return
        if isinstance(outcome, RoundError):
            self._formed.set_exception(outcome)
            self._formed.exception()  # whoever is not waiting for it need not hear of it
        else:
            self._formed.set_result(outcome)
        self._withdraw()
        in_it = {member.sealed for member in outcome.members} if isinstance(outcome, Plan) else set()
        for peer, future in list(self._waiting.items()):
            if isinstance(outcome, Plan) and self._sealed[peer] in in_it and not future.done():
                future.set_result(outcome)
            else:
                self._refuse(peer, "round-formed", "the group of this round was formed without you")

    # Members that are missing

    def _show_roster(self) -> None:
        live = self._live
        undialable = frozenset(peer for peer in live if self._context.directory.endpoint(peer) is None)
        if not self._context.dialable:
            undialable |= {self._context.me}
        self._dispatch(RosterChanged(live, undialable, frozenset(self._standing), self._group.whole_swarm))

    def _stand_in_for(self, missing: PeerId) -> None:
        """Have somebody else bring what a member would, if anybody can."""
        if missing not in self._group.members:
            return
        candidate = next((peer for peer in self._group.stand_ins(missing) if peer not in self._standing), None)
        if candidate is None:
            return
        log.info("epoch %d: %s is asked to stand in for %s", self._round_id.epoch, candidate.short, missing.short)
        self._standing[candidate] = missing
        self._show_roster()

    # Talking to others

    def _call(self, peer: PeerId) -> None:
        self._called[peer] += 1
        self._context.tasks.create_task(self._announce(peer), name=f"closing to {peer.short}")

    async def _announce(self, peer: PeerId) -> None:
        endpoint = self._context.directory.endpoint(peer)
        if endpoint is None:
            self._dispatch(LeaderGone(peer))
            return
        number, failures = self._round_id, self._rules.failures.get(self._context.me, 0)
        request = Closing(number.epoch, number.index, stand_in=peer in self._standing, failures=failures)
        try:
            timeout_s = self._context.rules.stall_timeout_s
            reply = await self._context.transport.call(endpoint, "closing", request.encode(), timeout_s=timeout_s)
            answer = parse(pb.ClosingReply, reply, peer)
            if answer.HasField("plan") and self._own:
                if self._own.sealed not in answer.plan.sealed_joins:  # of others, or of an earlier join: honest where many gather at once
                    raise RemoteRefusal(peer, "other-plan", "its plan is not of the join that we have signed last")
                self._take(checked_plan(self._context, self._own, self._size_elems, answer.plan, peer), peer)
                return
            self._dispatch(CallAnswered(peer, answer.coming))
            if not answer.coming and peer not in self._standing and self._called[peer] > 1:
                self._stand_in_for(peer)  # it may come, or not: what is brought twice counts once
            if answer.HasField("commit") and self._own:
                self._hear(TooLate(checked_commit(self._context, self._own, self._size_elems, answer.commit, peer), peer))
        except RemoteError as error:
            log.info("closing not heard: %s", error)
            if peer != self._asked or isinstance(error, RemoteGone | RemoteProtocolError):
                self._unavailable(error, peer)  # else we have joined it since, and wait for its answer to that

    async def _ask(self, leader: PeerId) -> None:
        """Join a leader; its answer is the group, or we turn to the next in order."""
        if self._own is None or self._context.directory.endpoint(leader) is None:
            self._turned_away(LeaderGone(leader))
            return
        patience_s = self._rules.join_timeout_s + self._rules.longest_wait_s + self._rules.call_again_s  # while it shows that it is alive
        patience_s = min(patience_s, self._ask_until_s - asyncio.get_running_loop().time())
        if patience_s <= 0:
            self._turned_away(LeaderUnwilling(leader))
            return
        try:
            plan = await ask_to_join(self._context, leader, self._own, self._size_elems, patience_s)
            self._asking = self._asked = None
            self._take(plan, leader)
        except TooLate as late:
            self._asking = self._asked = None
            self._hear(late)
        except RemoteError as error:
            log.info("join not answered: %s", error)
            self._asking = self._asked = None
            if isinstance(error, RemoteRefusal) and error.code == _FOLLOWING:
                self._turned_away(LeaderFollows(leader))
                return
            if isinstance(error, RemoteRefusal) and error.code in _GROUP_REFUSALS:
                self._conclude(NotFormed(error.reason, leader))
                return
            if isinstance(error, RemoteRefusal) and error.code in _FINAL_REFUSALS:
                self._left_out = error.reason
            self._unavailable(error, leader)

    def _take(self, plan: Plan, sender: PeerId) -> None:
        """Somebody says that we are in this plan."""
        if self._hooks.is_new(plan):
            self._conclude(plan)
        else:
            self._dispatch(LeaderUnwilling(sender))

    def _hear(self, late: TooLate) -> None:
        """Somebody says that the round is closed."""
        if self._hooks.believes(late.holder):
            self._conclude(late)
        else:
            self._dispatch(LeaderUnwilling(late.holder))

    def _turned_away(self, event: LeaderGone | LeaderUnwilling | LeaderFollows) -> None:
        """Our join is answered: nothing is left to withdraw."""
        self._asking = self._asked = None
        self._dispatch(event)

    def _unavailable(self, error: RemoteError, peer: PeerId) -> None:
        """Go on without a member. Only one whose process has surely ended stops counting for the quorum: silence may be our own link's."""
        if isinstance(error, RemoteProtocolError):
            self._hooks.blame(peer, error.reason)
        self._stand_in_for(self._standing.get(peer, peer))
        if isinstance(error, RemoteGone):
            self._context.directory.suspect(peer)
            self._dispatch(LeaderGone(peer))
        else:
            self._dispatch(LeaderUnwilling(peer))
