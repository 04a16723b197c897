"""The shares of one round's coin as one member knows them: its own, those it was shown, and those it went to look for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from peers.averaging.context import Blame, MemberContext
from peers.averaging.evidence import Evidence, read_reduction
from peers.averaging.liveness import is_alive
from protocols.errors import RemoteError, RemoteGone, RemoteProtocolError, RemoteRefusal
from protocols.ids import PeerId
from protocols.messages import Plan, parse, require
from protocols.proto.swarm.v1 import trust_pb2 as pb
from protocols.trust.ledger import contradiction
from protocols.trust.statements import COIN_TRIES, COMMITMENT, REDUCTION, Commitment
from protocols.trust.verification import Shares, accepted_coin, check_share

log = logging.getLogger(__name__)

SHARE = "share"
"""Name of the call that asks a member for its share of the coin."""


@dataclass(frozen=True, slots=True)
class CoinHooks:
    """What follows from what members show.

    Args:
        blame: called with a member that broke the protocol, and how.
        withheld: called with a member that lives and does not show its share.
        convict: called with a member and two statements of it that contradict each other: (member, kind, sealed, sealed).
    """

    blame: Blame
    withheld: Callable[[PeerId], None]
    convict: Callable[[PeerId, str, bytes, bytes], None]


class CoinTable:
    """Of one round, seen by one member.

    Args:
        context: who we are.
        evidence: of the round.
        plan: of its last attempt.
        hooks: see `CoinHooks`.

    Attributes:
        shares: by try and member.
        commitments: of members, as signed and read.
        declared: members whom a leader has missed aloud, and whom we could not find either.
        highest_attempt: the try that is due.
        shown: commitments of all whose shares are in the coin that was accepted last.
    """

    def __init__(self, context: MemberContext, evidence: Evidence, plan: Plan, hooks: CoinHooks) -> None:
        self._context = context
        self._evidence = evidence
        self._plan = plan
        self._me = evidence.me
        self._hooks = hooks
        self.shares: dict[int, dict[int, bytes]] = {attempt: {} for attempt in range(COIN_TRIES)}
        self.commitments = {i: (known.sealed, known.commitment) for i, known in evidence.commitments.items()}
        self.declared: set[int] = set()
        self.highest_attempt = 0
        self.shown: dict[int, Commitment] = {}

    def share(self, asker: PeerId, request: bytes) -> bytes:
        """Our share, for a member of the plan whom our leader has told that it is missing.

        Raises:
            RemoteRefusal: it is not due, or not for this member.
        """
        m = parse(pb.ShareRequest, request, asker)
        if self._plan.index_of(asker) is None or m.attempt > self.highest_attempt:
            raise RemoteRefusal(asker, "not-ready", "that share of the coin is not due")
        if not self._context.conduct.shows_share(asker):
            raise RemoteRefusal(asker, "no-share", "this member does not show its share")
        return self.own_share(m.attempt).SerializeToString()

    def sealed_commitment(self, member: int) -> bytes | None:
        """A member's signed commitment, if anybody has shown it to us."""
        known = self.commitments.get(member)
        return known[0] if known else None

    def own_share(self, attempt: int) -> pb.MemberShare:
        """What we show in a try."""
        sealed = self._evidence.committed[self._me].sealed
        return pb.MemberShare(member=self._me, sealed_commitment=sealed, share=self._evidence.secret.share(attempt))

    def share_message(self, attempt: int, relayed: Iterable[pb.MemberShare]) -> bytes:
        """Our share for a leader, with those that we got of members whom it misses."""
        own = self.own_share(attempt)
        m = pb.Share(sealed_commitment=own.sealed_commitment, share=own.share, attempt=attempt, relayed=relayed)
        return m.SerializeToString()

    async def hear_share(self, data: bytes, index: int, peer: PeerId) -> None:
        """Take in what a member shows us as the leader.

        Raises:
            RemoteProtocolError: it is no share, or not due.
        """
        m = parse(pb.Share, data, peer)
        require(m.attempt <= self.highest_attempt and len(m.relayed) <= len(self._plan.members), peer, "a share out of turn")
        await self._note_share(index, m.sealed_commitment, m.attempt, m.share, peer)
        for entry in m.relayed:
            require(m.attempt > 0 and entry.member < len(self._plan.members), peer, "somebody's share that nobody misses")
            await self._note_share(entry.member, entry.sealed_commitment, m.attempt - 1, entry.share, peer)

    async def look_for(self, shown: pb.Coin, leader: PeerId) -> list[pb.MemberShare]:
        """Ask everybody whom a leader misses for the share ourselves; whoever lives and shows it to nobody is to blame."""
        once = len(set(shown.missing)) == len(shown.missing)  # or one word of a leader would have everybody call somebody without end
        inside = once and all(member < len(self._plan.members) for member in shown.missing) and shown.attempt + 1 < COIN_TRIES
        require(inside and shown.attempt >= self.highest_attempt, leader, "a coin that misses nobody we know, or out of turn")
        require(self._me not in shown.missing, leader, "it says that our share is missing, and has it")
        found = await asyncio.gather(*(self.ask_for_share(member, shown.attempt) for member in shown.missing))
        self.declared.update(member for member, share in zip(shown.missing, found, strict=True) if share is None)
        self.highest_attempt = shown.attempt + 1
        return [share for share in found if share]

    async def ask_for_share(self, member: int, attempt: int) -> pb.MemberShare | None:
        """A member's share from itself; None if it cannot be had."""
        peer, rules = self._plan.members[member].peer, self._context.rules
        endpoint = self._context.directory.endpoint(peer)
        if endpoint is None:
            return None
        request = pb.ShareRequest(first_plan_digest=self._evidence.digest, attempt=attempt).SerializeToString()
        try:
            reply = await self._context.transport.call(endpoint, SHARE, request, timeout_s=rules.stall_timeout_s)
            shown = parse(pb.MemberShare, reply, peer)
            require(shown.member == member, peer, "somebody else's share of the coin")
            await self._note_share(member, shown.sealed_commitment, attempt, shown.share, peer)
        except RemoteRefusal as error:
            log.info("no share of the coin: %s", error)
            if error.code == "no-share":
                self._hooks.withheld(peer)
            return None
        except RemoteError as error:
            log.info("no share of the coin: %s", error)
            if isinstance(error, RemoteProtocolError):
                self._hooks.blame(peer, error.reason)
            elif not isinstance(error, RemoteGone) and await is_alive(self._context, peer):
                self._hooks.withheld(peer)
            return None
        return shown

    async def _note_share(self, member: int, sealed: bytes, attempt: int, share: bytes, by: PeerId) -> None:
        commitment = await self._commitment_of(member, sealed, by)
        check_share(self._evidence.plan, member, commitment, attempt, share, by)
        self.shares[attempt][member] = share

    async def _commitment_of(self, member: int, sealed: bytes, by: PeerId) -> Commitment:
        """A member's commitment as somebody shows it. Another one than we have been given convicts the member."""
        known = self.commitments.get(member)
        if known and known[0] == sealed:
            return known[1]
        peer = self._plan.members[member].peer
        signer, payload = await self._context.heavy(lambda: self._context.notary.open_old(COMMITMENT, sealed))
        require(signer == peer, by, "a commitment of somebody else")
        commitment = Commitment.decode(payload, by)
        plan = self._evidence.plan
        require(commitment.first_plan_digest == plan.digest, by, "a commitment to another round")
        if known is None:
            require((commitment.epoch, commitment.round_index) == (plan.epoch, plan.round_index), by, "a commitment to another epoch")
            self.commitments[member] = (sealed, commitment)
        elif contradiction(COMMITMENT, known[1].encode(), payload, peer) is not None:
            self._hooks.convict(peer, COMMITMENT, known[0], sealed)
        return commitment

    async def accept_coin(self, shown: pb.Coin, leader: int) -> bytes:
        """The coin that a leader shows, if it may be believed; what else it shows is compared with what we have been given.

        Raises:
            RemoteRefusal: somebody whom we know to be there is left out.
            RemoteProtocolError: it is no coin of this round.
        """
        peer = self._plan.members[leader].peer
        require(shown.attempt < COIN_TRIES and len(shown.shares) <= len(self._plan.members), peer, "an absurd coin")
        commitments: dict[int, Commitment] = {}
        for entry in shown.shares:
            require(entry.member < len(self._plan.members) and entry.member not in commitments, peer, "a coin of other members")
            commitments[entry.member] = await self._commitment_of(entry.member, entry.sealed_commitment, peer)
        there = set(range(len(self._plan.members))) - self._plan.absent
        required = frozenset(there - (self.declared if shown.attempt else set())) | self.shares[shown.attempt].keys() | {self._me}
        shares = {entry.member: entry.share for entry in shown.shares}
        self.shown = commitments
        coin = accepted_coin(self._evidence.plan, Shares(shown.attempt, shares), frozenset(required), commitments, peer)
        for sealed in shown.sealed_reductions[: 4 * len(self._plan.members)]:
            await self._note_reduction(bytes(sealed), peer)
        return coin

    async def _note_reduction(self, sealed: bytes, by: PeerId) -> None:
        """A reducer's statement as the leader has it; another one than we have been given convicts the reducer."""
        if any(sealed == held for _, held, _ in self._evidence.statements):
            return
        signer = (await self._context.heavy(lambda: self._context.notary.open_old(REDUCTION, sealed)))[0]
        member = self._plan.index_of(signer)
        if member is None:
            raise RemoteProtocolError(by, "a reduction of a stranger")
        reduction = read_reduction(self._context, self._evidence.digest, signer, sealed)
        if not self._evidence.was_to_make(member, reduction):  # of a repair that we know otherwise, or made up: it says nothing
            return
        known = self._evidence.reductions.setdefault(member, {}).setdefault(reduction.attempt, (sealed, reduction))
        if known[1] != reduction:
            self._hooks.convict(signer, REDUCTION, known[0], sealed)
