"""How long a newcomer needs from the command to its first contribution: real processes on loopback, two members training.

    python -m scripts.bench.joining --times 3 --json

Founds a run of the `tiny` preset, lets two volunteers train, then starts newcomers one after the other, each from an empty state directory:
imports, admission, the swarm's state, the model and the probe of its micro-batch are all inside.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from protocols.errors import StateDirError
from swarm.monitoring.status import read_status

RUN_FILE = Path("scripts/tiny_bloom.toml")
LOOPBACK = ("--listen", "127.0.0.1:0", "--announce", "127.0.0.1", "--set", "libp2p_listen=/ip4/127.0.0.1/tcp/0", "--set", "threads=1")
PATIENCE_S = 120.0


class Machine:
    """Processes of one benchmark; all are ended with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `swarm-peer` in the background, in a state directory of its own."""
        command = [sys.executable, "-m", "swarm.cli.main", *arguments, "--state-dir", str(self.folder / name)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._started.append(process)
        return process

    def stop(self) -> None:
        """Ask everybody to leave, and end who does not."""
        for process in self._started:
            process.send_signal(signal.SIGINT)
        for process in self._started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    def samples(self, name: str) -> int:
        """Samples that a peer has computed and reported."""
        try:
            status = read_status(self.folder / name / "status.json")
        except StateDirError:
            return 0
        return status.samples_total if status else 0

    def wait_for_samples(self, name: str) -> None:
        """Wait until a peer has computed something.

        Raises:
            TimeoutError: it never does.
        """
        deadline_s = time.monotonic() + PATIENCE_S
        while not self.samples(name):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{name} computed nothing within {PATIENCE_S:g} s")
            time.sleep(0.05)


def measure(times: int, console: Console) -> list[float]:
    """Seconds to the first contribution of each newcomer."""
    with tempfile.TemporaryDirectory(prefix="swarm-joining-") as name:
        machine = Machine(Path(name))
        invite = machine.folder / "invite.txt"
        try:
            machine.start("coordinator", "init", str(RUN_FILE)).wait(PATIENCE_S)
            machine.start("coordinator", "coordinate", "--invite-file", str(invite), *LOOPBACK)
            while not invite.exists():
                time.sleep(0.05)
            for member in ("alice", "bob"):
                machine.start(member, "join", f"@{invite}", *LOOPBACK)
            for member in ("alice", "bob"):
                machine.wait_for_samples(member)
            return [_join(machine, f"newcomer-{number}", invite, console) for number in range(times)]
        finally:
            machine.stop()


def _join(machine: Machine, name: str, invite: Path, console: Console) -> float:
    began_s = time.monotonic()
    process = machine.start(name, "join", f"@{invite}", *LOOPBACK)
    machine.wait_for_samples(name)
    took_s = time.monotonic() - began_s
    console.print(f"{name} contributed after {took_s:.1f} s")
    process.send_signal(signal.SIGINT)
    process.wait(10)
    return took_s


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="newcomers, one after the other")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on standard output")
    arguments = parser.parse_args()
    took_s = measure(arguments.times, Console(stderr=True))
    median_s = statistics.median(took_s)
    Console(stderr=True).print(f"median {median_s:.1f} s, slowest {max(took_s):.1f} s (promised: 15 s)")
    if arguments.json:
        Console().print(json.dumps({"joining_s": [round(value, 2) for value in took_s], "median_s": round(median_s, 2)}), soft_wrap=True)


if __name__ == "__main__":
    main()
