"""Bans: what proves one, and the set of them that everybody ends with.

A ban is proved by one of two things that any third party can check at any time:

- **statements** of the accused itself: two that contradict each other, or one that no honest member makes;
- **judgements** of more than half of those who were to agree in a round of the accused, of more than two thirds where the swarm is in
  several groups. Each juror has looked for itself.

A plan alone does not say who took part: anybody can put the join of an honest member beside those of accomplices, at any later time. So the
proof holds the accused's commitment, which names the plan. Whoever saw the epoch knows how large the group must have been, and needs none.

The ledger is a set that only grows: merging the same proofs in any order gives the same bans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from blake3 import blake3

from protocols.errors import RemoteProtocolError, RemoteRefusal
from protocols.ids import MAX_EPOCH, PUBLIC_KEY_BYTES, Epoch, PeerId
from protocols.messages import Join, Plan, SealedJoin, parse, plan_from_message, require
from protocols.proto.swarm.v1 import control_pb2
from protocols.proto.swarm.v1 import trust_pb2 as pb
from protocols.trust.offences import Offence
from protocols.trust.statements import (
    CHECK,
    COMMITMENT,
    JUDGEMENT,
    REDUCTION,
    Charge,
    Check,
    Commitment,
    Reduction,
    breaks_chain,
    read_offence,
)

MAX_JUDGEMENT_BYTES = 16 * 1024
"""A sealed judgement or commitment: a few numbers and hashes, a certificate chain and a signature. Longer ones could make a proof too long
to be shown."""

MAX_BAN_BYTES = 3 * 2**20
"""A plan with the joins of a full group, and as many judgements."""

ABSURD_AHEAD = 2**20
"""Epochs: who claims to be so far ahead of the swarm is no honest member of any part of it."""

_JOIN = "join"

Opener = Callable[[str, bytes], tuple[PeerId, bytes]]
"""(kind, sealed) -> (signer, payload); raises RemoteProtocolError unless a member signed it, whenever that was."""

Quorum = Callable[[Epoch, int], int]
"""(epoch, how many were to agree) -> jurors whose word is enough."""


def majority(_epoch: Epoch, electorate: int) -> int:
    """Jurors of the only group of an epoch: more than half of all members are honest."""
    return electorate // 2 + 1


def two_thirds(_epoch: Epoch, electorate: int) -> int:
    """Jurors of one group of several. Groups are drawn by lot, and in one of many a minority of the swarm has the majority.

    Of 200 members of which 40 lie, one group of 15 in 350 has 8 liars and one in 200 000 has 11. Whoever is guilty in a group that cannot
    find it guilty meets others in the next epoch.
    """
    return 2 * electorate // 3 + 1


@dataclass(frozen=True, slots=True)
class Ban:
    """A proved ban.

    Args:
        accused: who is out.
        offence: of what.
        epoch: in which.
        proof: wire bytes, for others.
    """

    accused: PeerId
    offence: Offence
    epoch: Epoch
    proof: bytes

    @property
    def digest(self) -> bytes:
        """32 bytes that name the proof."""
        return blake3(self.proof).digest()


def ban_by_statements(accused: PeerId, offence: Offence, statements: Iterable[tuple[str, bytes]]) -> bytes:
    """Proof of a ban by what the accused has signed: (kind, sealed) each."""
    packed = [_packed(kind, sealed) for kind, sealed in statements]
    return pb.Ban(accused=accused.public_key, offence=offence.value, statements=packed).SerializeToString(deterministic=True)


def ban_by_judgements(accused: PeerId, offence: Offence, plan: Plan, judgements: Iterable[bytes], commitment: bytes | None = None) -> bytes:
    """Proof of a ban by the judgements of a group; without the accused's sealed commitment it convinces only those who saw the epoch."""
    statements = [] if commitment is None else [_packed(COMMITMENT, commitment)]
    m = pb.Ban(accused=accused.public_key, offence=offence.value, plan=plan.encode(), judgements=list(judgements), statements=statements)
    return m.SerializeToString(deterministic=True)


