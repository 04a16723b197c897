"""One member on the network: owns every task, serves the trainer through `PeerHandle`, and keeps the swarm informed.

Read `Node.run`: what starts, in order. Then `average` and `fetch_state`, which the trainer waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from peers.averaging.averager import Averager, RoundDone
from peers.averaging.context import MemberContext
from peers.averaging.gathering import LeftOut
from peers.bandwidth import Bandwidth
from peers.bridge import PeerHandle
from peers.expulsion import Expelled, RefusalWatch, ban_sentence
from peers.identity import Identity
from peers.inner_shelf import InnerShelf
from peers.interfaces import Clock, RecordStore, Transport, merged
from peers.link_survey import LinkSurvey
from peers.node_settings import NodeSettings
from peers.notary import MemberNotary
from peers.roster import Roster
from peers.state_server import StateServer
from peers.state_snapshot import StateSnapshot
from peers.state_transfer import fetch_state
from peers.swarm_view import own_progress, swarm_view
from peers.training_peer import (
    Contribution,
    EpochAnnouncement,
    RoundOutcome,
    RoundStatus,
    TrainerReport,
)
from protocols.certificate import membership_checker
from protocols.errors import RemoteProtocolError, RoundError
from protocols.ids import Epoch, PeerId, SwarmTime
from protocols.messages import Join
from protocols.progress import SwarmProgress, estimate, target_at
from protocols.record_keeping import RecordReader, SealedRecord, seal_presence, seal_progress
from protocols.records import Progress
from protocols.signing import Sealer
from protocols.trust.ledger import Ban

log = logging.getLogger(__name__)

PRESENCE_EVERY_S = 20.0
PROGRESS_EVERY_S = 1.0
REFRESH_EVERY_S = 1.0
CROWD = 8
"""A larger swarm speaks and listens less often, or what everybody hears from everybody would grow with the square of its size."""

SLOWEST_CROWD = 4.0
"""How much less often at most: records must come several times before they count as stale."""
LOOK_EVERY_S = 0.2
LEAVE_WITHIN_S = 1.5
"""How long saying goodbye may take."""

HEAVY_THREADS = 2
REFUSALS_EVERY_S = 5.0
"""How often those who refuse us as banned are counted."""

LEDGERS_READ = 3
"""Members that a newcomer asks for bans: one of them may keep some back, none can make one up."""

_RECORD_GAP_S = 0.002


class Node:
    """Runs one member; a `peers.bridge.PeerService`.

    Args:
        settings: see there.
        identity, sealer: who we are, and what signs for us.
        transport: carries rounds and state.
        store: carries records.
        handle: the trainer's end.
        clock: ours.
    """

    def __init__(
        self,
        settings: NodeSettings,
        sealer: Sealer,
        identity: Identity,
        transport: Transport,
        store: RecordStore,
        handle: PeerHandle,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._sealer = sealer
        self._me: PeerId = identity.peer
        self._transport = RefusalWatch(transport, settings.ledger)
        self._store = store
        self._handle = handle
        self._clock = clock
        reader = RecordReader(settings.run, settings.authority_key)
        self.roster = Roster(self._me, settings.run, store, reader, clock, settings.ledger)
        self._inner = InnerShelf()
        self._states = StateServer(handle.want_snapshot, inner=self._inner)
        self._report = TrainerReport(0, 0.0, None, "joining")
        self._held = EpochAnnouncement(Epoch(0), b"", 0)
        self._epoch_began_at: SwarmTime = clock.now()
        self._published_at = SwarmTime(0.0)
        self._news = asyncio.Event()
        self._last_group: tuple[PeerId, ...] = ()
        self._met_somebody = settings.founder
        self._averager: Averager | None = None
        self._expelled: Expelled | None = None
        self._bandwidth = Bandwidth()
        self._links = LinkSurvey(self._transport, self._bandwidth.meter, self.roster.endpoints)
        self.address = ""
        self.on_round: Callable[[RoundDone], None] = lambda done: None
        """Called after every round that ended well; for whoever measures."""
        self.on_ban: Callable[[Ban], None] = lambda ban: None
        """Called once for each new ban; for whoever keeps the ledger and the doors."""

    # Lifetime

    async def run(self, on_ready: Callable[[str], None]) -> None:
        """Take part until the handle is stopped, then say goodbye.

        Args:
            on_ready: called once with our address when others can reach us.

        Raises:
            NetworkSetupError: our port is taken.
            Expelled: we are banned.

        Cancellation: as stopping, without the goodbye.
        """
        pool = ThreadPoolExecutor(HEAVY_THREADS, thread_name_prefix="heavy")
        try:
            async with asyncio.TaskGroup() as tasks:
                context = self._context(tasks, pool)
                self._averager = Averager(context, self._handle.close_epoch, self._observe, self._handle.replay)
                if self._averager.guarding:
                    self._averager.guarding.on_ban = self._banned
                handlers = merged(self._averager.handlers, self._states.handlers(), self._links.handlers())
                async with self._transport.serve(handlers) as self.address:
                    duties = (
                        self._announce(),
                        self._publish(),
                        self._follow(),
                        self._look(),
                        self._learn_bans(self._averager),
                        self._mind_refusals(),
                    )
                    background = [tasks.create_task(work) for work in duties]
                    if self._settings.on_link:
                        background.append(tasks.create_task(self._links.survey(self._settings.on_link)))
                    on_ready(self.address)
                    await self._handle.serve(self)
                    await self._say_goodbye()
                    for task in background:
                        task.cancel()
                raise _Finished  # rounds still under way end with us
        except* _Finished:
            log.info("node has left: peer=%s", self._me.short)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            await self._transport.close()
        if self._expelled:
            raise self._expelled

    def _context(self, tasks: asyncio.TaskGroup, pool: ThreadPoolExecutor) -> MemberContext:
        membership = membership_checker(self._settings.run, self._settings.authority_key)
        notary = MemberNotary(self._sealer, membership, self._clock)
        dialable = self._settings.presence.role != "client"
        return MemberContext(
            self._me,
            self._transport,
            self.roster,
            notary,
            self._settings.rules,
            tasks,
            pool,
            dialable,
            self._bandwidth,
            ledger=self._settings.ledger,
            conduct=self._settings.conduct,
            inner=self._inner,
        )

    async def _learn_bans(self, averager: Averager) -> None:
        """Newcomers are told of earlier bans by the first members that they meet."""
        while averager.guarding:
            known = [peer for peer in self.roster.others() if self.roster.endpoint(peer)]
            if known:
                await averager.guarding.court.fetch_ledger(known[:LEDGERS_READ])
                return
            await asyncio.sleep(LOOK_EVERY_S)

    def _banned(self, ban: Ban) -> None:
        log.warning("member is banned: peer=%s epoch=%d reason=%s", ban.accused.short, ban.epoch, ban.offence.sentence)
        self.on_ban(ban)
        self._show()
        if ban.accused == self._me:
            self._leave_banned(ban_sentence(ban))

    def _leave_banned(self, sentence: str) -> None:
        """Nobody will have us any more: end, and say why."""
        self._expelled = Expelled(sentence)
        self._handle.stop()

    async def _mind_refusals(self) -> None:
        """Whom most others refuse as banned has no place here, even if nobody has shown it a proof."""
        while self._settings.rules.trust and not self._expelled:
            await asyncio.sleep(REFUSALS_EVERY_S)
            if sentence := await self._transport.refused_by_most(self.roster.endpoints(), self._settings.rules.stall_timeout_s):
                self._leave_banned(sentence)

    def _observe(self, done: RoundDone) -> None:
        self.on_round(done)

    async def _say_goodbye(self) -> None:
        """Tell the others not to wait for us; whether they hear it does not matter."""
        self._report = dataclasses.replace(self._report, phase="leaving")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_WITHIN_S):
                await self._store_record(self._next_progress())

    # What the swarm hears of us

    async def _announce(self) -> None:
        """Presence: once at the start, then again before it expires."""
        while True:
            now = self._clock.now()
            address = self.address if self._settings.presence.role != "client" else ""
            bandwidth = min(self._bandwidth.meter.estimate_bytes_per_s, self._settings.presence.bandwidth_bytes_per_s)
            presence = dataclasses.replace(self._settings.presence, address=address, bandwidth_bytes_per_s=bandwidth)
            await self._store_record(seal_presence(presence, self._sealer, now))
            await asyncio.sleep(PRESENCE_EVERY_S)

    async def _publish(self) -> None:
        """Progress: at once when the epoch changed, otherwise about once a second."""
        while True:
            self._news.clear()
            await self._store_record(self._next_progress())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROGRESS_EVERY_S * self._crowd()):
                    await self._news.wait()

    async def _store_record(self, record: SealedRecord) -> None:
        if not await self._store.put(record.key, record.subkey, record.value, record.expires_at):
            log.debug("record not stored: key=%s", record.key)

    def _next_progress(self) -> SealedRecord:
        """Our progress, sealed; of two records that expire in the same millisecond the store would keep the first."""
        progress = self._progress()
        if abs(progress.time - self._published_at) < _RECORD_GAP_S:
            progress = dataclasses.replace(progress, time=SwarmTime(self._published_at + _RECORD_GAP_S))
        self._published_at = progress.time
        return seal_progress(progress, self._sealer)

    def _progress(self) -> Progress:
        return own_progress(self._me, self._held, self._report, self._transport.traffic, self._clock.now())

    # What we hear of the swarm

    async def _follow(self) -> None:
        """Keep the roster fresh."""
        while True:
            await self.roster.follow()
            self._show()
            await asyncio.sleep(REFRESH_EVERY_S * self._crowd())

    def _crowd(self) -> float:
        return min(max(len(self.roster.progress) / CROWD, 1.0), SLOWEST_CROWD)

    async def _look(self) -> None:
        """Close the epoch as soon as the swarm has gathered its target."""
        while True:
            swarm = self._estimate()
            self._met_somebody |= bool(self.roster.others())
            if (
                self._met_somebody
                and self._held.state_hash
                and swarm.epoch == self._held.epoch
                and not swarm.behind
                and swarm.samples >= self._target_samples
            ):
                self._handle.close_epoch(self._held.epoch)
            await asyncio.sleep(LOOK_EVERY_S)

    @property
    def _target_samples(self) -> int:
        return target_at(self._settings.target_samples, self._held.epoch)

    def _estimate(self) -> SwarmProgress:
        now = self._clock.now()
        return estimate(
            self._me,
            self._progress(),
            self.roster.others(),
            now,
            self._target_samples,
            epoch_age_s=now - self._epoch_began_at,
        )

    def _show(self) -> None:
        """Give the trainer (and whoever watches) the swarm as it is now."""
        roles = {peer: presence.role for peer, presence in self.roster.presences.items()} | {self._me: self._settings.presence.role}
        members = [self._progress(), *self.roster.others().values()]
        bans = self._settings.ledger.bans
        swarm = self._estimate()
        target = target_at(self._settings.target_samples, swarm.epoch)
        self._handle.set_view(swarm_view(swarm, target, members, roles, bans, audited=self._settings.rules.audited))

    # What the trainer asks for (PeerService)

    def on_report(self, report: TrainerReport) -> None:
        """The trainer has made progress."""
        self._report = report

    def on_epoch(self, announced: EpochAnnouncement) -> None:
        """The trainer holds this state now."""
        if announced.epoch == self._held.epoch + 1:
            self.roster.note_round(self._last_group, announced.epoch, announced.state_hash, announced.accepted_samples)
        self._last_group = ()
        self._held = announced
        self._links.holding.set()
        self.roster.note_epoch(announced.epoch)
        self._report = dataclasses.replace(self._report, samples=0)
        self._epoch_began_at = self._clock.now()
        self._states.announce(announced.state_hash)
        if self._averager:
            self._averager.held_epoch(announced.epoch)
        self._news.set()
        self._show()

    def on_snapshot(self, snapshot: StateSnapshot) -> None:
        """The trainer has copied its state for others."""
        self._states.publish(snapshot)

    async def average(self, contribution: Contribution) -> RoundOutcome:
        """Close the contribution's epoch together with the others."""
        if self._averager is None:
            raise RoundError("the network is not up yet")
        if self._estimate().behind:
            return RoundOutcome(RoundStatus.BEHIND, contribution.epoch, reason="the swarm has gone on from the state this was computed on")
        if contribution.inner is not None:
            self._inner.keep(contribution.epoch, contribution.inner.end, asyncio.get_running_loop().time())
        bandwidth, memory = self._settings.bandwidth_bytes_per_s, self._settings.part_memory_bytes
        join = Join(contribution.epoch, contribution.state_hash, contribution.weight, bandwidth, part_memory_bytes=memory)
        try:
            with self._links.in_round():
                averaged = await self._averager.average_epoch(join, contribution.vector, contribution.first_sample, contribution.traced)
        except LeftOut as left_out:
            await self.roster.refresh()
            self._show()
            return RoundOutcome(RoundStatus.BEHIND, contribution.epoch, reason=str(left_out))
        for peer, reason in averaged.blamed.items():
            log.warning("member broke the protocol: peer=%s epoch=%d reason=%s", peer.short, contribution.epoch, reason)
        self._last_group = averaged.members
        status = RoundStatus.ALONE if averaged.members == (self._me,) and averaged.included_us else RoundStatus.APPLIED
        return RoundOutcome(
            status,
            contribution.epoch,
            averaged.vector_D,
            averaged.weight,
            averaged.contributors,
            included_us=averaged.included_us,
        )

    async def fetch_state(self) -> StateSnapshot:
        """The swarm's newest state by majority."""
        await self.roster.refresh()
        swarm = self._estimate()
        donors = [endpoint for peer in swarm.donors if (endpoint := self.roster.reachable(peer))]
        if not donors:
            self._show()
            raise RoundError("no member that holds the swarm's state can be reached")
        log.info("fetching the state: epoch=%d donors=%d", swarm.epoch, len(donors))
        own = self._states.newest
        async with self._links.downloading():
            try:
                return await fetch_state(self._transport, donors, swarm.state_hash, own=own, on_drop=self._drop_donor)
            except RoundError as error:
                # Records are a second old, and short epochs are over by then: take what most of these donors hold by now.
                log.info("that state is gone, asking for the newest: %s", error)
                return await fetch_state(self._transport, donors, None, own=own, on_drop=self._drop_donor)

    def _drop_donor(self, error: Exception) -> None:
        log.info("a donor was dropped: %s", error)
        if not isinstance(error, RemoteProtocolError):
            return
        if error.peer:
            self.roster.suspect(error.peer)


class _Finished(Exception):
    """The node is through: not an error, it ends the task group."""
