"""Joins and plans: how a group's plan follows from its joins, and asking a leader for one."""

from __future__ import annotations

from collections.abc import Set

from peers.averaging.context import MemberContext
from peers.averaging.liveness import next_real_frame
from protocols.bandwidth import assigned_reducers
from protocols.errors import RemoteProtocolError, RemoteRefusal, RemoteTimeout, RoundError
from protocols.ids import Attempt, PeerId
from protocols.messages import BlockTask, Commit, Join, Plan, SealedJoin, parse, plan_from_message, require
from protocols.proto.swarm.v1 import control_pb2 as pb

JOIN = "join"
"""Kind of the sealed join, and name of the stream that carries it."""

_NOBODY: frozenset[int] = frozenset()

MAX_JOIN_BYTES = 16 * 1024
"""A sealed join: a few numbers, a certificate chain and a signature."""


class TooLate(RoundError):
    """The round was closed without us; its result can be fetched.

    Args:
        commit: what was agreed.
        holder: who told us.
    """

    def __init__(self, commit: Commit, holder: PeerId) -> None:
        super().__init__(f"round {commit.round_index} of epoch {commit.epoch} was closed without us")
        self.commit = commit
        self.holder = holder


def seal_join(context: MemberContext, join: Join, group: Set[PeerId] = frozenset()) -> SealedJoin:
    """Sign a join of ours, with what we know by now of our link and of those of the members that it is for."""
    if context.bandwidth:
        join = context.bandwidth.offered(join, group)
    return SealedJoin(context.me, join, context.notary.seal(JOIN, join.encode()))


def open_join(context: MemberContext, sealed: bytes) -> SealedJoin:
    """Verify a sealed join.

    Raises:
        RemoteProtocolError: not signed by a member, or absurd.
    """
    require(len(sealed) <= MAX_JOIN_BYTES, None, f"a join of {len(sealed)} bytes")
    peer, payload = context.notary.open(JOIN, sealed)
    return SealedJoin(peer, Join.decode(payload, peer), sealed)


def first_plan(
    context: MemberContext,
    joins: tuple[SealedJoin, ...],
    size_elems: int,
    counted: int,
    number: int,
    probation: frozenset[int] = _NOBODY,
) -> Plan:
    """The plan that follows from a member list, beside its quorum, number and newcomers: everyone can compute it, so a leader cannot
    favour anyone.

    Raises:
        RoundError: nobody can reduce, or those who can have not enough memory.
    """
    rules = context.rules
    owners = assigned_reducers(joins, context.blocks_of(size_elems).count, rules.block_elems)
    reduce = tuple(BlockTask(block, owner) for block, owner in enumerate(owners))  # type: ignore[arg-type]
    first = joins[0].join
    blocks = (size_elems, rules.block_elems, rules.codec.name)
    weight_cap = rules.trust.weight_cap if rules.trust else 0.0
    return Plan(
        first.epoch,
        Attempt(0),
        joins,
        *blocks,
        reduce,
        round_index=first.round_index,
        counted=counted,
        number=number,
        weight_cap=weight_cap,
        probation=probation,
    )


async def ask_to_join(context: MemberContext, leader: PeerId, own: SealedJoin, size_elems: int, patience_s: float) -> Plan:
    """Join a leader and wait for its plan, as long as it shows that it is alive.

    Args:
        context: who we are.
        leader: whom.
        own: our join.
        size_elems: length of our vector.
        patience_s: longest wait.

    Raises:
        TooLate: that round is over.
        RemoteError: no plan can be had of this leader.
    """
    endpoint = context.directory.endpoint(leader)
    if endpoint is None:
        raise RemoteTimeout(leader, "it cannot be dialled")
    async with context.transport.stream(endpoint, JOIN, timeout_s=patience_s) as stream:
        said = context.conduct.join(own.join, leader)
        await stream.send(own.sealed if said is own.join else context.notary.seal(JOIN, said.encode()))
        answer = bytes(await next_real_frame(stream, context.rules.stall_timeout_s))
    reply = parse(pb.JoinReply, answer, leader)
    if reply.HasField("commit"):
        raise TooLate(checked_commit(context, own, size_elems, reply.commit, leader), leader)
    require(reply.HasField("plan"), leader, "an empty answer to our join")
    return checked_plan(context, own, size_elems, reply.plan, leader)


def checked_commit(context: MemberContext, own: SealedJoin, size_elems: int, message: pb.Commit, sender: PeerId) -> Commit:
    """Read a commit that somebody gives us instead of a plan.

    Raises:
        RemoteProtocolError: it is not of the round we join, or not of our vector.
        RemoteRefusal: it is a step from another state than ours.
    """
    commit = Commit.from_message(message, sender)
    join = own.join
    in_turn = commit.epoch == join.epoch and commit.round_index >= join.round_index
    require(in_turn, sender, f"a commit of epoch {commit.epoch}, round {commit.round_index}, where {join.epoch}, {join.round_index} closes")
    same_size = len(commit.block_hashes) == context.blocks_of(size_elems).count
    require(same_size, sender, "a commit to a vector of another size")
    if commit.state_hash != join.state_hash:
        raise RemoteRefusal(sender, "state-differs", "the group closed this epoch from another state than ours")
    return commit


def checked_plan(context: MemberContext, own: SealedJoin, size_elems: int, message: pb.Plan, sender: PeerId) -> Plan:
    """Read a plan, which must be the one that follows from its joins, and hold ours.

    Raises:
        RemoteProtocolError: it is another.
    """
    if own.sealed not in message.sealed_joins:
        raise RemoteProtocolError(sender, "a plan without our join")
    count = len(message.sealed_joins)
    require(count <= context.rules.max_group, sender, f"a plan of {count} members")  # before a signature is verified
    # A leader counts whom it takes in, and forms no group of half of those counted or fewer: such a plan could never be committed.
    require(count <= message.counted < 2 * count, sender, f"a plan of {count} members that counts {message.counted}")
    members = tuple(own if sealed == own.sealed else open_join(context, sealed) for sealed in message.sealed_joins)
    plan = plan_from_message(message, members, sender)
    for member in members:
        require(_subject(member) == _subject(own), sender, f"a plan that mixes us with {member.peer.short} of another round or state")
    require(plan.index_of(sender) is not None, sender, "a plan that its sender is not in")  # who leads it may be gone by now
    try:
        expected = first_plan(context, members, size_elems, plan.counted, plan.number, plan.probation)
    except RoundError as error:
        raise RemoteProtocolError(sender, f"a plan of members that can have none: {error}") from error
    require(plan == expected, sender, "a plan that does not follow from its joins")
    return plan


def _subject(member: SealedJoin) -> tuple[int, int, bytes]:
    """What all members of a group must agree on."""
    return member.join.epoch, member.join.round_index, member.join.state_hash