def _packed(kind: str, sealed: bytes) -> bytes:
    return kind.encode() + b"\0" + sealed


def check_ban(
    proof: bytes,
    opener: Opener,
    epoch_now: Epoch,
    group_size: Callable[[Epoch, int, PeerId], int],
    by: PeerId | None,
    quorum: Quorum = majority,
) -> Ban:
    """Read a ban and check its proof.

    Args:
        proof: wire bytes.
        opener: opens sealed statements.
        epoch_now: of the swarm.
        group_size: (epoch, round, member) -> how many members its group had by our own view of that epoch; 0 if we have none. A leader
            that left most of a group out of its plan cannot have the rest banned.
        by: who gave it to us.
        quorum: how many jurors it takes, by our own view of that epoch.

    Raises:
        RemoteProtocolError: it proves nothing.
        RemoteRefusal: it proves nothing to us; it may to those who have seen more of that epoch.
    """
    require(len(proof) <= MAX_BAN_BYTES, by, f"a ban of {len(proof)} bytes")
    m = parse(pb.Ban, proof, by)
    require(len(m.accused) == PUBLIC_KEY_BYTES, by, "a ban of nobody")
    accused, offence = PeerId(m.accused), read_offence(m.offence, by)
    if m.judgements or m.plan:
        epoch = _check_judgements(accused, offence, m, opener, by, _View(group_size, quorum))
    else:
        epoch = _check_statements(accused, offence, list(m.statements), opener, epoch_now, by)
    return Ban(accused, offence, epoch, proof)


@dataclass(frozen=True, slots=True)
class _View:
    group_size: Callable[[Epoch, int, PeerId], int]
    quorum: Quorum


def _check_judgements(accused: PeerId, offence: Offence, m: pb.Ban, opener: Opener, by: PeerId | None, view: _View) -> Epoch:
    plan = read_plan(m.plan, opener, by)
    digest = plan.digest
    require(plan.index_of(accused) is not None, by, "a ban of a member that the plan does not have")
    jurors = set()
    for sealed in m.judgements:
        require(len(sealed) <= MAX_JUDGEMENT_BYTES, by, "a ban with a judgement that is too long")
        juror, payload = opener(JUDGEMENT, sealed)
        charge = Charge.decode_judgement(payload, juror)
        same = (charge.first_plan_digest, charge.epoch, charge.accused, charge.offence) == (digest, plan.epoch, accused, offence)
        require(same, by, "a ban with a judgement of something else")
        require(plan.index_of(juror) is not None and juror not in jurors, by, "a ban with a judgement that does not count")
        jurors.add(juror)
    require(2 * len(jurors) > plan.electorate, by, f"a ban by {len(jurors)} of {plan.electorate} members")
    took_part = _took_part(accused, digest, list(m.statements), opener, by)
    seen = view.group_size(plan.epoch, plan.round_index, accused)
    enough = view.quorum(plan.epoch, max(seen, plan.electorate))
    if len(jurors) < enough:
        raise RemoteRefusal(by, "too-few", f"a ban by {len(jurors)} members where we see that it takes {enough}")
    if not seen and not took_part:
        raise RemoteRefusal(by, "unproved", "a ban in a round of which we have seen nothing, and nothing shows that its member was in it")
    return plan.epoch


def _took_part(accused: PeerId, plan_digest: bytes, statements: list[bytes], opener: Opener, by: PeerId | None) -> bool:
    """Whether the accused's commitment to the plan is there.

    Raises:
        RemoteProtocolError: something else is.
    """
    if not statements:
        return False
    name, _, sealed = statements[0].partition(b"\0")
    fits = len(statements) == 1 and name == COMMITMENT.encode() and len(sealed) <= MAX_JUDGEMENT_BYTES
    require(fits, by, "a ban with statements that do not belong to its judgements")
    signer, payload = opener(COMMITMENT, sealed)
    named = Commitment.decode(payload, signer).first_plan_digest
    require(signer == accused and named == plan_digest, by, "a ban with a commitment to something else")
    return True


