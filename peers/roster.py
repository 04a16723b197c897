"""Who is in the swarm, as far as we know: records from the store, and what we saw ourselves."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Iterable

from peers.interfaces import Clock, Endpoint, RecordStore
from protocols.errors import RemoteProtocolError
from protocols.ids import Epoch, PeerId, RunId, SwarmTime
from protocols.progress import STALE_AFTER_S
from protocols.record_keeping import PRESENCE_TTL_S, RecordReader, record_key
from protocols.records import Phase, Presence, Progress
from protocols.trust.ledger import Ledger

log = logging.getLogger(__name__)

OVERDUE_S = 2 * STALE_AFTER_S
"""How long a member that averaged with us is waited for without a word from it."""

PRESENCES_EVERY_S = 5.0
"""Presences hardly ever change; one is looked for at once when a member without one speaks."""

_REMEMBERED_EPOCHS = 64


class Roster:
    """The `Directory` of `peers.averaging.context`, fed by the record store.

    Args:
        me: ourselves; our own records are passed over.
        run: the run.
        store: where members announce themselves.
        reader: checks and reads records.
        clock: ours.
        ledger: who is banned, now and later: their records are passed over.
    """

    def __init__(
        self, me: PeerId, run: RunId, store: RecordStore, reader: RecordReader, clock: Clock, ledger: Ledger | None = None
    ) -> None:
        self._ledger = Ledger() if ledger is None else ledger
        self._me = me
        self._run = run
        self._store = store
        self._reader = reader
        self._clock = clock
        self.presences: dict[PeerId, Presence] = {}
        self.progress: dict[PeerId, Progress] = {}
        self._suspected_at: dict[PeerId, SwarmTime] = {}
        self._fellows: dict[PeerId, Epoch] = {}
        self._read: dict[tuple[str, str], bytes] = {}
        self._refreshing = asyncio.Lock()
        self._presences_read_at = SwarmTime(0.0)
        self._held_since: deque[tuple[SwarmTime, Epoch]] = deque(maxlen=_REMEMBERED_EPOCHS)

    async def refresh(self) -> None:
        """Read all presences and all progress again; calls at the same time share one reading."""
        self._presences_read_at = SwarmTime(0.0)
        await self.follow()
        if not self._presences_read_at:  # a reading under way had passed them by
            await self.follow()

    async def follow(self) -> None:
        """Read all progress again, and presences if that is due: what a member does all the time."""
        if self._refreshing.locked():
            async with self._refreshing:
                return
        async with self._refreshing:
            await self._read_progress()
            overdue = self._clock.now() - self._presences_read_at >= PRESENCES_EVERY_S
            if overdue or not self.progress.keys() <= self.presences.keys():
                self._presences_read_at = self._clock.now()
                await self._read_presences()
        self._forget_the_departed(self._clock.now())

    async def _read_presences(self) -> None:
        presences = await self._store.get(record_key(self._run, "presence"))
        now = self._clock.now()
        for subkey, value in presences.items():
            if self._read.get(("presence", subkey)) == value:
                continue  # a signature takes longer to verify than a record to compare
            try:
                presence = self._reader.presence(value, now)
            except RemoteProtocolError as error:
                log.debug("presence dropped: %s", error)
                continue
            self.presences[presence.peer] = presence
            self._read["presence", subkey] = value

    async def _read_progress(self) -> None:
        progress = await self._store.get(record_key(self._run, "progress"))
        now = self._clock.now()
        for subkey, value in progress.items():
            if self._read.get(("progress", subkey)) == value:
                continue
            try:
                self._note_progress(self._reader.progress(value, now))
            except RemoteProtocolError as error:
                log.debug("progress dropped: %s", error)
                continue
            self._read["progress", subkey] = value

    def _forget_the_departed(self, now: SwarmTime) -> None:
        """A long run sees many members; whoever has been silent for longer than its records live is met again as a newcomer."""
        for peer in [peer for peer, progress in self.progress.items() if now - progress.time > PRESENCE_TTL_S]:
            del self.progress[peer]
            self.presences.pop(peer, None)
            self._suspected_at.pop(peer, None)
            self._fellows.pop(peer, None)
            for kind in ("presence", "progress"):
                self._read.pop((kind, str(peer)), None)

    def _note_progress(self, progress: Progress) -> None:
        """Keep it unless we know a newer one; a member that speaks again is suspected no longer."""
        known = self.progress.get(progress.peer)
        if progress.peer == self._me or progress.peer in self._ledger or (known and known.time > progress.time):
            return
        self.progress[progress.peer] = progress
        if progress.time > self._suspected_at.get(progress.peer, progress.time):
            del self._suspected_at[progress.peer]

    def note_epoch(self, epoch: Epoch) -> None:
        """We hold this state from now on."""
        self._held_since.append((self._clock.now(), epoch))

    def _held_at(self, time: SwarmTime, epoch: Epoch) -> Epoch:
        """Which state we held then, if `epoch` is the one that we hold now."""
        if not self._held_since or self._held_since[-1][1] != epoch:
            return epoch
        return next((held for since, held in reversed(self._held_since) if since <= time), self._held_since[0][1])

    def note_round(self, members: Iterable[PeerId], epoch: Epoch, state_hash: bytes, accepted_samples: int) -> None:
        """We closed an epoch together with these members: they are alive and hold what we hold, whenever their records say so.

        Without this an epoch could not be shorter than the time that records take to spread, and a member whose records are late would
        not be waited for although it has just averaged with us.
        """
        now = self._clock.now()
        self._fellows = {peer: epoch for peer in members if peer != self._me}
        for peer in self._fellows:
            known = self.progress.get(peer)
            if known and known.epoch < epoch:
                phase: Phase = "training" if known.phase == "averaging" else known.phase
                self.progress[peer] = dataclasses.replace(
                    known, epoch=epoch, samples=0, accepted_samples=accepted_samples, state_hash=state_hash, phase=phase, time=now
                )

    def others(self) -> dict[PeerId, Progress]:
        """Newest progress of everybody else who spoke lately and is not suspected to be gone."""
        now = self._clock.now()
        return {
            peer: progress
            for peer, progress in self.progress.items()
            if now - progress.time <= STALE_AFTER_S and peer not in self._suspected_at and peer not in self._ledger
        }

    def placed(self, epoch: Epoch) -> tuple[frozenset[PeerId], frozenset[PeerId]]:
        """Members with a place in this epoch's grid, as (dialable, undialable): they hold a state, and when they said which, it was at most
        one epoch from ours of that moment. Records lag behind, by many epochs where these are short, so today's epoch would be no measure.

        From announcements alone, whomever we suspect. Whoever closed the epoch before with us counts for a while even if its records
        are overdue.
        """
        now = self._clock.now()
        fellows = {peer for peer, since in self._fellows.items() if since == epoch and self._heard_lately(peer, now)}
        holders = {
            peer
            for peer, progress in self.progress.items()
            if now - progress.time <= STALE_AFTER_S
            and progress.state_hash
            and progress.phase != "leaving"
            and abs(progress.epoch - self._held_at(progress.time, epoch)) <= 1
            and peer in self.presences
        }
        everybody = frozenset(fellows | holders)
        dialable = frozenset(peer for peer in everybody if self.endpoint(peer) is not None)
        return dialable, everybody - dialable

    def live(self, epoch: Epoch) -> frozenset[PeerId]:
        """Those with a place in this epoch's grid whom we do not suspect to be gone."""
        dialable, undialable = self.placed(epoch)
        return (dialable | undialable) - self._suspected_at.keys()

    def _heard_lately(self, peer: PeerId, now: SwarmTime) -> bool:
        known = self.progress.get(peer)
        return known is not None and known.phase != "leaving" and now - known.time <= OVERDUE_S

    def endpoint(self, peer: PeerId) -> Endpoint | None:
        """Where to dial a member; None while it has announced nothing or cannot be dialled."""
        presence = self.presences.get(peer)
        if presence is None or not presence.address:
            return None
        return self._endpoint_of(presence)

    def endpoints(self) -> list[Endpoint]:
        """Where to dial all others that can be dialled."""
        return [endpoint for peer in self.others() if (endpoint := self.endpoint(peer))]

    def reachable(self, peer: PeerId) -> Endpoint | None:
        """As `endpoint`, and for a member that nobody can dial directly: over libp2p, by what it announces or a connection it made to us.

        Good enough for its state. None while it has announced nothing.
        """
        presence = self.presences.get(peer)
        return self._endpoint_of(presence) if presence else None

    def age_s(self, peer: PeerId) -> float | None:
        """Seconds since a member's process began, as it says; None while it has announced nothing."""
        presence = self.presences.get(peer)
        return self._clock.now() - presence.started_at if presence else None

    @staticmethod
    def _endpoint_of(presence: Presence) -> Endpoint:
        return Endpoint(presence.peer, presence.address, presence.certificate_pem, presence.libp2p_addresses)

    def suspect(self, peer: PeerId) -> None:
        """Do not count on a member until it announces progress again."""
        self._suspected_at[peer] = self._clock.now()
