"""The worker processes of one system, as the orchestrator of the averaging benchmark sees them."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.bench import processes
from scripts.bench.netns import Host

REPOSITORY = Path(__file__).resolve().parents[2]
OPEN_TIMEOUT_S = 90.0
CHECK_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 8.0
_LAST_LINES_S = 1.0
LEAD_S = 0.1
"""How far ahead the common start of a round is set: enough for the order to reach every worker."""


class BenchmarkError(Exception):
    """The benchmark cannot go on. The message says which worker failed, at what, and its last words."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What all systems are given alike.

    Args:
        peers: how many average together.
        elems: D, length of the vectors.
        seed: determines the vectors.
        codec: how vectors travel, a name of `protocols.codecs`.
        weights: one a peer.
        directory: scratch directory of the whole benchmark.
        timeout_s: deadline of a round, seconds.
        hosts: where each peer runs; empty for all on loopback.
        block_elems: elements of a block, for systems that have blocks.
    """

    peers: int
    elems: int
    seed: int
    codec: str
    weights: Sequence[float]
    directory: Path
    timeout_s: float
    hosts: tuple[Host, ...] = ()
    block_elems: int = 2**20

    def host(self, rank: int) -> Host:
        """Where one peer runs."""
        return self.hosts[rank] if self.hosts else Host("127.0.0.1")


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """One round of one system.

    Args:
        seconds: from the common start to the last peer that has the result.
        cpu_s: CPU seconds of all its processes, children included.
        max_abs_error: worst over the peers, against the exact fp64 weighted mean.
        equal: whether all peers hold the same bytes.
        notes: what each peer says about the round besides.
    """

    seconds: float
    cpu_s: float
    max_abs_error: float
    equal: bool
    notes: tuple[dict[str, Any], ...] = ()


class Worker:
    """One worker process and the two pipes to it. Its session holds everything it starts."""

    def __init__(self, module: str, rank: int, log: Path, prefix: Sequence[str]) -> None:
        self.name = f"{module.rpartition('.')[2]}[{rank}]"
        self._log = log
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                cwd=REPOSITORY,
                # Ctrl-C in the terminal reaches the orchestrator only; it then ends the workers in order.
                start_new_session=True,
            )
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def session(self) -> int:
        """Session id, which is the worker's process id."""
        return self._process.pid

    def send(self, op: str, **fields: object) -> None:
        """Give an order. One that can no longer be delivered shows at the next `expect`."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps({"op": op, **fields}) + "\n")
                self._process.stdin.flush()

    def expect(self, event: str, timeout_s: float) -> dict[str, Any]:
        """Wait for the next event, which must be the named one.

        Raises:
            BenchmarkError: it was another one, or none came in time, or the worker has ended.
        """
        try:
            got = self._events.get(timeout=timeout_s)
        except queue.Empty as error:
            raise BenchmarkError(f"{self.name} did not say '{event}' within {timeout_s:.0f} s.{self._last_words()}") from error
        if got is None or got["event"] != event:
            said = "ended" if got is None else f"said '{got['event']}'"
            raise BenchmarkError(f"{self.name} {said} instead of saying '{event}'.{self._last_words()}")
        return got

    def has_news(self) -> bool:
        """Whether the next `expect` returns, or fails, at once."""
        return not self._events.empty()

    def hang_up(self) -> None:
        """Close the pipe to the worker, which it takes as the order to close."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def reap(self) -> None:
        """Collect the ended process and close the pipe from it, unless something that it left behind still writes there."""
        self._process.wait()
        self._reader.join(_LAST_LINES_S)
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()

    def _read(self) -> None:
        if self._process.stdout is not None:
            for line in self._process.stdout:
                self._events.put(json.loads(line))
        self._events.put(None)

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n" + "\n".join(lines[-15:]) if lines else ""


