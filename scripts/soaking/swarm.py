"""The members of a soak and what befalls them: killed, added, cut off for some seconds; and what each of them holds, every few seconds."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from scripts.bench import processes
from scripts.bench.crew import CLOSE_TIMEOUT_S, READY_TIMEOUT_S, Crew, CrewMember, made_up_run
from scripts.bench.fleet import BenchmarkError
from scripts.soaking.verdict import Happening, Record, Sample

SEED = 23
ELEMS = 2**18
BLOCK_ELEMS = 2**15
WEIGHT = 16.0
SAMPLES_PER_S = 100.0
EPOCH_S = 2.0
"""About how long an epoch takes with all members."""

GAUGE_TIMEOUT_S = 10.0
SETTLED_S = 30.0
"""A member that has been up, and not been cut off, for this long takes part in rounds."""

CLIENT_EVERY = 4
"""Every fourth newcomer cannot be dialled."""


class Phase(Enum):
    """What a member is doing, as far as we know."""

    STARTING = "starting"
    RUNNING = "running"
    CUT = "cut"


@dataclass(slots=True)
class Subject:
    """One member under test.

    Args:
        member: its process.
        phase: see there.
        since_s: since when it has been undisturbed, monotonic.
        resume_at_s: when its link comes back, if it is cut.
        pids: it and its libp2p daemon.
        rounds: how its rounds ended, as it last said.
    """

    member: CrewMember
    phase: Phase
    since_s: float
    resume_at_s: float = 0.0
    pids: tuple[int, ...] = ()
    rounds: dict[str, int] | None = None


class SoakSwarm:
    """Members, and a record of what happens to them. Call `tick` often.

    Args:
        directory: scratch.
        elders: how many members live through it all; rank 0 founds the run.
        mortals: how many others there are at any time.
        seed: of what befalls whom.
    """

    def __init__(self, directory: Path, elders: int, mortals: int, seed: int) -> None:
        target = int((elders + mortals) * SAMPLES_PER_S * EPOCH_S)
        self._crew = Crew(directory, made_up_run("soak", {"block_elems": BLOCK_ELEMS}, target), ELEMS, SEED)
        self._elders = elders
        self._mortals = mortals
        self._chance = random.Random(seed)
        self._subjects: dict[int, Subject] = {}
        self._seen: dict[int, int] = {}
        self._next_rank = 0
        self._began_s = time.monotonic()
        self.record = Record(frozenset(range(elders)))

    # The beginning and the end

    def open(self) -> None:
        """Found the run, let everybody join, and begin.

        Raises:
            BenchmarkError: a member does not come up.
        """
        for rank in range(self._elders + self._mortals):
            self._start()
            if rank == 0:
                self._subjects[0].member.await_ready()
        for rank, subject in self._subjects.items():
            if rank:
                subject.member.await_ready()
        for subject in self._subjects.values():
            self._begin(subject)
        self._began_s = time.monotonic()

    def close(self) -> None:
        """End everybody and note who is still there then."""
        for subject in self._subjects.values():
            if subject.phase is Phase.CUT:
                self._signal(subject, signal.SIGCONT)
        self._note_pids()
        self._crew.close()
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        while (left := self._still_there()) and time.monotonic() < deadline_s:
            time.sleep(processes.POLL_S)
        self.record.left = left

    def _still_there(self) -> list[int]:
        alive = processes.born(set(self._seen))
        return sorted(pid for pid, started in alive.items() if self._seen[pid] == started)

    # What befalls members

    def kill_one(self) -> None:
        """SIGKILL a member that is not an elder, and start another in its place."""
        mortal = [rank for rank, subject in self._subjects.items() if rank >= self._elders and subject.phase is not Phase.CUT]
        if not mortal:
            return
        rank = self._chance.choice(mortal)
        subject = self._subjects.pop(rank)
        self._note_pids()
        self._happened("kill", rank)
        with suppress(ProcessLookupError):
            os.kill(subject.member.worker.session, signal.SIGKILL)
        self._retire(subject)
        self._start()

    def cut_one(self, duration_s: float) -> None:
        """Stop a member and its daemon for a while: its connections stay open and nothing answers, as on a link that swallows all."""
        if any(subject.phase is Phase.CUT for subject in self._subjects.values()):
            return  # more than one of a few at a time, and the others may rightly think that they are the minority
        running = [subject for subject in self._subjects.values() if subject.phase is Phase.RUNNING]
        if not running:
            return
        subject = self._chance.choice(running)
        self._happened("cut", subject.member.rank)
        self._signal(subject, signal.SIGSTOP)
        subject.phase, subject.resume_at_s = Phase.CUT, time.monotonic() + duration_s

    def tick(self) -> None:
        """Resume whoever was cut off for long enough, and let newcomers begin that have come up."""
        now_s = time.monotonic()
        for subject in list(self._subjects.values()):
            if subject.phase is Phase.CUT and now_s >= subject.resume_at_s:
                self._signal(subject, signal.SIGCONT)
                subject.phase, subject.since_s = Phase.RUNNING, now_s
                self._happened("resume", subject.member.rank)
            elif subject.phase is Phase.STARTING and subject.member.worker.has_news():
                self._try(subject, partial(self._come_up, subject))
            elif subject.phase is Phase.STARTING and now_s - subject.since_s > READY_TIMEOUT_S:
                self._lost(subject, BenchmarkError(f"member {subject.member.rank} does not come up"))

    def _come_up(self, subject: Subject) -> None:
        subject.member.await_ready()
        self._begin(subject)

    def _begin(self, subject: Subject) -> None:
        worker = subject.member.worker
        worker.send("train", samples_per_s=SAMPLES_PER_S)
        worker.expect("training", GAUGE_TIMEOUT_S)
        subject.pids = tuple(sorted(processes.descendants({worker.session})))
        subject.phase, subject.since_s = Phase.RUNNING, time.monotonic()

    def _start(self) -> None:
        rank, self._next_rank = self._next_rank, self._next_rank + 1
        hosts = [self._subjects[elder].member for elder in range(self._elders) if elder in self._subjects]
        up = [member for member in hosts if member.addresses]
        invite = self._crew.invite(up) if up else None
        role = "client" if rank >= self._elders and rank % CLIENT_EVERY == 0 else "trainer"
        self._subjects[rank] = Subject(self._crew.start(rank, WEIGHT, invite, role=role), Phase.STARTING, time.monotonic())
        self._happened("start", rank)

    def _retire(self, subject: Subject) -> None:
        """Its process has ended: collect it."""
        self._crew.members.pop(subject.member.rank, None)
        subject.member.worker.hang_up()
        subject.member.worker.reap()
        for name, count in (subject.rounds or {}).items():
            self.record.rounds[name] = self.record.rounds.get(name, 0) + count

    def _lost(self, subject: Subject, error: BenchmarkError) -> None:
        """It ended by itself, or does not answer any more: that is a fault, and another takes its place."""
        self.record.crashes.append(str(error))
        self._subjects.pop(subject.member.rank, None)
        processes.end({subject.member.worker.session}, grace_s=0.5)
        self._retire(subject)
        self._start()

    def _try(self, subject: Subject, work: Callable[[], None]) -> None:
        try:
            work()
        except BenchmarkError as error:
            self._lost(subject, error)

    def _signal(self, subject: Subject, number: signal.Signals) -> None:
        for pid in subject.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _happened(self, what: str, rank: int) -> None:
        self.record.happenings.append(Happening(time.monotonic() - self._began_s, what, rank))

    def _note_pids(self) -> None:
        """Remember every process that there ever was."""
        self._seen |= processes.born(processes.descendants({subject.member.worker.session for subject in self._subjects.values()}))

    # What they hold

    def sample(self) -> None:
        """Ask everybody who runs, and look at its processes."""
        self._note_pids()
        running = [subject for subject in self._subjects.values() if subject.phase is Phase.RUNNING]
        for subject in running:
            subject.member.worker.send("gauge")
        for subject in running:
            self._try(subject, partial(self._take, subject))

    def _take(self, subject: Subject) -> None:
        gauge = subject.member.worker.expect("gauge", GAUGE_TIMEOUT_S)
        now_s, rank = time.monotonic(), subject.member.rank
        at_s = now_s - self._began_s
        subject.rounds = {name: gauge[name] for name in ("applied", "alone", "aborted", "behind", "fetched", "not_fetched")}
        for epoch, digest in gauge["closed"].items():
            self.record.digests[int(epoch)][digest].add(rank)
            self.record.epoch_at_s.setdefault(int(epoch), at_s)
        settled_s = now_s - subject.since_s
        if settled_s > SETTLED_S:
            self.record.alone_s[rank] = max(self.record.alone_s.get(rank, 0.0), gauge["since_round_s"])
        values = {"tasks": float(gauge["tasks"]), "threads": float(gauge["threads"]), **self._resources(subject)}
        self.record.samples.append(Sample(at_s, rank, int(gauge["epoch"]), values))

    def _resources(self, subject: Subject) -> dict[str, float]:
        values: dict[str, float] = {}
        for pid in subject.pids:
            prefix = "" if pid == subject.member.worker.session else "daemon_"
            with suppress(OSError):
                values[f"{prefix}rss_mib"] = processes.rss_mib(pid)
                values[f"{prefix}fds"] = float(processes.descriptors(pid))
        return values

    def finish(self) -> None:
        """Count the rounds of those that are still there."""
        totals = Counter(self.record.rounds)
        for subject in self._subjects.values():
            totals.update(subject.rounds or {})
        self.record.rounds = dict(totals)

    @property
    def at_s(self) -> float:
        """Seconds since everybody was up."""
        return time.monotonic() - self._began_s

    def chance(self) -> random.Random:
        """What befalls whom, and when, is drawn from this."""
        return self._chance

    def line(self) -> str:
        """How things are, in one line."""
        phases = Counter(subject.phase.value for subject in self._subjects.values())
        epochs = len(self.record.epoch_at_s)
        state = ", ".join(f"{count} {phase}" for phase, count in sorted(phases.items()))
        return (
            f"{self.at_s / 60:5.1f} min, {epochs} epochs, {state}, {self.record.count('kill')} killed, {self.record.count('cut')} cut off"
        )
