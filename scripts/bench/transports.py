"""Throughput, CPU time and round trips of the transports between two members on loopback.

    python -m scripts.bench.transports --mib 256 --json

Every end of every transport is a process of its own, idle while it is another transport's turn. `direct` is what members use that can dial
each other (streams over links, calls over gRPC), `grpc` is gRPC for both, `libp2p` what is used behind a NAT: streams of the libp2p daemon.
CPU seconds are those of both ends, daemons included. One direction at a time, one stream; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.bench import processes

TRANSPORTS = ("direct", "grpc", "libp2p")
STOP_WITHIN_S = 5.0
GB = 1e9


@dataclass
class Pair:
    """The two processes of one transport, and what was measured on them."""

    name: str
    directory: Path
    ends: list[subprocess.Popen[str]] = field(default_factory=list)
    sessions: set[int] = field(default_factory=set)
    mb_per_s: list[float] = field(default_factory=list)
    cpu_s_per_gb: list[float] = field(default_factory=list)
    call_s: list[float] = field(default_factory=list)
    message_s: list[float] = field(default_factory=list)

    def open(self) -> None:
        """Start both ends."""
        for rank in range(2):
            command = [sys.executable, "-m", "scripts.bench.transports_peer", self.name, str(rank), str(self.directory)]
            end = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
            self.ends.append(end)
            self.sessions.add(end.pid)
            daemon = self._answer(end)["daemon_pid"]
            self.sessions |= {daemon} if daemon else set()

    def send(self, mib: int, message_kib: int) -> None:
        """Measure one transfer."""
        before_s = processes.cpu_s(self.sessions)
        seconds = self._order({"op": "send", "mib": mib, "message_kib": message_kib})["seconds"]
        size_gb = mib * 2**20 / GB
        self.mb_per_s.append(size_gb * 1000 / seconds)
        self.cpu_s_per_gb.append((processes.cpu_s(self.sessions) - before_s) / size_gb)

    def ask(self, times: int) -> None:
        """Measure round trips."""
        answer = self._order({"op": "ask", "times": times})
        self.call_s += answer["call_s"]
        self.message_s += answer["message_s"]

    def close(self) -> None:
        """End both ends."""
        for end in self.ends:
            if end.stdin is not None:
                end.stdin.close()
        processes.end(self.sessions, grace_s=STOP_WITHIN_S)
        for end in self.ends:
            end.wait()

    def _order(self, order: dict[str, Any]) -> dict[str, Any]:
        dialler = self.ends[1]
        assert dialler.stdin is not None  # noqa: S101  # opened as a pipe
        dialler.stdin.write(json.dumps(order) + "\n")
        dialler.stdin.flush()
        return self._answer(dialler)

    def _answer(self, end: subprocess.Popen[str]) -> dict[str, Any]:
        assert end.stdout is not None  # noqa: S101  # opened as a pipe
        line = end.stdout.readline()
        if not line:
            raise ChildProcessError(f"a process of {self.name} has ended; its last words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def measure(options: argparse.Namespace, console: Console) -> list[Pair]:
    """Interleaved rounds of all transports; every process is ended.

    Raises:
        ChildProcessError: one has failed.
    """
    pairs: list[Pair] = []
    with tempfile.TemporaryDirectory(prefix="transports-benchmark-") as directory:
        try:
            for name in options.transports:
                pairs.append(Pair(name, Path(directory)))
                pairs[-1].open()
            for pair in pairs:
                pair.ask(10)  # connections are made before anything is measured
                pair.call_s, pair.message_s = [], []
            for number in range(options.rounds):
                first = number % len(pairs)
                for pair in pairs[first:] + pairs[:first]:
                    pair.send(options.mib, options.message_kib)
                    pair.ask(options.asks)
                    console.print(f"round {number + 1}/{options.rounds} {pair.name:>7} {pair.mb_per_s[-1]:7.0f} MB/s")
        finally:
            for caught in (signal.SIGINT, signal.SIGTERM):
                signal.signal(caught, signal.SIG_IGN)  # a second Ctrl-C must not stop the first one from ending the processes
            for pair in pairs:
                pair.close()
    return pairs


def report(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Medians by transport, and `vs_grpc`: throughput in units of gRPC's."""
    found: dict[str, dict[str, float]] = {}
    for pair in pairs:
        found[pair.name] = {
            "mb_per_s": round(statistics.median(pair.mb_per_s), 1),
            "cpu_s_per_gb": round(statistics.median(pair.cpu_s_per_gb), 2),
            "call_ms_p50": round(1e3 * statistics.median(pair.call_s), 3),
            "message_ms_p50": round(1e3 * statistics.median(pair.message_s), 3),
        }
    for figures in found.values():
        if "grpc" in found:
            figures["vs_grpc"] = round(figures["mb_per_s"] / found["grpc"]["mb_per_s"], 3)
    return {"transports": found}


def table(pairs: Sequence[Pair], options: argparse.Namespace) -> Table:
    """The same for people."""
    shown = Table(title=f"One stream, {options.mib} MiB in messages of {options.message_kib} KiB, loopback")
    for heading in ("transport", "MB/s", "slowest to fastest", "CPU-s/GB", "call ms p50", "message ms p50"):
        shown.add_column(heading, justify="left" if heading == "transport" else "right")
    for pair in pairs:
        shown.add_row(
            pair.name,
            f"{statistics.median(pair.mb_per_s):.0f}",
            f"{min(pair.mb_per_s):.0f} to {max(pair.mb_per_s):.0f}",
            f"{statistics.median(pair.cpu_s_per_gb):.2f}",
            f"{1e3 * statistics.median(pair.call_s):.2f}",
            f"{1e3 * statistics.median(pair.message_s):.2f}",
        )
    return shown


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line of the benchmark."""
    description = "Throughput, CPU time and round trips of the transports between two members on loopback."
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.transports", description=description)
    parser.add_argument("--mib", type=int, default=256, help="size of one transfer, MiB")
    parser.add_argument("--message-kib", type=int, default=1024, help="size of its messages, KiB; at most 2048")
    parser.add_argument("--rounds", type=int, default=5, help="transfers over each transport")
    parser.add_argument("--asks", type=int, default=200, help="round trips after each transfer")
    parser.add_argument("--transports", default=",".join(TRANSPORTS), help=f"comma-separated, of {', '.join(TRANSPORTS)}")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    options.transports = [name for name in options.transports.split(",") if name]
    if not options.transports or set(options.transports) - set(TRANSPORTS):
        parser.error(f"--transports: choose from {', '.join(TRANSPORTS)}.")
    if min(options.mib, options.rounds, options.asks) < 1 or not 1 <= options.message_kib <= 2048:
        parser.error("--mib, --rounds and --asks need at least 1, --message-kib 1 to 2048.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        Process exit code: 0 measured, 1 a process failed, 2 wrong arguments, 130 interrupted.
    """
    options = parse_arguments(arguments)
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        pairs = measure(options, console)
    except ChildProcessError as error:
        console.print(f"transports benchmark: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("transports benchmark: interrupted; every process it had started has ended.")
        return 130
    console.print(table(pairs, options))
    if options.json:
        settings = {"mib": options.mib, "message_kib": options.message_kib, "rounds": options.rounds}
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        sys.stdout.write(json.dumps({**report(pairs), **settings, "machine": machine}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
