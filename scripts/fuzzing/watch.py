"""Runs workers, hears what they say, and ends those that are stuck. One target and one engine at a time."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from scripts.fuzzing import corpus
from scripts.fuzzing.target import REPOSITORY, Finding

BOX_BYTES = 12
STUCK_S = 20.0
"""A worker that does not come back from one input within this, though its own timer should have ended it, is killed."""

START_S = 120.0
"""How long a worker may take to import everything and read the corpus."""

_POLL_S = 0.1
_MAX_RESTARTS = 5
Engines = Sequence[tuple[str, float]]
"""Which, and for how many seconds."""

_NAMES = {"crash": "crashes", "unstable": "crashes", "round-trip": "crashes", "hang": "hangs", "memory": "over_memory"}


@dataclass
class Tally:
    """What was done to one target.

    Args:
        name: of the target.
        findings: each with an input that shows it.
        new: inputs that reached something new.
        keep: the shortest of all inputs that reach what they reach, once a worker has come to its end.
    """

    name: str
    executions: int = 0
    seconds: float = 0.0
    lines: int = 0
    corpus: int = 0
    findings: list[tuple[Finding, bytes]] = field(default_factory=list)
    new: list[bytes] = field(default_factory=list)
    keep: list[bytes] | None = None

    def count(self, word: str) -> int:
        """Findings of that sort: "crashes", "hangs" or "over_memory"."""
        return sum(_NAMES[finding.kind] == word for finding, _ in self.findings)

    def as_json(self) -> dict[str, Any]:
        """As the last line has it."""
        counts = {word: self.count(word) for word in ("crashes", "hangs", "over_memory")}
        return {
            "name": self.name, "executions": self.executions, "seconds": round(self.seconds, 1), **counts, "corpus": self.corpus,
            "lines": self.lines,
        }  # fmt: skip


class Worker:
    """One process.

    Args:
        tally: where to note what it says.
        engines, seed: see `worker.py`; without engines it only looks which inputs are needed.
        folders: inputs to begin with.
        command: what to start instead of the real worker; for tests.
    """

    def __init__(self, tally: Tally, engines: Engines, seed: int, folders: Sequence[Path], command: Sequence[str] | None = None) -> None:
        self._tally = tally
        self._seconds = sum(seconds for _, seconds in engines)
        self._scratch = tempfile.TemporaryDirectory(prefix="fuzz-")
        self.box = Path(self._scratch.name) / "box"
        self.box.touch()
        self.units = Path(self._scratch.name) / "units"
        self.units.mkdir()
        module = "scripts.fuzzing.atheris_worker" if _libfuzzer(engines) else "scripts.fuzzing.worker"
        asked = [part for name, seconds in engines for part in ("--engine", f"{name}:{seconds:.1f}")]
        places = [part for folder in folders for part in ("--corpus", str(folder))]
        own = ["--box", str(self.box), "--scratch", str(self.units)]
        self._command = list(command or [sys.executable, "-m", module, tally.name, "--seed", str(seed), *asked, *places, *own])
        self._before = tally.executions
        self._said: Queue[dict[str, Any] | None] = Queue()

    def run(self, tell: Callable[[], None]) -> bool:
        """Wait until it has ended. Returns whether it came to its end by itself; `tell` is called now and then.

        A keyboard interrupt ends it.
        """
        with tempfile.TemporaryFile() as errors:
            with subprocess.Popen(self._command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
                listener = threading.Thread(target=self._listen, args=(process,), daemon=True)
                listener.start()
                try:
                    stuck = self._watch(process, tell)
                finally:
                    process.kill()  # does nothing if it has ended
                    process.wait()
                    listener.join()
                    self._take_all()
            errors.seek(0)
            complaint = errors.read()[-2000:].decode(errors="replace")
        if stuck:
            self._blame(Finding("hang", f"the process did not come back within {STUCK_S:g} s"))
        elif process.returncode != 0:
            self._blame(Finding("crash", f"the process died: {_how(process.returncode)}", trace=complaint))
        return not stuck and process.returncode == 0

    def close(self) -> None:
        """Remove its files."""
        self._scratch.cleanup()

    def _watch(self, process: subprocess.Popen[str], tell: Callable[[], None]) -> bool:
        """Returns whether it is stuck."""
        began_s = moved_at_s = time.monotonic()
        number: bytes | None = None
        while process.poll() is None:
            self._take_all()
            tell()
            seen = self._box()[:8]
            if seen != number:
                number, moved_at_s = seen, time.monotonic()
            patience_s = STUCK_S if any(seen) else START_S
            if time.monotonic() - moved_at_s > patience_s or time.monotonic() - began_s > 2 * self._seconds + START_S:
                return True
            time.sleep(_POLL_S)
        return False

    def _box(self) -> bytes:
        return self.box.read_bytes()

    def _blame(self, finding: Finding) -> None:
        box = self._box()
        length = int.from_bytes(box[8:BOX_BYTES], "little")
        self._tally.findings.append((finding, box[BOX_BYTES : BOX_BYTES + length]))

    def _listen(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            try:
                words = json.loads(line)
            except ValueError:
                continue  # a library's
            if isinstance(words, dict):
                self._said.put(words)

    def _take_all(self) -> None:
        while True:
            try:
                words = self._said.get_nowait()
            except Empty:
                return
            if words:
                self._take(words)

    def _take(self, words: dict[str, Any]) -> None:
        tally = self._tally
        if "new" in words:
            tally.new.append(base64.b64decode(words["new"]))
        if "keep" in words:
            tally.keep = [*(tally.keep or []), base64.b64decode(words["keep"])]
        if "done" in words:
            tally.keep = tally.keep or []
        if "finding" in words:
            found = Finding(**words["finding"])
            if all(_cause(found) != _cause(known) for known, _ in tally.findings):
                tally.findings.append((found, base64.b64decode(words["input"])))
        tally.executions = self._before + int(words.get("count", words.get("done", tally.executions - self._before)))
        tally.lines = max(tally.lines, int(words.get("lines", 0)))


def _cause(finding: Finding) -> tuple[str, str]:
    """The same for findings that are one."""
    return finding.kind, finding.place or re.sub(r"\d+", "#", finding.summary)


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _libfuzzer(engines: Engines) -> bool:
    return any(name == "atheris" for name, _ in engines)


def fuzz(tally: Tally, engines: Engines, seed: int, folder: Path, tell: Callable[[], None]) -> None:
    """Fuzz one target, again from where it was if a worker dies.

    What reached something new is in the corpus afterwards, come what may; and no more than is needed, if a worker came to its end.
    """
    began_s = time.monotonic()
    most_s = sum(seconds for _, seconds in engines)
    try:
        for attempt in range(_MAX_RESTARTS):
            left = 1 - (time.monotonic() - began_s) / most_s
            if left <= 0:
                break
            whole = _work(tally, [(name, seconds * left) for name, seconds in engines], seed + attempt, folder, tell)
            _keep_new(tally, folder)
            if whole:
                break
        if tally.keep is None:
            _work(tally, [], seed, folder, tell)
    finally:
        _keep_new(tally, folder)
        tally.corpus = len(corpus.read(folder))
    if tally.keep is not None:
        tally.corpus = corpus.replace(folder, tally.keep)


def _work(tally: Tally, engines: Engines, seed: int, folder: Path, tell: Callable[[], None]) -> bool:
    worker = Worker(tally, engines, seed, [folder])
    try:
        return worker.run(tell)
    finally:
        if _libfuzzer(engines):
            tally.new += corpus.read(worker.units)
        worker.close()


def _keep_new(tally: Tally, folder: Path) -> None:
    for data in tally.new:
        if len(data) <= corpus.MAX_FILE_BYTES:
            corpus.keep(folder, data)
    tally.new = []
