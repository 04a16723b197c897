"""One target in a process of its own: tries inputs, and says what it finds as lines of JSON.

    python -m scripts.fuzzing.worker TARGET --engine hypothesis:6 --engine mutate:54 --seed 1 --box FILE --corpus FOLDER

Each engine has its seconds. Lines: {"new": input}, {"finding", "input"}, {"count", "lines"}, and at the end {"keep": input} for each input
of the corpus that reaches what no shorter one reaches, and {"done"}. Inputs are in base64.

Every input is first written to the box, so that whoever watches can name it if this process dies or never comes back. The processor time of
one input is bounded by a timer, the memory of the process by the kernel, and what an input makes Python allocate is measured if it took
long or reached something new.
"""

from __future__ import annotations

import argparse
import base64
import json
import mmap
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from scripts.fuzzing.coverage import Coverage
from scripts.fuzzing.engines import DRIVERS
from scripts.fuzzing.target import Finding, Hang, Seen, Target, check, fault, read_once
from scripts.fuzzing.targets import TARGETS

HANG_S = 1.0
"""Processor time that one input may take, read three times."""

SLOW_S = 0.1
"""Processor time from which on memory is measured, too."""

HEADROOM_BYTES = 512 * 2**20
"""Address space that a process may take beyond what it has when it begins."""

PEAK_BYTES = 128 * 2**20
"""What one input may add to the largest resident size."""

BOX = struct.Struct("<QI")
"""In front of the input in the box: how many came before, and its length."""

_SAY_EVERY_S = 0.5


class Box:
    """The input that is being tried, where another process can see it."""

    def __init__(self, path: str, input_bytes: int) -> None:
        with open(path, "r+b") as file:
            file.truncate(BOX.size + input_bytes)
            self._map = mmap.mmap(file.fileno(), BOX.size + input_bytes)

    def put(self, number: int, data: bytes) -> None:
        """Before it is tried."""
        self._map[BOX.size : BOX.size + len(data)] = data
        BOX.pack_into(self._map, 0, number, len(data))


class Session:
    """See `engines.Session`.

    Args:
        target: what is tried.
        box: see `Box`.
        traced: whether to watch coverage ourselves; atheris has its own.
    """

    def __init__(self, target: Target, box: Box, *, traced: bool = True) -> None:
        self.target = target
        self.seconds = 0.0
        self.pool: list[bytes] = []
        self.coverage = Coverage()
        self.executions = 0
        self._box = box
        self._traced = traced
        self._ends_s = 0.0
        self._say_at_s = 0.0
        self._peak_kib = _peak_kib()
        self._told: set[Finding] = set()
        self._seeds = frozenset(target.seeds())

    @property
    def over(self) -> bool:
        """See `engines.Session`."""
        return time.monotonic() >= self._ends_s

    def begin(self, seconds: float) -> None:
        """From now on there are so many seconds."""
        self.seconds, self._ends_s = seconds, time.monotonic() + seconds

    def shortest(self) -> list[bytes]:
        """Inputs, beside the seeds, that reach what no shorter one reaches."""
        self.coverage, kept = Coverage(), []
        for data in sorted(self._seeds, key=len) + sorted({*self.pool} - self._seeds, key=lambda data: (len(data), data)):
            seen = self._guarded(data)
            if seen.finding is None and self.coverage.is_news(seen.refusal) and data not in self._seeds:
                kept.append(data)
        return kept

    def run(self, data: bytes) -> None:
        """See `engines.Session`."""
        data = bytes(data[: self.target.input_bytes])
        self._box.put(self.executions, data)
        self.executions += 1
        began_s = time.process_time()
        seen = self._guarded(data)
        slow = time.process_time() - began_s > SLOW_S
        finding = seen.finding or self._grown()
        news = finding is None and self._traced and self.coverage.is_news(seen.refusal)
        if news:
            self.pool.append(data)
            if data not in self._seeds:
                say(new=_text(data))
        if finding is None and (news or slow):
            finding = self._allocated(data)
        if finding is not None and finding not in self._told:
            self._told.add(finding)
            say(
                finding={"kind": finding.kind, "summary": finding.summary, "place": finding.place, "trace": finding.trace},
                input=_text(data),
            )
        if time.monotonic() >= self._say_at_s:
            self._say_at_s = time.monotonic() + _SAY_EVERY_S
            say(count=self.executions, lines=len(self.coverage.lines))

    def _guarded(self, data: bytes) -> Seen:
        signal.setitimer(signal.ITIMER_PROF, HANG_S)
        try:
            if not self._traced:
                return check(self.target, data)
            with self.coverage.watching():
                return check(self.target, data)
        except Hang as error:
            return Seen(finding=fault("hang", error))
        except MemoryError as error:
            return Seen(finding=fault("memory", error))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _grown(self) -> Finding | None:
        """Whether the process has become much larger: memory of libraries, which Python does not count."""
        before, self._peak_kib = self._peak_kib, _peak_kib()
        grown_bytes = 1024 * (self._peak_kib - before)
        return Finding("memory", f"the process grew by {grown_bytes >> 20} MiB") if grown_bytes > PEAK_BYTES else None

    def _allocated(self, data: bytes) -> Finding | None:
        limit_bytes = self.target.memory_bytes + self.target.memory_factor * len(data)
        peak_bytes = allocated_bytes(self.target, data)
        if peak_bytes <= limit_bytes:
            return None
        return Finding("memory", f"{len(data)} bytes make it allocate {peak_bytes}, and {limit_bytes} are allowed")


def allocated_bytes(target: Target, data: bytes) -> int:
    """The most that Python holds at a time while it reads."""
    tracemalloc.start()
    try:
        read_once(target, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def say(**words: Any) -> None:
    """One line."""
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _on_timer(number: int, frame: FrameType | None) -> None:
    raise Hang(f"more than {HANG_S:g} s of processor time")


def bound_memory() -> None:
    """From here on, this process may take `HEADROOM_BYTES` more and no further."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + HEADROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--engine", type=_engine, action="append", default=[], metavar="NAME:SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--box", required=True)
    parser.add_argument("--corpus", type=Path, action="append", default=[], help="folder of inputs to begin with")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where an engine may keep inputs of its own")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this process ends it
    signal.signal(signal.SIGPROF, _on_timer)
    target = TARGETS[options.target]
    others = [seed for other in TARGETS.values() if other is not target for seed in other.seeds()]
    files = [path.read_bytes() for folder in options.corpus if folder.is_dir() for path in folder.iterdir() if path.is_file()]
    known = sorted({*target.seeds()}, key=len) + sorted({*files}, key=lambda data: (len(data), data))
    for data in known:
        read_once(target, data)  # what is imported or cached the first time is no input's fault
    bound_memory()
    libfuzzer = any(name == "atheris" for name, _ in options.engine)
    session = Session(target, Box(options.box, target.input_bytes), traced=not libfuzzer)
    for data in known:
        session.run(data)
    session.pool = list(dict.fromkeys([*session.pool, *known]))
    for name, seconds in options.engine:
        session.begin(seconds)
        DRIVERS[name](session, options.seed, others, options.scratch)
    for data in session.shortest():
        say(keep=_text(data))
    say(done=session.executions, lines=len(session.coverage.lines))


def _engine(text: str) -> tuple[str, float]:
    name, _, seconds = text.partition(":")
    if name not in DRIVERS:
        raise argparse.ArgumentTypeError(f"no engine is called {name}")
    return name, float(seconds)


if __name__ == "__main__":
    main()
