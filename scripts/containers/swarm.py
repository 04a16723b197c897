"""Three containers on one network as one object: up, ask, kill, end, down."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from scripts.containers.commands import Commands, ContainerTestError, Finished

SERVICES = ("coordinator", "volunteer-1", "volunteer-2")
VOLUMES = ("invite", *(f"{service}-state" for service in SERVICES))
UP_TIMEOUT_S = 120.0
END_TIMEOUT_S = 15
KILLED = 137
"""Exit code of a container whose process got SIGKILL (128 + 9)."""


@dataclass(frozen=True, slots=True)
class Glance:
    """What one peer says of itself.

    Args:
        epoch: its epoch; -1 while it says nothing yet.
        members: how many members it sees, itself included.
        samples: computed by it since it started.
        loss: training loss, nats per byte; None before the first.
        state: what it is doing, in its own word.
        hashes: its state hash after each of its last epochs.
    """

    epoch: int = -1
    members: int = 0
    samples: int = 0
    loss: float | None = None
    state: str = "silent"
    hashes: dict[int, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> Glance:
        """Read the output of `swarm-peer status --json`; anything else reads as silence."""
        try:
            status = json.loads(text)
            return cls(
                epoch=int(status["epoch"]),
                members=len(status["members"]),
                samples=int(status["samples_total"]),
                loss=status["loss"],
                state=str(status["state"]),
                hashes={int(entry["epoch"]): str(entry["state_hash"]) for entry in status["hashes"]},
            )
        except (ValueError, KeyError, TypeError):
            return cls()


def same_state(glances: Iterable[Glance]) -> int | None:
    """The newest epoch after which all of these peers held the same state; None if there is none."""
    histories = [set(glance.hashes.items()) for glance in glances]
    return max((epoch for epoch, _ in set.intersection(*histories)), default=None)


@dataclass(frozen=True, slots=True)
class ContainerSwarm:
    """The services of `docker/compose.yaml` under a project name of our own.

    Args:
        commands: runs podman.
        repository: root of the source tree.
        project: prefix of every container, volume and network made here.
        image: image the containers run.
        run_file: TOML file of the run.
    """

    commands: Commands
    repository: Path
    project: str
    image: str
    run_file: Path

    def container(self, service: str) -> str:
        """Name of a service's container."""
        return f"{self.project}_{service}_1"

    def up(self) -> None:
        """Start all three in the background.

        Raises:
            ContainerTestError: a container does not exist afterwards (podman-compose's own exit code does not tell).
        """
        said = self._compose("up", "-d", timeout_s=UP_TIMEOUT_S)
        for service in SERVICES:
            if self.commands.attempt("podman", "container", "exists", self.container(service)).code != 0:
                raise self._failure(f"podman-compose did not start {service}", said)

    def glance(self, service: str) -> Glance:
        """Ask the peer in a container for its status, by the command a person would use."""
        asked = ("podman", "exec", self.container(service), "swarm-peer", "status", "--state-dir", "/state", "--json")
        return Glance.from_json(self.commands.attempt(*asked).output)

    def healthy(self, service: str) -> bool:
        """Whether the image's own health check passes in a container."""
        return self.commands.attempt("podman", "healthcheck", "run", self.container(service)).code == 0

    def running(self, service: str) -> bool:
        """Whether a container's main process is alive."""
        return self._inspect(service, "{{.State.Running}}") == "true"

    def exit_code(self, service: str) -> int:
        """Exit code of a container's main process; 0 while it runs."""
        return int(self._inspect(service, "{{.State.ExitCode}}") or 0)

    def kill(self, service: str) -> None:
        """SIGKILL a container's main process."""
        self.commands.run("podman", "kill", "-s", "KILL", self.container(service))

    def end(self, service: str, number: signal.Signals) -> float:
        """Ask a container's main process to end, by SIGINT through `podman stop` and its stop signal, by another signal directly.

        Returns:
            Seconds until it had ended.

        Raises:
            ContainerTestError: it went on.
        """
        asked_s = time.time()
        if number is signal.SIGINT:
            self.commands.run("podman", "stop", "-t", str(END_TIMEOUT_S), self.container(service))
        else:
            self.commands.run("podman", "kill", "-s", number.name, self.container(service))
            self.commands.run("podman", "wait", self.container(service), timeout_s=END_TIMEOUT_S)
        return int(self._inspect(service, "{{.State.FinishedAt.UnixMilli}}")) / 1000 - asked_s

    def diagnosis(self, service: str) -> str:
        """What `swarm-peer doctor` says is wrong with the peer in a container; empty when nothing is."""
        done = self.commands.attempt("podman", "exec", self.container(service), "swarm-peer", "doctor", "--state-dir", "/state")
        return done.last_words if done.code != 0 else ""

    def last_words(self, service: str, lines: int = 20) -> str:
        """The end of a container's log."""
        return self.commands.attempt("podman", "logs", "--tail", str(lines), self.container(service)).last_words

    def down(self) -> list[str]:
        """Remove every container, volume and network of this project, by name.

        Returns:
            Names of what is still there afterwards; empty when all is gone.
        """
        for service in SERVICES:
            self.commands.attempt("podman", "rm", "-f", "-t", "5", self.container(service))
        for volume in VOLUMES:
            self.commands.attempt("podman", "volume", "rm", "-f", f"{self.project}_{volume}")
        self.commands.attempt("podman", "network", "rm", "-f", f"{self.project}_swarm")
        return self._left_over()

    def _left_over(self) -> list[str]:
        things = [("container", self.container(service)) for service in SERVICES]
        things += [("volume", f"{self.project}_{volume}") for volume in VOLUMES]
        things += [("network", f"{self.project}_swarm")]
        return [f"{kind} {name}" for kind, name in things if self.commands.attempt("podman", kind, "exists", name).code == 0]

    def _compose(self, *words: str, timeout_s: float) -> Finished:
        settings = (f"SWARM_IMAGE={self.image}", f"SWARM_RUN_FILE={self.run_file}")
        commands = Commands(self.commands.settings + settings)
        file = str(self.repository / "docker" / "compose.yaml")
        return commands.attempt("podman-compose", "-p", self.project, "-f", file, *words, timeout_s=timeout_s)

    def _inspect(self, service: str, template: str) -> str:
        return self.commands.attempt("podman", "inspect", "--format", template, self.container(service)).output.strip()

    def _failure(self, sentence: str, said: Finished) -> ContainerTestError:
        return ContainerTestError(f"{sentence}:\n{said.last_words}")
