"""What a failure in the middle of a round costs the others: real processes on loopback, killed or stopped at random moments.

    python -m scripts.bench.faults --peers 6 --mib 32 --repetitions 100 --json

The kinds take turns:

    sender      SIGKILL of a member that reduces nothing
    reducer     SIGKILL of a member that reduces blocks and does not propose
    proposer    SIGKILL of the first in order of this round
    blackhole   SIGSTOP of any member: its connections stay open, the kernel still acknowledges, nothing answers

In each repetition all members first average undisturbed; then the victim is struck at a random moment of a round, drawn from the normal
duration. The round must end at every survivor with the same bytes, each block the exact mean of all or of all but the victim, within 1.5
times the normal time plus 1 s (a dead process, whose sockets close) or plus 4 s (a black hole). Then a spare process takes the victim's
place.

`worst_extra_s` is what the slowest survivor took beyond 1.5 times the normal time: it must not exceed 1 s and 4 s. `normal_s` is the
median of the undisturbed rounds. Members know each other beforehand; everything else is as in a run, mutual TLS and signatures included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from protocols.ids import Epoch, PeerId, RoundId
from protocols.rendezvous import rendezvous_order
from scripts.bench import data, processes
from scripts.bench.averaging_ours import BANDWIDTH_BYTES_PER_S, RUN, read_endpoint
from scripts.bench.fleet import BenchmarkError, Worker
from scripts.bench.worker import EXPECTED_FILE

KINDS = ("sender", "reducer", "proposer", "blackhole")
ALLOWED_S = {"sender": 1.0, "reducer": 1.0, "proposer": 1.0, "blackhole": 4.0}
ELEMS_PER_MIB = 2**20 // 4
BLOCK_ELEMS = 2**20
SEED = 22
SPARES = 6
FIRST_ROUNDS = 5
LEAD_S = 0.15
READY_TIMEOUT_S = 120.0
ORDER_TIMEOUT_S = 60.0
ROUND_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Repetition:
    """What one failure led to.

    Args:
        kind: one of `KINDS`.
        struck_after_s: from the start of the round.
        seconds: from the start of the round to the last survivor's result.
        equal: the survivors hold the same bytes.
        wrong_blocks: blocks that are no mean of the right members.
        failures: what survivors said that got no result of this round.
    """

    kind: str
    struck_after_s: float
    seconds: float
    equal: bool
    wrong_blocks: int
    failures: tuple[str, ...]

    def extra_s(self, normal_s: float) -> float:
        """Seconds beyond 1.5 times the normal time."""
        return self.seconds - 1.5 * normal_s

    def passed(self, normal_s: float) -> bool:
        """Whether this is what is promised."""
        in_time = self.extra_s(normal_s) <= ALLOWED_S[self.kind]
        return in_time and self.equal and not self.wrong_blocks and not self.failures


@dataclass(slots=True)
class Process:
    """One member process.

    Args:
        rank: numbers the processes.
        worker: its pipes.
        log: what it says.
        peer: who it is; known once it is ready.
    """

    rank: int
    worker: Worker
    log: Path
    peer: PeerId | None = None
    log_read_bytes: int = 0

    def new_log(self) -> str:
        """What it has logged since the last call."""
        with self.log.open("rb") as file:
            file.seek(self.log_read_bytes)
            text = file.read()
        self.log_read_bytes += len(text)
        return text.decode(errors="replace")


class Arena:
    """The slots, the processes that fill them, and spares."""

    def __init__(self, peers: int, elems: int, directory: Path) -> None:
        self._elems = elems
        self._directory = directory
        self._weights = data.sample_weights(peers)
        self._members = directory / "members"
        self._members.mkdir()
        data.write_expected(self._members / EXPECTED_FILE, SEED, elems, self._weights)
        self._started: list[Process] = []
        self._spares: list[Process] = []
        self._epoch = 0
        self.slots: list[Process] = []

    def fill(self) -> None:
        """Put a spare into each empty slot, starting a new batch of spares if there are none, and let everybody meet.

        Raises:
            BenchmarkError: a process does not come up.
        """
        peers = len(self._weights)
        if len(self._spares) < peers - len(self.slots):
            self._start(peers - len(self.slots) + SPARES)
        while len(self.slots) < peers:
            self.slots.append(self._spares.pop(0))
        self._meet()

    def _start(self, count: int) -> None:
        """Several at a time, while nothing is measured: importing torch keeps the processors busy."""
        batch = [self._start_one(len(self._started) + number) for number in range(count)]
        for process in batch:
            self._started.append(process)
        for process in batch:
            process.worker.expect("ready", READY_TIMEOUT_S)
            process.peer = read_endpoint(self._members / f"peer-{process.rank}.json").peer
        self._spares += batch

    def _start_one(self, rank: int) -> Process:
        log = self._directory / f"{rank}.log"
        process = Process(rank, Worker("scripts.bench.faults_member", rank, log, []), log)
        process.worker.send(
            "open",
            rank=rank,
            peers=len(self._weights),
            elems=self._elems,
            seed=SEED,
            codec="fp32",
            weights=list(self._weights),
            directory=str(self._members),
            timeout_s=ROUND_TIMEOUT_S,
            bootstrap={},
            address="127.0.0.1",
            link_bytes_per_s=None,
            block_elems=BLOCK_ELEMS,
        )
        return process

    def _meet(self) -> None:
        ranks = [process.rank for process in self.slots]
        for slot, process in enumerate(self.slots):
            # The last slot only sends; whoever fills it is the sender that is killed.
            bandwidth = 0 if slot == len(self.slots) - 1 else BANDWIDTH_BYTES_PER_S
            process.worker.send("meet", slot=slot, epoch=self._epoch, bandwidth=bandwidth, processes=ranks)
        for process in self.slots:
            process.worker.expect("met", ORDER_TIMEOUT_S)

    def undisturbed(self) -> float:
        """One round of all; returns its seconds.

        Raises:
            BenchmarkError: it did not work.
        """
        start_at_s = self._begin()
        answers = [process.worker.expect("averaged", ROUND_TIMEOUT_S + 10) for process in self.slots]
        self._epoch += 1
        if any(answer["failure"] for answer in answers) or len({answer["digest"] for answer in answers}) != 1:
            raise BenchmarkError(f"A round in which nobody was struck went wrong: {answers}\n{self.logs()}")
        return float(max(answer["finished_at_s"] for answer in answers) - start_at_s)

    def strike(self, kind: str, normal_s: float, chance: random.Random) -> Repetition:
        """One round in which one member fails; its slot is empty afterwards."""
        slot = self._victim(kind, chance)
        victim = self.slots[slot]
        struck_after_s = chance.uniform(0, normal_s)
        start_at_s = self._begin()
        time.sleep(max(0.0, start_at_s + struck_after_s - time.monotonic()))
        os.kill(victim.worker.session, signal.SIGSTOP if kind == "blackhole" else signal.SIGKILL)
        survivors = [process for process in self.slots if process is not victim]
        answers = [process.worker.expect("averaged", 3 * ROUND_TIMEOUT_S) for process in survivors]
        os.kill(victim.worker.session, signal.SIGKILL)
        failures = [f"member {process.rank}: {a['failure']}" for process, a in zip(survivors, answers, strict=True) if a["failure"]]
        wrong = 0
        if not failures:
            survivors[0].worker.send("check", epoch=self._epoch, without=slot)
            wrong = int(survivors[0].worker.expect("checked", ORDER_TIMEOUT_S)["wrong_blocks"])
        self._epoch += 1
        seconds = max(answer["finished_at_s"] for answer in answers) - start_at_s
        equal = len({answer["digest"] for answer in answers}) == 1
        self.slots[slot] = self._replacement()
        return Repetition(kind, struck_after_s, seconds, equal, wrong, tuple(failures))

    def _replacement(self) -> Process:
        if not self._spares:
            self._start(SPARES)
        return self._spares.pop(0)

    def _begin(self) -> float:
        for process in self.slots:
            process.worker.send("load", epoch=self._epoch)
        for process in self.slots:
            process.worker.expect("loaded", ORDER_TIMEOUT_S)
            process.new_log()
        start_at_s = time.monotonic() + LEAD_S
        for process in self.slots:
            process.worker.send("average", epoch=self._epoch, start_at_s=start_at_s)
        return start_at_s

    def _victim(self, kind: str, chance: random.Random) -> int:
        last = len(self.slots) - 1
        reducers = {process.peer: slot for slot, process in enumerate(self.slots[:last]) if process.peer}
        first = rendezvous_order(RoundId(RUN, Epoch(self._epoch)), reducers)[0]
        match kind:
            case "sender":
                return last
            case "proposer":
                return reducers[first]
            case "reducer":
                return chance.choice([slot for peer, slot in reducers.items() if peer != first])
            case _:
                return chance.randrange(len(self.slots))

    def logs(self) -> str:
        """What everybody who is still there has logged since the last round began."""
        return "\n".join(f"--- member {process.rank}\n{process.new_log()}" for process in self.slots)

    def close(self) -> None:
        """End every process, by process id."""
        sessions = {process.worker.session for process in self._started}
        for pid in processes.members(sessions):
            os.kill(pid, signal.SIGKILL)
        processes.end(sessions, grace_s=CLOSE_TIMEOUT_S)
        for process in self._started:
            process.worker.hang_up()
            process.worker.reap()


def measure(options: argparse.Namespace, directory: Path, console: Console) -> tuple[list[Repetition], list[float]]:
    """All repetitions; returns them and the seconds of every undisturbed round.

    Raises:
        BenchmarkError: a process failed that was not struck.
    """
    chance = random.Random(options.seed)
    arena = Arena(options.peers, options.mib * ELEMS_PER_MIB, directory)
    repetitions: list[Repetition] = []
    try:
        console.print(f"starting {options.peers} members and spares")
        arena.fill()
        arena.undisturbed()  # connections are made here
        normal = [arena.undisturbed() for _ in range(FIRST_ROUNDS)]
        for number in range(options.repetitions):
            kind = options.kinds[number % len(options.kinds)]
            normal_s = statistics.median(normal)
            repetition = arena.strike(kind, normal_s, chance)
            repetitions.append(repetition)
            extra_s = repetition.extra_s(normal_s)
            verdict = "ok" if repetition.passed(normal_s) else "FAILED"
            text = f"struck at {repetition.struck_after_s:.2f} s, done in {repetition.seconds:.2f} s, extra {extra_s:+.2f} s"
            console.print(f"{number + 1}/{options.repetitions} {kind:>9} {text}, normal {normal_s:.2f} s: {verdict}")
            if verdict != "ok" or options.verbose:
                console.print(repr(repetition), markup=False)
                console.print(arena.logs(), markup=False)
            arena.fill()
            arena.undisturbed()
            normal.append(arena.undisturbed())
    finally:
        for caught in (signal.SIGINT, signal.SIGTERM):
            signal.signal(caught, signal.SIG_IGN)
        arena.close()
    return repetitions, normal


def report(repetitions: Sequence[Repetition], normal: Sequence[float]) -> dict[str, Any]:
    """The promised keys; a kind without a repetition has no figure."""
    normal_s = statistics.median(normal)
    by_kind = {kind: [each for each in repetitions if each.kind == kind] for kind in KINDS}
    return {
        "repetitions": len(repetitions),
        "failed": sum(not each.passed(normal_s) for each in repetitions),
        "normal_s": round(normal_s, 4),
        "worst_extra_s": {kind: round(max(each.extra_s(normal_s) for each in found), 3) for kind, found in by_kind.items() if found},
        "median_s": {kind: round(statistics.median(each.seconds for each in found), 3) for kind, found in by_kind.items() if found},
        "worst_s": {kind: round(max(each.seconds for each in found), 3) for kind, found in by_kind.items() if found},
        "equal_bytes": all(each.equal for each in repetitions),
        "wrong_blocks": sum(each.wrong_blocks for each in repetitions),
        "failures": [failure for each in repetitions for failure in each.failures],
    }


def table(repetitions: Sequence[Repetition], summary: dict[str, Any]) -> Table:
    """For people."""
    shown = Table(title=f"Failures in the middle of a round; undisturbed it takes {summary['normal_s']:.2f} s")
    for heading in ("kind", "times", "median s", "worst s", "worst extra s", "allowed", "failed"):
        shown.add_column(heading, justify="left" if heading == "kind" else "right")
    for kind in summary["median_s"]:
        found = [each for each in repetitions if each.kind == kind]
        failed = sum(not each.passed(summary["normal_s"]) for each in found)
        figures = [f"{summary[name][kind]:.2f}" for name in ("median_s", "worst_s", "worst_extra_s")]
        shown.add_row(kind, str(len(found)), *figures, f"{ALLOWED_S[kind]:.1f}", str(failed))
    return shown


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line of the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=int, default=6, help="members of the group")
    parser.add_argument("--mib", type=int, default=32, help="size of every member's fp32 vector, MiB")
    parser.add_argument("--repetitions", type=int, default=100, help="failures, the kinds taking turns")
    parser.add_argument("--kinds", default=",".join(KINDS), help="comma-separated, out of: " + ", ".join(KINDS))
    parser.add_argument("--seed", type=int, default=SEED, help="of the moments and the victims")
    parser.add_argument("--verbose", action="store_true", help="show what members logged in every repetition, not only in failed ones")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    options.kinds = [kind for kind in options.kinds.split(",") if kind]
    if unknown := [kind for kind in options.kinds if kind not in KINDS]:
        parser.error(f"--kinds {','.join(unknown)} is unknown; choose from {', '.join(KINDS)}.")
    if options.peers < 4 or options.mib < 1 or options.repetitions < 1 or not options.kinds:
        parser.error("--peers needs at least 4, --mib and --repetitions at least 1, --kinds one kind.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        Process exit code: 0 measured, 1 a worker failed, 2 wrong arguments, 130 interrupted.
    """
    options = parse_arguments(arguments)
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        with tempfile.TemporaryDirectory(prefix="faults-benchmark-") as name:
            repetitions, normal = measure(options, Path(name), console)
    except BenchmarkError as error:
        console.print(f"fault benchmark: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("fault benchmark: interrupted; every process it had started has ended.")
        return 130
    summary = report(repetitions, normal)
    console.print(table(repetitions, summary))
    if options.json:
        settings = {"peers": options.peers, "mib": options.mib, "seed": options.seed}
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        sys.stdout.write(json.dumps({**summary, **settings, "machine": machine}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
