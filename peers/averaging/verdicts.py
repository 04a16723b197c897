"""What a settlement ends with, as bytes, and what a member believes of it."""

from __future__ import annotations

from peers.averaging.context import MemberContext
from protocols.ids import PeerId
from protocols.messages import Commit, Plan, parse, plan_from_message, require
from protocols.proto.swarm.v1 import control_pb2 as pb
from protocols.settlement import MAX_ATTEMPTS, GiveUp

Verdict = Commit | Plan | GiveUp

VERDICT = "verdict"
"""Name of the call that asks whether a round is decided."""


def verdict_bytes(verdict: Commit | Plan) -> bytes:
    """Wire form of a verdict."""
    message = pb.Verdict(commit=verdict.to_message()) if isinstance(verdict, Commit) else pb.Verdict()
    if isinstance(verdict, Plan):
        message.repair.ParseFromString(verdict.encode())
    return message.SerializeToString()


def read_verdict(data: bytes, plan: Plan, first_plan_digest: bytes, me: PeerId, leader: PeerId) -> Verdict:
    """Read a leader's verdict on a plan: a repair must be about the same members and vector, one attempt further, and still count us in.

    Raises:
        RemoteProtocolError: it is none.
    """
    message = parse(pb.Verdict, data, leader)
    if message.HasField("commit"):
        commit = Commit.from_message(message.commit, leader)
        require(commit.first_plan_digest == first_plan_digest, leader, "a commit of another round")
        named = (commit.epoch, commit.round_index, commit.state_hash)
        own = (plan.epoch, plan.round_index, plan.members[0].join.state_hash)
        require(named == own, leader, "a commit that gives its round another name")
        return commit
    require(message.HasField("repair"), leader, "an empty verdict")
    same_members = tuple(message.repair.sealed_joins) == tuple(member.sealed for member in plan.members)
    require(same_members, leader, "a repair with other members")
    repair = plan_from_message(message.repair, plan.members, leader)
    in_turn = repair.attempt == plan.attempt + 1 and repair.attempt <= MAX_ATTEMPTS
    same = _subject(repair) == _subject(plan)
    require(same and in_turn and repair.absent >= plan.absent, leader, "a repair of another vector or out of turn")
    if plan.index_of(me) in repair.absent:
        return GiveUp("the others went on without us")
    return repair


async def ask_for_verdict(context: MemberContext, plan: Plan, first_plan_digest: bytes, peer: PeerId) -> Verdict | None:
    """Ask a member for the commit of a round; None if it knows of none, or cannot be dialled.

    Raises:
        RemoteError: it does not answer, or with nonsense.
    """
    endpoint = context.directory.endpoint(peer)
    if endpoint is None:
        return None
    request = pb.ExchangeHeader(plan_digest=first_plan_digest).SerializeToString()
    reply = await context.transport.call(endpoint, VERDICT, request, timeout_s=context.rules.stall_timeout_s)
    return read_verdict(reply, plan, first_plan_digest, context.me, peer) if reply else None


def _subject(plan: Plan) -> tuple[int | str, ...]:
    """What no repair may change."""
    return plan.epoch, plan.round_index, plan.size_elems, plan.block_elems, plan.codec, plan.counted, plan.number