@dataclass(slots=True)
class Fleet:
    """All workers of one system; idle between its rounds.

    Args:
        system: name of the system; its worker is `scripts.bench.averaging_<system>`.
        setup: what it is given.
        about: what its rank 0 reports of versions and settings, filled by `open`.
    """

    system: str
    setup: Setup
    about: dict[str, Any] = field(default_factory=dict)
    _workers: list[Worker] = field(default_factory=list)

    def open(self) -> None:
        """Start the workers: rank 0 first, the others with what it publishes.

        Raises:
            BenchmarkError: a worker did not get ready.
        """
        directory = self.setup.directory / self.system
        directory.mkdir()
        bootstrap: dict[str, Any] | None = None
        for rank in range(self.setup.peers):
            setup, host = self.setup, self.setup.host(rank)
            # gloo picks an interface by the host's name otherwise, which need not resolve.
            prefix = [*host.prefix, "env", "GLOO_SOCKET_IFNAME=lo"]
            worker = Worker(f"scripts.bench.averaging_{self.system}", rank, directory / f"{rank}.log", prefix)
            self._workers.append(worker)
            worker.send(
                "open",
                rank=rank,
                peers=setup.peers,
                elems=setup.elems,
                seed=setup.seed,
                codec=setup.codec,
                weights=list(setup.weights),
                directory=str(directory),
                timeout_s=setup.timeout_s,
                bootstrap=bootstrap,
                address=host.address,
                link_bytes_per_s=host.link_bytes_per_s,
                block_elems=setup.block_elems,
            )
            if rank == 0:
                bootstrap = worker.expect("bootstrap", OPEN_TIMEOUT_S)["value"]
        abouts = [worker.expect("ready", OPEN_TIMEOUT_S)["about"] for worker in self._workers]
        self.about = next(iter(abouts))

    def run_round(self, number: int) -> RoundFigures:
        """One round: load, a common start, wait for everybody, check.

        Raises:
            BenchmarkError: a worker failed, or somebody's vector is missing from a result.
        """
        self._ask("load", "loaded", CHECK_TIMEOUT_S, round=number)
        cpu_before_s = processes.cpu_s(self.sessions)
        start_at_s = time.monotonic() + LEAD_S
        done = self._ask("average", "averaged", self.setup.timeout_s + LEAD_S, round=number, start_at_s=start_at_s)
        cpu_s = processes.cpu_s(self.sessions) - cpu_before_s
        if any(reply["contributors"] != self.setup.peers for reply in done):
            found = [reply["contributors"] for reply in done]
            raise BenchmarkError(f"Round {number} of {self.system} averaged {found} vectors instead of {self.setup.peers} on every peer.")
        checked = self._ask("check", "checked", CHECK_TIMEOUT_S, round=number)
        return RoundFigures(
            seconds=max(reply["finished_at_s"] for reply in done) - start_at_s,
            cpu_s=cpu_s,
            max_abs_error=max(reply["max_abs_error"] for reply in checked),
            equal=len({reply["digest"] for reply in checked}) == 1,
            notes=tuple(reply["notes"] for reply in checked),
        )

    def close(self) -> None:
        """End every process of this system, by process id, whatever state it is in, and remove the socket files they leave."""
        # hivemind's client sockets outlive even an orderly shutdown of its averager.
        sockets = processes.socket_files(self.sessions)
        for worker in self._workers:
            worker.hang_up()
        processes.end(self.sessions, grace_s=CLOSE_TIMEOUT_S)
        for worker in self._workers:
            worker.reap()
        for file in sockets:
            file.unlink(missing_ok=True)

    @property
    def sessions(self) -> set[int]:
        """Session ids of the workers."""
        return {worker.session for worker in self._workers}

    def _ask(self, op: str, event: str, timeout_s: float, **fields: object) -> list[dict[str, Any]]:
        for worker in self._workers:
            worker.send(op, **fields)
        return [worker.expect(event, timeout_s) for worker in self._workers]
