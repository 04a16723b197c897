"""Who takes part in a round: drives one `Rendezvous` with calls, timers and our own readiness."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from peers.averaging.context import Blame, MemberContext
from protocols.errors import RemoteError, RemoteGone, RemoteProtocolError, RemoteRefusal, RoundError
from protocols.ids import Attempt, PeerId, RoundId
from protocols.messages import BlockTask, Commit, Join, Plan, SealedJoin, parse, plan_from_message, require
from protocols.partition import assign_blocks
from protocols.proto.swarm.v1 import control_pb2 as pb
from protocols.rendezvous import (
    Action,
    Announce,
    CloseEpoch,
    ClosingHeard,
    Event,
    Fail,
    JoinArrived,
    JoinWithdrawn,
    Lead,
    LeaderGone,
    LeaderUnwilling,
    Ready,
    Refuse,
    Rendezvous,
    RendezvousRules,
    RosterChanged,
    SendJoin,
    Tick,
    WakeAt,
)

log = logging.getLogger(__name__)
JOIN = "join"
"""Kind of the sealed join, and name of the call that carries it."""

MAX_JOIN_BYTES = 16 * 1024
"""A sealed join: a few numbers, a certificate chain and a signature."""

_FINAL_REFUSALS = frozenset({"state-differs", "behind"})
_GROUP_REFUSALS = frozenset({"group-full", "no-quorum"})


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


class TooLate(RoundError):
    """The round was closed without us; its result can be fetched.

    Args:
        commit: what was agreed.
        holder: who told us.
    """

    def __init__(self, commit: Commit, holder: PeerId) -> None:
        super().__init__(f"epoch {commit.epoch} was closed without us")
        self.commit = commit
        self.holder = holder


def open_join(context: MemberContext, sealed: bytes) -> SealedJoin:
    """Verify a sealed join.

    Raises:
        RemoteProtocolError: not signed by a member, or absurd.
    """
    require(len(sealed) <= MAX_JOIN_BYTES, None, f"a join of {len(sealed)} bytes")
    peer, payload = context.notary.open(JOIN, sealed)
    return SealedJoin(peer, Join.decode(payload, peer), sealed)


def first_plan(context: MemberContext, joins: tuple[SealedJoin, ...], size_elems: int) -> Plan:
    """The plan that follows from a member list: everyone can compute it, so a leader cannot favour anyone."""
    rules = context.rules
    bandwidths = [join.join.bandwidth_bytes_per_s for join in joins] if len(joins) > 1 else [1]  # who is alone reduces for itself
    owners = assign_blocks(context.blocks_of(size_elems).count, bandwidths)
    reduce = tuple(BlockTask(block, owner) for block, owner in enumerate(owners))  # type: ignore[arg-type]
    first = joins[0].join
    return Plan(first.epoch, Attempt(0), joins, size_elems, rules.block_elems, rules.codec.name, reduce, round_index=first.round_index)


def _subject(member: SealedJoin) -> tuple[int, int, bytes]:
    """What all members of a group must agree on."""
    return member.join.epoch, member.join.round_index, member.join.state_hash


class Gathering:
    """One member's part in forming the group of one round.

    Args:
        context: who we are.
        round_id: which round.
        rules: of the rendezvous; their join timeout is how long we wait for others when we lead.
        on_close: called once when the epoch closes before our own contribution is ready.
        blame: called with a member that broke the protocol, and how.
    """

    def __init__(
        self, context: MemberContext, round_id: RoundId, rules: RendezvousRules, on_close: Callable[[], None], blame: Blame
    ) -> None:
        self._context = context
        self._round_id = round_id
        self._on_close = on_close
        self._blame = blame
        self._join_timeout_s = rules.join_timeout_s
        self._machine = Rendezvous(round_id, context.me, rules)
        self._left_out = ""
        self._waiting: dict[PeerId, asyncio.Future[Plan]] = {}
        self._own: SealedJoin | None = None
        self._size_elems = 0
        self._formed: asyncio.Future[Plan] = asyncio.get_running_loop().create_future()
        self._asking: asyncio.Task[None] | None = None

    async def form(self, join: Join, size_elems: int, group: frozenset[PeerId], *, whole_swarm: bool) -> Plan:
        """Offer our contribution and wait for the group.

        Args:
            join: what we bring.
            size_elems: length of our vector.
            group: who belongs into it by our view of the grid.
            whole_swarm: everybody does.

        Raises:
            TooLate: the others have closed this epoch already.
            RoundError: no group could be formed now.
        """
        self._own = SealedJoin(self._context.me, join, self._context.notary.seal(JOIN, join.encode()))
        self._size_elems = size_elems
        directory = self._context.directory
        live = directory.live(self._round_id.epoch) & group
        undialable = frozenset(peer for peer in live if directory.endpoint(peer) is None)
        self._dispatch(RosterChanged(live, undialable, whole_swarm))
        self._dispatch(Ready(self._own))
        return await self._formed

    async def answer(self, join: SealedJoin) -> Plan:
        """Serve a member that takes us for the leader; waits until the group stands.

        Raises:
            RemoteRefusal: it cannot take part, and why.
        """
        if self._formed.done():
            raise RemoteRefusal(join.peer, "round-formed", "the group of this round was formed without you")
        previous = self._waiting.pop(join.peer, None)
        if previous and not previous.done():
            previous.set_exception(RemoteRefusal(join.peer, "replaced", "you joined again"))
        future: asyncio.Future[Plan] = asyncio.get_running_loop().create_future()
        self._waiting[join.peer] = future
        self._dispatch(JoinArrived(join))
        try:
            return await future
        finally:
            if self._waiting.get(join.peer) is future:
                del self._waiting[join.peer]
                self._dispatch(JoinWithdrawn(join.peer))

    def closing_heard(self, leader: PeerId) -> None:
        """Another member says that the epoch closes and leads.

        Raises:
            RemoteRefusal: it need not wait for us: we are in another group.
        """
        if self._formed.done():
            raise RemoteRefusal(leader, "round-formed", "this member is in another group of this round")
        self._dispatch(ClosingHeard(leader))

    def too_late(self, commit: Commit, holder: PeerId) -> None:
        """The round turns out to be over."""
        self._conclude(TooLate(commit, holder))

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

    def _do(self, action: Action) -> None:
        tasks = self._context.tasks
        match action:
            case CloseEpoch():
                self._on_close()
            case Announce(to):
                for peer in to:
                    tasks.create_task(self._announce(peer), name=f"closing to {peer.short}")
            case SendJoin(leader):
                if self._asking:
                    self._asking.cancel()
                self._asking = tasks.create_task(self._ask(leader), name=f"join to {leader.short}")
            case Refuse(peer, code, sentence):
                self._refuse(peer, code, sentence)
            case WakeAt(time_s):
                asyncio.get_running_loop().call_at(time_s, self._dispatch, Tick(), time_s)
            case Lead(joins):
                self._lead(joins)
            case Fail(reason, left_out):
                # One refusal is one member's word; now everybody has had the chance to take us in.
                final = left_out or self._left_out
                self._conclude(LeftOut(self._left_out or reason) if final else NotFormed(reason, self._context.me))

    def _refuse(self, peer: PeerId, code: str, sentence: str) -> None:
        future = self._waiting.get(peer)
        if future and not future.done():
            future.set_exception(RemoteRefusal(peer, code, sentence))

    def _lead(self, joins: tuple[SealedJoin, ...]) -> None:
        if len(joins) > 1 and not any(join.join.bandwidth_bytes_per_s for join in joins):
            self._conclude(RoundError("nobody in the group can reduce for the others"))
            return
        plan = first_plan(self._context, joins, self._size_elems)
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
        if self._asking:
            self._asking.cancel()
        for peer in list(self._waiting):
            self._refuse(peer, "round-formed", "the group of this round was formed without you")

    # Talking to others

    async def _announce(self, peer: PeerId) -> None:
        endpoint = self._context.directory.endpoint(peer)
        if endpoint is None:
            self._dispatch(LeaderGone(peer))
            return
        request = pb.Closing(epoch=self._round_id.epoch, round_index=self._round_id.index).SerializeToString()
        try:
            reply = await self._context.transport.call(endpoint, "closing", request, timeout_s=self._context.rules.stall_timeout_s)
            answer = parse(pb.JoinReply, reply, peer)
            if answer.HasField("commit"):
                self.too_late(self._checked_commit(answer.commit, peer), peer)
        except RemoteError as error:
            log.info("closing not heard: %s", error)
            self._unavailable(error, peer)

    async def _ask(self, leader: PeerId) -> None:
        """Join a leader; its answer is the group, or we turn to the next in order."""
        endpoint = self._context.directory.endpoint(leader)
        if endpoint is None or self._own is None:
            self._dispatch(LeaderGone(leader))
            return
        patience_s = self._join_timeout_s + self._context.rules.stall_timeout_s
        try:
            reply = await self._context.transport.call(endpoint, JOIN, self._own.sealed, timeout_s=patience_s)
            self._take(parse(pb.JoinReply, reply, leader), leader)
        except RemoteError as error:
            log.info("join not answered: %s", error)
            self._asking = None
            if isinstance(error, RemoteRefusal) and error.code in _GROUP_REFUSALS:
                self._conclude(NotFormed(error.reason, leader))
                return
            if isinstance(error, RemoteRefusal) and error.code in _FINAL_REFUSALS:
                self._left_out = error.reason
            self._unavailable(error, leader)

    def _unavailable(self, error: RemoteError, peer: PeerId) -> None:
        """Go on without a member. Only one whose process has surely ended stops counting for the quorum: silence may be our own link's."""
        if isinstance(error, RemoteProtocolError):
            self._blame(peer, error.reason)
        if isinstance(error, RemoteGone):
            self._context.directory.suspect(peer)
            self._dispatch(LeaderGone(peer))
        else:
            self._dispatch(LeaderUnwilling(peer))

    def _take(self, reply: pb.JoinReply, leader: PeerId) -> None:
        self._asking = None
        if reply.HasField("commit"):
            self.too_late(self._checked_commit(reply.commit, leader), leader)
            return
        require(reply.HasField("plan"), leader, "an empty answer to our join")
        self._conclude(self._checked(reply.plan, leader))

    def _checked_commit(self, message: pb.Commit, sender: PeerId) -> Commit:
        commit = Commit.from_message(message, sender)
        require(commit.epoch == self._round_id.epoch, sender, f"a commit of epoch {commit.epoch} where {self._round_id.epoch} closes")
        require(commit.round_index >= self._round_id.index, sender, f"a commit of round {commit.round_index}, which is over")
        same_size = len(commit.block_hashes) == self._context.blocks_of(self._size_elems).count
        require(same_size, sender, "a commit to a vector of another size")
        if self._own and commit.state_hash != self._own.join.state_hash:
            raise RemoteRefusal(sender, "state-differs", "the group closed this epoch from another state than ours")
        return commit

    def _checked(self, message: pb.Plan, leader: PeerId) -> Plan:
        """A leader's plan must be the one that follows from its joins, and hold ours."""
        own = self._own
        if own is None or own.sealed not in message.sealed_joins:
            raise RemoteProtocolError(leader, "a plan without our join")
        count = len(message.sealed_joins)
        require(count <= self._context.rules.max_group, leader, f"a plan of {count} members")  # before a signature is verified
        members = tuple(own if sealed == own.sealed else open_join(self._context, sealed) for sealed in message.sealed_joins)
        plan = plan_from_message(message, members, leader)
        for member in members:
            require(
                _subject(member) == _subject(own), leader, f"a plan that mixes us with {member.peer.short} of another round or state"
            )
        require(plan.index_of(leader) == 0, leader, "a plan that its sender does not lead")
        require(any(member.join.bandwidth_bytes_per_s for member in members), leader, "a plan in which nobody can reduce")
        require(plan == first_plan(self._context, members, self._size_elems), leader, "a plan that does not follow from its joins")
        return plan
