"""Members that save memory, through the command line: real processes, 8-bit states, offload, recomputed activations, and a restart."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from protocols.errors import ExitCode
from tests.helpers.cli_swarm import LOOPBACK, TRAINER, Swarm, wait_until

RUN_FILE = """
[run]
name = "small-cards"
[model]
preset = "tiny"
[data]
source = "stdlib"
sequence_length = 32
[optimizer]
rule = "outer"
learning_rate = 0.004
target_batch_samples = 64
[outer]
inner_batch_samples = 8
[trust]
auditors = 0
"""
SMALL = {
    "alice": ("--optimizer-states", "8bit", "--recompute-activations"),
    "bob": ("--offload-optimizer",),
}


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """A coordinator that helps, and two volunteers that save memory, past their second epoch."""
    running = Swarm(tmp_path_factory.mktemp("swarm"))
    try:
        invite = running.found(RUN_FILE)
        for name, flags in SMALL.items():
            running.start(name, "join", f"@{invite}", *TRAINER, *flags)
        for name in SMALL:
            wait_until(lambda name=name: running.status(name).get("epoch", 0) >= 2, 90, lambda name=name: running.log(name))  # type: ignore[misc]
        yield running
    finally:
        running.end()


def _hashes(swarm: Swarm, name: str) -> dict[int, str]:
    return {item["epoch"]: item["state_hash"] for item in swarm.status(name).get("hashes", [])}


def test_they_hold_the_same_state_after_every_epoch(swarm: Swarm) -> None:
    def both() -> list[int]:
        mine, theirs = (_hashes(swarm, name) for name in SMALL)
        return [epoch for epoch in mine.keys() & theirs.keys() if swarm.status("alice")["samples_total"] > 0]

    wait_until(lambda: len(both()) >= 2, 60, lambda: swarm.log("alice") + swarm.log("bob"))
    mine, theirs = (_hashes(swarm, name) for name in SMALL)
    assert all(mine[epoch] == theirs[epoch] for epoch in mine.keys() & theirs.keys())
    assert len(set(mine.values())) == len(mine)


def test_states_in_8_bits_survive_a_restart(swarm: Swarm) -> None:
    alice = next(process for process in swarm.processes if str(swarm.folder / "alice") in process.args)  # type: ignore[operator]
    alice.send_signal(signal.SIGINT)
    assert alice.wait(15) in (0, ExitCode.INTERRUPTED), swarm.log("alice")
    swarm.start("alice", "join", f"@{swarm.folder / 'invite.txt'}", *TRAINER, *SMALL["alice"])
    wait_until(lambda: swarm.status("alice").get("samples_total", 0) > 0, 60, lambda: swarm.log("alice"))
    assert "resumed from checkpoint" in swarm.log("alice")
    assert "is not used" not in swarm.log("alice")


def test_what_a_device_cannot_do_is_one_sentence(swarm: Swarm) -> None:
    done = swarm.command("join", f"@{swarm.folder / 'invite.txt'}", *LOOPBACK, "--optimizer-states", "4bit", "--state-dir", "unused")
    assert done.returncode == ExitCode.CONFIG
    assert "--optimizer-states" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
