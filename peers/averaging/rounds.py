"""What a member remembers of rounds: where it stands, groups that form, exchanges under way, and the newest result for whoever is late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from peers.averaging.context import Blame, Expected, MemberContext
from peers.averaging.evidence import Evidence
from peers.averaging.exchange import Exchange
from peers.averaging.gathering import Gathering, GatheringHooks
from peers.averaging.result import RoundResult
from peers.averaging.settling import Settling
from peers.averaging.verifying import Verifying
from protocols.deadline import AdaptiveDeadline
from protocols.errors import RemoteRefusal
from protocols.ids import Epoch, PeerId, RoundId
from protocols.messages import MAX_FAILURES, Commit, SealedJoin
from protocols.rendezvous import RendezvousRules

_REMEMBERED_EXCHANGES = 8
_REMEMBERED_COMMITS = 8
_REMEMBERED_EVIDENCE = 64
"""Those of old epochs hold no blocks any more."""

_ROUNDS_AHEAD = 4
"""How far ahead of us in the epoch others may wait for us. In each round on the way there somebody's group has waited for us, and for long;
whoever has got further without us does not need us.
"""


class Rounds:
    """Shared by the member's own rounds (`averager.py`) and by what it serves to others (`serving.py`).

    Args:
        context: who we are.
        on_close: called with the epoch when others close it before our contribution is ready.
        blame: called with a member that broke the protocol, and how.
    """

    def __init__(self, context: MemberContext, on_close: Callable[[Epoch], None], blame: Blame) -> None:
        self._context = context
        self._on_close = on_close
        self._blame = blame
        self.exchanges: Expected[bytes, Exchange] = Expected(limit=_REMEMBERED_EXCHANGES)
        self.settlings: Expected[bytes, Settling] = Expected(limit=_REMEMBERED_EXCHANGES)
        self.evidence: Expected[bytes, Evidence] = Expected(limit=_REMEMBERED_EVIDENCE)
        self.verifyings: Expected[bytes, Verifying] = Expected(limit=_REMEMBERED_EXCHANGES)
        self.results: dict[bytes, RoundResult] = {}
        self.probation: Callable[[tuple[SealedJoin, ...]], frozenset[int]] = lambda _joins: frozenset()
        self._newest: bytes = b""
        self._over: tuple[bytes, ...] = ()
        self.commits: dict[RoundId, Commit] = {}
        self._gatherings: dict[RoundId, Gathering] = {}
        self._gathered: Counter[RoundId] = Counter()
        self._failures: Counter[PeerId] = Counter()
        self._failures_at: RoundId | None = None
        self._disbelieved: set[tuple[RoundId, PeerId]] = set()
        rules = context.rules
        self._first_gather = AdaptiveDeadline(rules.stall_timeout_s, rules.join_timeout_s)
        self.exchange_deadline = AdaptiveDeadline(2 * rules.stall_timeout_s, rules.round_timeout_s)
        self._next = RoundId(rules.run, Epoch(0))
        self.engaged = False

    @property
    def next(self) -> RoundId:
        """The round that we are in, or take part in next."""
        return self._next

    def go_to(self, round_id: RoundId) -> None:
        """We take part in this round next."""
        self._next = round_id
        self.forget_gatherings(before=self._next)

    def gathering(self, round_id: RoundId) -> Gathering:
        """The group of a round, made on first use."""
        if round_id not in self._gatherings:
            failures = dict(self._failures) if self._failures_at == round_id else {}
            hooks = GatheringHooks(
                lambda: self._on_close(round_id.epoch),
                lambda: self.on_our_way_to(round_id),
                self._blame,
                lambda peer: (round_id, peer) not in self._disbelieved,
                lambda plan: self.exchanges.peek(plan.digest) is None,
                self.probation,
            )
            rules, number = self._rendezvous_rules(round_id, failures), self._gathered[round_id]
            self._gatherings[round_id] = Gathering(self._context, round_id, rules, hooks, number)
            self._gathered[round_id] += 1
        return self._gatherings[round_id]

    @property
    def usual_exchange_s(self) -> float:
        """How long an exchange may take, as far as we know: whoever is late for what follows needs no longer."""
        return self.exchange_deadline.value_s() if self.exchange_deadline.known else 4 * self._context.rules.stall_timeout_s

    def on_our_way_to(self, round_id: RoundId) -> bool:
        """Whether we are in an earlier round of that epoch, and will come."""
        return self.engaged and self._next.epoch == round_id.epoch and self._next < round_id

    def observe_gathering(self, round_id: RoundId, took_s: float) -> None:
        """How long it took a group to form; in later rounds that depends on the rounds before."""
        if round_id.index == 0:
            self._first_gather.observe(took_s)

    def _rendezvous_rules(self, round_id: RoundId, failures: dict[PeerId, int]) -> RendezvousRules:
        rules = self._context.rules
        join_timeout_s = self._first_gather.value_s()
        longest_wait_s = join_timeout_s
        if round_id.index:
            join_timeout_s += 2 * rules.stall_timeout_s
            longest_wait_s = join_timeout_s + self.exchange_deadline.value_s()
        return RendezvousRules(join_timeout_s, longest_wait_s, rules.stall_timeout_s, rules.max_group, failures)

    def forget_gatherings(self, before: RoundId) -> None:
        """Close what is over; whoever still waits there is told."""
        for known in [known for known in self._gatherings if known < before]:
            self._gatherings.pop(known).close()
        self._gathered = Counter({known: times for known, times in self._gathered.items() if known >= before})

    def forget_gathering(self, round_id: RoundId) -> None:
        """This group broke down; the next try forms a new one."""
        gathering = self._gatherings.pop(round_id, None)
        if gathering:
            gathering.close()

    def note_failure(self, round_id: RoundId, leader: PeerId) -> None:
        """A round failed under this leader; somebody else should lead the next try."""
        if self._failures_at != round_id:
            self._failures_at = round_id
            self._failures.clear()
        self._failures[leader] = min(self._failures[leader] + 1, MAX_FAILURES)

    def disbelieve(self, round_id: RoundId, peer: PeerId) -> None:
        """It said that this round was closed and could not show the result."""
        self._disbelieved = {known for known in self._disbelieved if known[0] >= self._next} | {(round_id, peer)}

    def conclude(self, round_id: RoundId, result: RoundResult, commit: Commit) -> None:
        """The round is over: remember its result for members that are late, and forget the one before."""
        if self._newest != commit.first_plan_digest:
            self.results.pop(self._newest, None)
        self._newest = commit.first_plan_digest
        self.results[self._newest] = result
        self.commits[round_id] = commit
        while len(self.commits) > _REMEMBERED_COMMITS:
            del self.commits[min(self.commits)]

    def exchanged(self, digests: tuple[bytes, ...]) -> None:
        """These attempts of a plan are over. Whoever still asks for those before comes too late."""
        for digest in self._over:
            if exchange := self.exchanges.pop(digest):
                exchange.forget()
        self._over = digests

    def newest_commit(self, round_id: RoundId) -> Commit | None:
        """What a member that is late for a round can have instead: the newest result of its epoch, from that round on."""
        held = [done for done in self.commits if done.epoch == round_id.epoch and done >= round_id]
        newest = self.commits[max(held)] if held else None
        return newest if newest and newest.first_plan_digest in self.results else None

    def commit_of(self, first_plan_digest: bytes) -> Commit | None:
        """What was agreed in the round of this plan, if we remember."""
        return next((commit for commit in self.commits.values() if commit.first_plan_digest == first_plan_digest), None)

    def check_turn(self, sender: PeerId, round_id: RoundId) -> None:
        """Whether a member may wait here for this round.

        Raises:
            RemoteRefusal: it is behind us, or so far ahead that we cannot follow.
        """
        here = self._next
        if round_id.epoch < here.epoch:
            raise RemoteRefusal(sender, "behind", f"you are at epoch {round_id.epoch}, the swarm is at {here.epoch}")
        if round_id < here:
            raise RemoteRefusal(sender, "round-formed", "that round of the epoch is over")
        if round_id.epoch > here.epoch + 1 or (round_id.epoch > here.epoch and round_id.index):
            raise RemoteRefusal(sender, "ahead", f"you are at epoch {round_id.epoch}, this member is only at {here.epoch}")
        if round_id.index > here.index + _ROUNDS_AHEAD:
            raise RemoteRefusal(sender, "ahead", f"you are in round {round_id.index} of the epoch, this member is only in {here.index}")
