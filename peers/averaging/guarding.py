"""How a member of a run that verifies guards itself: verified rounds, audits and judgements, joined."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from peers.averaging.auditing import Auditing, Replayer
from peers.averaging.context import Blame, MemberContext
from peers.averaging.court import Court
from peers.averaging.evidence import Brought
from peers.averaging.result import RoundResult
from peers.averaging.rounds import Rounds
from peers.averaging.serving import Guards
from peers.averaging.verified import Case, VerifiedRounds
from peers.training_peer import Replayed, ReplayRequest
from protocols.content import input_hash
from protocols.errors import RemoteError, RemoteProtocolError, RoundError
from protocols.grid import Placement
from protocols.ids import Epoch, PeerId
from protocols.messages import Commit, Plan, SealedJoin
from protocols.trust.certifying import CertifiedResult, check_certificate
from protocols.trust.ledger import Ban, majority, two_thirds
from protocols.trust.statements import Commitment

log = logging.getLogger(__name__)

_REMEMBERED_PLACEMENTS = 16
_REMEMBERED_EPOCHS = 2**12
"""Of which we still know whether the swarm was in several groups: what was too weak for a ban then must not be enough later."""


async def cannot_replay(_replay: ReplayRequest) -> Replayed | None:
    """For members that have no data or no model."""
    return None


class Guarding:
    """See the module.

    Args:
        context: who we are.
        rounds: what we know of rounds.
        blame: called with a member that broke the protocol, and how.
        replayer: computes contributions again.
    """

    def __init__(self, context: MemberContext, rounds: Rounds, blame: Blame, replayer: Replayer) -> None:
        self._context = context
        self._blame = blame
        self._rounds = rounds
        self._placements: dict[Epoch, Placement] = {}
        self._in_groups: dict[Epoch, bool] = {}
        self._served: Counter[PeerId] = Counter()
        self._placed_since: dict[PeerId, Epoch] = {}
        self._first_epoch: Epoch | None = None
        self.on_ban: Callable[[Ban], None] = lambda ban: None
        self.court = Court(context, self._group_size, self._commitment_of, self._banned, self._quorum)
        self.verified = VerifiedRounds(context, rounds, self.court, blame)
        self.auditing = Auditing(context, self.verified, self.court, replayer)
        self.guards = Guards({**self.court.calls, **self.auditing.calls}, self.court.check_join)
        rounds.probation = self._newcomers

    def _banned(self, ban: Ban) -> None:
        self.on_ban(ban)

    def see(self, epoch: Epoch, placement: Placement) -> None:
        """Our view of an epoch's grid."""
        self._first_epoch = epoch if self._first_epoch is None else self._first_epoch
        self._placements[epoch] = placement
        self._in_groups[epoch] = placement.rounds > 1
        self.court.epoch = max(self.court.epoch, epoch)
        self.court.compare(epoch, self._context.directory.live(epoch))
        for peer in placement.members:
            self._placed_since.setdefault(peer, epoch)
        while len(self._in_groups) > _REMEMBERED_EPOCHS:
            del self._in_groups[min(self._in_groups)]
        while len(self._placements) > _REMEMBERED_PLACEMENTS:
            del self._placements[min(self._placements)]

    def _group_size(self, epoch: Epoch, index: int, peer: PeerId) -> int:
        """Members of a group as we see it. Whoever is banned for what it did in that epoch counts among its jurors: of two such, each would
        prove the other's ban to those who know both, and nobody else could be convinced of either.
        """
        return sum(not self._was_out(member, epoch) for member in self._placed_group(epoch, index, peer))

    def _was_out(self, peer: PeerId, epoch: Epoch) -> bool:
        ban = self._context.ledger.of(peer)
        return ban is not None and ban.epoch < epoch

    def _group(self, epoch: Epoch, index: int, peer: PeerId) -> frozenset[PeerId]:
        """Of a member, by our own view; empty if we have none."""
        return frozenset(member for member in self._placed_group(epoch, index, peer) if member not in self._context.ledger)

    def _placed_group(self, epoch: Epoch, index: int, peer: PeerId) -> tuple[PeerId, ...]:
        placement = self._placements.get(epoch)
        if placement is None or not 0 <= index < placement.rounds:
            return ()
        try:
            return tuple(placement.group(peer, index))
        except KeyError:
            return ()

    def _quorum(self, epoch: Epoch, electorate: int) -> int:
        """Of the jurors of one group; by the number of groups as we see it, or as we see it now where we have seen nothing of an epoch."""
        now = next(reversed(self._in_groups.values()), False)
        return two_thirds(epoch, electorate) if self._in_groups.get(epoch, now) else majority(epoch, electorate)

    def _commitment_of(self, first_plan_digest: bytes, peer: PeerId) -> bytes | None:
        evidence, verifying = self._rounds.evidence.peek(first_plan_digest), self._rounds.verifyings.peek(first_plan_digest)
        member = evidence.plan.index_of(peer) if evidence else None
        if evidence is None or member is None:
            return None
        if committed := evidence.committed.get(member):
            return committed.sealed
        return verifying.sealed_commitment(member) if verifying else None

    # Rounds

    async def average(self, plan: Plan, own_D: torch.Tensor, brought: Brought) -> tuple[Case, Commit]:
        """See `VerifiedRounds.average`; the commit carries its certificate."""
        case, commit = await self.verified.average(plan, own_D, brought, self._vouched(plan))
        if case.verified and not plan.round_index:
            self._served.update(plan.members[i].peer for i, said in case.verified.commitments.items() if said.samples)
        return case, case.certified(commit)

    def _vouched(self, plan: Plan) -> Callable[[PeerId, Commitment, Sequence[bytes]], None]:
        def check(peer: PeerId, commitment: Commitment, certificate: Sequence[bytes]) -> None:
            member = plan.index_of(peer)
            join = plan.members[member].join if member is not None else None
            if join is None:
                raise RemoteProtocolError(peer, "it brings something to a round that it is not in")
            before = plan.round_index - 1
            result = CertifiedResult(commitment.previous_plan_digest, plan.epoch, before, join.input_hash, join.weight)
            check_certificate(result, certificate, self._context.notary.open_old, self._group(plan.epoch, before, peer), peer)

        return check

    async def certified(self, commit: Commit, result: RoundResult, holder: PeerId) -> bool:
        """Whether a group vouches for the result of a round that we were not in."""
        named = CertifiedResult(
            commit.first_plan_digest,
            commit.epoch,
            commit.round_index,
            input_hash(result.contents, commit.first_plan_digest),
            commit.weight,
        )
        group = self._group(commit.epoch, commit.round_index, holder)
        try:
            await self._context.heavy(lambda: check_certificate(named, commit.certificate, self._context.notary.open_old, group, holder))
        except RemoteError as error:
            log.info("not believed: %s", error)
            return False
        return True

    def require_certificate(self, commit: Commit) -> None:
        """Nobody would take what no group vouches for.

        Raises:
            RoundError: we have nothing to bring to the next round.
        """
        if not commit.certificate:
            raise RoundError("nobody vouches for the result of the round before")

    # Newcomers

    def on_probation(self, peer: PeerId, epoch: Epoch) -> bool:
        """Whether a member's work does not count yet, as far as we have seen.

        Where everybody is one group we have seen each epoch that it served. Elsewhere we have met it only now and then, and go by how long
        it has had a place in the grid. Whoever was there before us, or when the run began, is no newcomer.
        """
        trust, placement = self._context.rules.trust, self._placements.get(epoch)
        if trust is None or placement is None or self._first_epoch is None:
            return False
        since = self._placed_since.get(peer, epoch)
        if since <= self._first_epoch + trust.probation_epochs and (self._first_epoch > 0 or since < trust.probation_epochs):
            return False
        served = self._served[peer] if placement.rounds == 1 else epoch - since
        return served < trust.probation_epochs

    def _newcomers(self, joins: tuple[SealedJoin, ...]) -> frozenset[int]:
        """Of those who join a first round that we lead; nobody if otherwise nobody would count."""
        if not joins or joins[0].join.round_index:
            return frozenset()
        fresh = {i for i, join in enumerate(joins) if self.on_probation(join.peer, join.join.epoch)}
        counting = any(join.join.weight > 0 for i, join in enumerate(joins) if i not in fresh)
        return frozenset(fresh) if counting else frozenset()
