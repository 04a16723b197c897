"""A NAT router for tests, and programs on both sides of it; `tests.helpers.nat_scene` is what it is made of."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# User, network, mount and process namespaces of its own: no trace of it is seen outside, and all of it ends with its first process.
_UNSHARE = ("unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")


class Nat:
    """A running scene."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, on: str, log: Path, *command: str) -> int:
        """Start a program "inside" or "outside"; it ends with the scene. Returns what `kill` knows it by."""
        pid: int = self._order({"run": list(command), "on": on, "log": str(log)})["pid"]
        return pid

    def kill(self, pid: int) -> None:
        """End a program as kill -9 does."""
        self._order({"kill": pid})

    def counters(self) -> dict[str, int]:
        """New connections that the router has "let_through", and packets that it has "dropped"."""
        return self._order({"counters": True})

    def _order(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The scene's next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the scene has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def nat(*ports: int) -> Iterator[Nat]:
    """A scene whose router lets connections to these ports of the outside pass; gone at the end, with everything that runs in it."""
    command = [*_UNSHARE, sys.executable, "-m", "tests.helpers.nat_scene", *map(str, ports)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            scene = Nat(process)
            assert scene.answer() == {"ready": True}
            yield scene
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
        finally:
            process.kill()
