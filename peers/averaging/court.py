"""Judgements of a group, and the bans that follow: what a member says of others, and what it believes of what they say.

A member judges only what it has looked into itself. As soon as enough of those who were to agree in a round (`trust.ledger.Quorum`) have
said the same of one of its members, their signed words are the proof of a ban, for whoever sees them, at any time.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate

from blake3 import blake3

from peers.averaging.context import MemberContext
from peers.interfaces import Endpoint
from peers.transport.handling import BANNED
from protocols.errors import RemoteError, RemoteProtocolError, RemoteRefusal
from protocols.ids import PUBLIC_KEY_BYTES, Epoch, PeerId
from protocols.messages import Plan, SealedJoin, parse, require
from protocols.proto.swarm.v1 import trust_pb2 as pb
from protocols.trust.ledger import (
    ABSURD_AHEAD,
    MAX_BAN_BYTES,
    MAX_JUDGEMENT_BYTES,
    Ban,
    Quorum,
    ban_by_judgements,
    ban_by_statements,
    check_ban,
    majority,
)
from protocols.trust.offences import Offence
from protocols.trust.statements import JUDGEMENT, Charge

log = logging.getLogger(__name__)

JUDGE, BAN, LEDGER = "judge", "ban", "ledger"
"""Names of the calls."""

_COMPARE_DOMAIN = b"swarm.v1.compare-bans"
_REMEMBERED_PLANS = 64
_VIEWS_DIFFER_BY = 8
"""Views of a group in a grid differ by about one member of so many."""
_PAGE_BYTES = 2 * 2**20
_SPREAD_EPOCHS = 2

GroupSize = Callable[[Epoch, int, PeerId], int]
"""(epoch, round, member) -> members of its group by our own view, 0 if we have none."""

CommitmentOf = Callable[[bytes, PeerId], bytes | None]
"""(first plan, member) -> its sealed commitment to that round, if we have it."""


def _first_page(bans: Sequence[Ban]) -> list[Ban]:
    """As many as one call carries, and at least one if there are any."""
    sizes_bytes = accumulate(len(ban.proof) for ban in bans)
    return [
        ban for number, (ban, so_far_bytes) in enumerate(zip(bans, sizes_bytes, strict=True)) if not number or so_far_bytes <= _PAGE_BYTES
    ]


class Court:
    """One member's part in judging others.

    Args:
        context: who we are.
        group_size: see `GroupSize`.
        commitment_of: see `CommitmentOf`.
        on_ban: called once for each new ban.
        quorum: how many jurors a ban takes.
    """

    def __init__(
        self,
        context: MemberContext,
        group_size: GroupSize,
        commitment_of: CommitmentOf,
        on_ban: Callable[[Ban], None],
        quorum: Quorum = majority,
    ) -> None:
        self._context = context
        self._quorum = quorum
        self._commitment_of = commitment_of
        self._group_size = group_size
        self._on_ban = on_ban
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()
        self._judgements: dict[tuple[bytes, PeerId, Offence], dict[PeerId, bytes]] = {}
        self._told: dict[PeerId, set[PeerId]] = {}
        self._fresh: dict[PeerId, Epoch] = {}
        self.epoch = Epoch(0)
        self.calls = {JUDGE: self._on_judgement, BAN: self._on_ban_told, LEDGER: self._on_ledger}

    def open_round(self, plan: Plan) -> None:
        """We take part in this round: its members may be judged."""
        self._plans[plan.digest] = plan
        self.epoch = max(self.epoch, plan.epoch)
        while len(self._plans) > _REMEMBERED_PLANS:
            digest, _ = self._plans.popitem(last=False)
            self._judgements = {key: words for key, words in self._judgements.items() if key[0] != digest}
        self._fresh = {peer: epoch for peer, epoch in self._fresh.items() if epoch + _SPREAD_EPOCHS > plan.epoch}
        self._spread(member.peer for member in plan.members)

    def is_banned(self, peer: PeerId) -> bool:
        """Whether a member is out."""
        return peer in self._context.ledger

    @property
    def judged(self) -> frozenset[tuple[PeerId, Offence]]:
        """Whom anybody has found guilty of what, in the rounds that we remember."""
        return frozenset((accused, offence) for _, accused, offence in self._judgements)

    # What we say

    def judge(self, first_plan_digest: bytes, accused: PeerId, offence: Offence) -> None:
        """We have seen for ourselves that a member of a round is guilty: say so to all of its members, once."""
        plan = self._plans.get(first_plan_digest)
        key = (first_plan_digest, accused, offence)
        if plan is None or accused == self._context.me or self._context.me in self._judgements.get(key, {}) or self.is_banned(accused):
            return
        log.info("epoch %d: we find %s guilty: %s", plan.epoch, accused.short, offence.sentence)
        charge = Charge(first_plan_digest, plan.epoch, accused, offence)
        sealed = self._context.notary.seal(JUDGEMENT, charge.encode_judgement())
        self._note(plan, key, self._context.me, sealed)
        self._tell((member.peer for member in plan.members if member.peer != accused), JUDGE, sealed)

    def breach_in(self, first_plan_digest: bytes) -> Callable[[PeerId], None]:
        """For testimony: called with a member that sent us, in that round, what no honest member sends."""
        return lambda accused: self.judge(first_plan_digest, accused, Offence.MALFORMED)

    def convict(self, accused: PeerId, offence: Offence, statements: Iterable[tuple[str, bytes]]) -> None:
        """A member's own signed statements prove it guilty: no judgement is needed."""
        proof = ban_by_statements(accused, offence, statements)
        try:
            ban = self._checked(proof, None)
        except RemoteProtocolError as error:
            log.info("no proof against %s: %s", accused.short, error)
            return
        if self._convicted(ban):
            self._spread(member.peer for plan in list(self._plans.values())[-4:] for member in plan.members)

    def check_join(self, join: SealedJoin) -> None:
        """Convict whoever signs a join of an epoch that no honest member can be in.

        Raises:
            RemoteRefusal: its member is banned.
        """
        if join.join.epoch > self.epoch + ABSURD_AHEAD:
            self.convict(join.peer, Offence.ABSURD_CLAIM, [("join", join.sealed)])
        if self.is_banned(join.peer):
            raise RemoteRefusal(join.peer, BANNED, "you are banned from this run")

    def _note(self, plan: Plan, key: tuple[bytes, PeerId, Offence], juror: PeerId, sealed: bytes) -> None:
        words = self._judgements.setdefault(key, {})
        words.setdefault(juror, sealed)
        _, accused, offence = key
        electorate = max(plan.electorate, self._group_size(plan.epoch, plan.round_index, accused))
        if len(words) >= self._quorum(plan.epoch, electorate) and not self.is_banned(accused):
            commitment = self._commitment_of(plan.digest, accused)
            if commitment is not None and len(commitment) > MAX_JUDGEMENT_BYTES:
                commitment = None
            proof = ban_by_judgements(accused, offence, plan, [words[juror] for juror in sorted(words)], commitment)
            self._convicted(Ban(accused, offence, plan.epoch, proof))
            self._told[accused] = {member.peer for member in plan.members}

    def _convicted(self, ban: Ban) -> bool:
        """A ban that we have seen come about: its member is shown the proof, so that it knows why nobody talks to it any more."""
        endpoint = self._context.directory.endpoint(ban.accused)  # which leaves it out from now on
        if not self._take(ban):
            return False
        if endpoint:
            self._context.tasks.create_task(self._call(endpoint, BAN, _page([ban])), name=f"ban shown to {ban.accused.short}")
        return True

    def _take(self, ban: Ban) -> bool:
        if not self._context.ledger.add(ban):
            return False
        self._fresh[ban.accused] = self.epoch
        log.info("epoch %d: member %s is banned: %s", self.epoch, ban.accused.short, ban.offence.sentence)
        self._on_ban(ban)
        return True

    # What we pass on

    def _spread(self, peers: Iterable[PeerId]) -> None:
        """Show fresh bans to whoever we meet: through the groups of an epoch they reach everybody."""
        fresh = [ban for peer in self._fresh if (ban := self._context.ledger.of(peer))]
        for peer in dict.fromkeys(peers) if fresh else ():  # in an order that does not depend on the process
            news = [ban for ban in fresh if peer not in self._told.setdefault(ban.accused, set())]
            endpoint = self._context.directory.endpoint(peer)
            while news and peer != self._context.me and endpoint:
                page = _first_page(news)
                news = news[len(page) :]
                self._context.tasks.create_task(self._tell_bans(endpoint, page), name=f"bans to {peer.short}")

    async def _tell_bans(self, endpoint: Endpoint, bans: list[Ban]) -> None:
        """All in one call. Whoever does not hear it is told again when we meet the next time."""
        for ban in bans:
            self._told[ban.accused].add(endpoint.peer)
        if not await self._call(endpoint, BAN, _page(bans)):
            for ban in bans:
                self._told[ban.accused].discard(endpoint.peer)

    def _tell(self, peers: Iterable[PeerId], method: str, message: bytes) -> None:
        for peer in peers:
            endpoint = self._context.directory.endpoint(peer)
            if peer != self._context.me and endpoint:
                self._context.tasks.create_task(self._call(endpoint, method, message), name=f"{method} to {peer.short}")

    async def _call(self, endpoint: Endpoint, method: str, message: bytes) -> bool:
        """Whether it was heard."""
        try:
            await self._context.transport.call(endpoint, method, message, timeout_s=self._context.rules.stall_timeout_s)
        except RemoteError as error:
            log.debug("%s not heard: %s", method, error)
            return False
        return True

    # What others say

    async def _on_judgement(self, sender: PeerId, request: bytes) -> bytes:
        require(len(request) <= MAX_JUDGEMENT_BYTES, sender, f"a judgement of {len(request)} bytes")
        juror, payload = await self._context.heavy(lambda: self._context.notary.open(JUDGEMENT, request))
        charge = Charge.decode_judgement(payload, juror)
        plan = self._plans.get(charge.first_plan_digest)
        if plan is None:
            raise RemoteRefusal(sender, "unknown-plan", "this member knows nothing of that round")
        require(charge.epoch == plan.epoch, sender, "a judgement that names another epoch than its round")
        require(plan.index_of(juror) is not None and plan.index_of(charge.accused) is not None, sender, "a judgement of strangers")
        if not self.is_banned(juror):
            self._note(plan, (charge.first_plan_digest, charge.accused, charge.offence), juror, request)
        return b""

    async def _on_ban_told(self, sender: PeerId, request: bytes) -> bytes:
        bans = parse(pb.LedgerPage, request, sender).bans
        await self.learn(bans, sender)
        for proof in bans:  # whoever tells us need not be told
            self._told.setdefault(self._accused_of(proof, sender), set()).add(sender)
        return b""

    def _size_for_others(self, epoch: Epoch, round_index: int, accused: PeerId) -> int:
        """A group in a grid as others may have seen it: whose bans were not known to all in time, some have placed one more member in it.

        A proof that takes two thirds of the group in the plan holds for one that sees a few more; it would never be convinced otherwise.
        """
        size = self._group_size(epoch, round_index, accused)
        in_grid = self._quorum(epoch, size) > majority(epoch, size)
        return size - size // _VIEWS_DIFFER_BY if in_grid else size

    async def learn(self, proofs: Iterable[bytes], by: PeerId) -> None:
        """Take in bans that somebody shows us; those that would convince only who has seen more than we have are passed over.

        Raises:
            RemoteProtocolError: one proves nothing.
        """
        for proof in proofs:
            if self._accused_of(proof, by) not in self._context.ledger:
                try:
                    self._take(await self._context.heavy(partial(self._checked, proof, by)))
                except RemoteRefusal as error:
                    log.info("ban not taken over: %s", error)

    def _checked(self, proof: bytes, by: PeerId | None) -> Ban:
        """Raises as `check_ban`. Runs in the pool where others send the proof."""
        return check_ban(proof, self._context.notary.open_old, self.epoch, self._size_for_others, by, self._quorum)

    @staticmethod
    def _accused_of(proof: bytes, by: PeerId) -> PeerId:
        require(len(proof) <= MAX_BAN_BYTES, by, f"a ban of {len(proof)} bytes")
        accused = parse(pb.Ban, proof, by).accused
        require(len(accused) == PUBLIC_KEY_BYTES, by, "a ban of nobody")
        return PeerId(accused)

    async def _on_ledger(self, sender: PeerId, request: bytes) -> bytes:
        """A page of our bans, for newcomers."""
        m = parse(pb.LedgerRequest, request, sender)
        bans = () if m.known == self._context.ledger.members_digest else self._context.ledger.bans[m.offset :]
        page = _first_page(bans)
        return pb.LedgerPage(bans=[ban.proof for ban in page], more=len(page) < len(bans)).SerializeToString()

    def compare(self, epoch: Epoch, peers: Iterable[PeerId]) -> None:
        """Ask a member, another one each epoch, for bans that we lack.

        Whoever has missed one while it was told, or could not be convinced by the proof that it was shown, would look for others in another
        grid than theirs from then on, and meet nobody who tells it.
        """
        drawn = _COMPARE_DOMAIN + epoch.to_bytes(8, "little") + self._context.me.public_key
        others = [peer for peer in peers if peer != self._context.me and self._context.directory.endpoint(peer)]
        if others:
            asked = min(others, key=lambda peer: blake3(drawn + peer.public_key).digest())
            self._context.tasks.create_task(self.fetch_ledger([asked]), name=f"bans known to {asked.short}")

    async def fetch_ledger(self, peers: Iterable[PeerId]) -> int:
        """Learn the bans that others know; returns how many there are now. Whoever shows one that proves nothing is passed over."""
        for peer in peers:
            try:
                await self._fetch_ledger(peer)
            except RemoteError as error:
                log.info("ledger not had: %s", error)
        return len(self._context.ledger.bans)

    async def _fetch_ledger(self, peer: PeerId) -> None:
        """One member's ledger, which is in the order of keys: pages that get no further end it, however many more it announces."""
        endpoint, offset, more, reached = self._context.directory.endpoint(peer), 0, True, b""
        while endpoint is not None and more:
            request = pb.LedgerRequest(offset=offset, known=self._context.ledger.members_digest).SerializeToString()
            reply = await self._context.transport.call(endpoint, LEDGER, request, timeout_s=self._context.rules.stall_timeout_s)
            page = parse(pb.LedgerPage, reply, peer)
            last = max((self._accused_of(proof, peer).public_key for proof in page.bans), default=b"")
            more, reached = page.more and last > reached, max(last, reached)
            await self.learn(page.bans, peer)
            offset += len(page.bans)


def _page(bans: Iterable[Ban]) -> bytes:
    return pb.LedgerPage(bans=[ban.proof for ban in bans]).SerializeToString()