def read_plan(data: bytes, opener: Opener, by: PeerId | None) -> Plan:
    """Read a plan with its signed joins, whenever it was made.

    Raises:
        RemoteProtocolError: it is none.
    """
    m = parse(control_pb2.Plan, data, by)
    members = []
    for sealed in m.sealed_joins:
        peer, payload = opener(_JOIN, sealed)
        members.append(SealedJoin(peer, Join.decode(payload, peer), sealed))
    plan = plan_from_message(m, tuple(members), by)  # type: ignore[arg-type]
    named = {(member.join.epoch, member.join.round_index) for member in plan.members}
    require(named == {(plan.epoch, plan.round_index)}, by, "a plan whose members are of another round")
    require(not plan.attempt, by, "a plan that is a repair")
    return plan


def _check_statements(
    accused: PeerId, offence: Offence, statements: list[bytes], opener: Opener, epoch_now: Epoch, by: PeerId | None
) -> Epoch:
    opened = []
    for packed in statements:
        name, _, sealed = packed.partition(b"\0")
        kind = name.decode("ascii", "replace")
        signer, payload = opener(kind, sealed)
        require(signer == accused, by, "a ban by what somebody else has signed")
        opened.append((kind, payload))
    if offence is Offence.EQUIVOCATION and len(opened) == 2 and opened[0][0] == opened[1][0]:
        epoch = contradiction(opened[0][0], opened[0][1], opened[1][1], accused)
        if epoch is not None:
            return min(epoch, epoch_now)  # the statements' signer can name any epoch in them
    if offence is Offence.ABSURD_CLAIM and len(opened) == 1 and opened[0][0] == _JOIN:
        epoch = Join.decode(opened[0][1], accused).epoch
        if epoch > epoch_now + ABSURD_AHEAD:
            return epoch_now
    raise RemoteProtocolError(by, "a ban whose statements prove nothing")


def contradiction(kind: str, first: bytes, second: bytes, signer: PeerId) -> Epoch | None:
    """The later epoch that two payloads of one signer name which contradict each other; None if they do not.

    Reductions name their round by its plan alone: they may be of any epoch up to now.
    """
    if kind == COMMITMENT:
        one, other = Commitment.decode(first, signer), Commitment.decode(second, signer)
        false = (one.first_plan_digest == other.first_plan_digest and one != other) or breaks_chain(one, other)
        return max(one.epoch, other.epoch) if false else None
    if kind == CHECK:
        a, b = Check.decode(first, signer), Check.decode(second, signer)
        return max(a.epoch, b.epoch) if (a.first_plan_digest, a.coin) == (b.first_plan_digest, b.coin) and a != b else None
    if kind == REDUCTION:
        x, y = Reduction.decode(first, signer), Reduction.decode(second, signer)
        return Epoch(MAX_EPOCH) if (x.first_plan_digest, x.attempt) == (y.first_plan_digest, y.attempt) and x != y else None
    return None


class Ledger:
    """Everybody who is banned. Grows only; keeps the proof with the smallest digest of each, so that order does not matter."""

    def __init__(self) -> None:
        self._bans: dict[PeerId, Ban] = {}

    def add(self, ban: Ban) -> bool:
        """Take in a checked ban; True if its member was not banned before."""
        known = self._bans.get(ban.accused)
        if known is None or ban.digest < known.digest:
            self._bans[ban.accused] = ban
        return known is None

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._bans

    @property
    def bans(self) -> tuple[Ban, ...]:
        """All of them, by key."""
        return tuple(self._bans[peer] for peer in sorted(self._bans))

    @property
    def members_digest(self) -> bytes:
        """32 bytes that name whom it holds, whatever the proofs."""
        return blake3(b"swarm.v1.banned" + b"".join(peer.public_key for peer in sorted(self._bans))).digest()

    def of(self, peer: PeerId) -> Ban | None:
        """Why a member is out."""
        return self._bans.get(peer)
