"""Running programs with a deadline, and the errors of this test."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

SHORT_TIMEOUT_S = 60.0


class ContainerTestError(Exception):
    """The test cannot go on. The message is one sentence for the person who runs it."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a program left behind.

    Args:
        code: exit code.
        output: standard output, text.
        complaint: standard error, text.
    """

    code: int
    output: str
    complaint: str

    @property
    def last_words(self) -> str:
        """The last lines it said, for an error message."""
        return "\n".join((self.output + self.complaint).strip().splitlines()[-15:])


@dataclass(frozen=True, slots=True)
class Commands:
    """Runs programs under a podman configuration of our own; the machine's is neither needed nor changed.

    Args:
        settings: "NAME=VALUE" pairs added to the environment of everything that is run.
    """

    settings: tuple[str, ...] = ()

    def attempt(self, *command: str, timeout_s: float = SHORT_TIMEOUT_S) -> Finished:
        """Run a program to its end and return what it left, whatever its exit code.

        Raises:
            ContainerTestError: it took longer than `timeout_s`.
        """
        try:
            # `env` sets the variables, so that this process's own environment stays as it was.
            done = subprocess.run(
                ["env", *self.settings, *command], capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ContainerTestError(f"`{' '.join(command[:4])} ...` did not end within {timeout_s:.0f} s.") from error
        return Finished(done.returncode, done.stdout, done.stderr)

    def run(self, *command: str, timeout_s: float = SHORT_TIMEOUT_S) -> str:
        """Run a program that must succeed.

        Returns:
            Its standard output.

        Raises:
            ContainerTestError: it failed or took longer than `timeout_s`.
        """
        done = self.attempt(*command, timeout_s=timeout_s)
        if done.code != 0:
            raise ContainerTestError(f"`{' '.join(command[:4])} ...` ended with exit code {done.code}:\n{done.last_words}")
        return done.output

    def run_logged(self, log: Path, *command: str, timeout_s: float) -> None:
        """Run a long program that must succeed, its words going to a file.

        Raises:
            ContainerTestError: it failed or took longer than `timeout_s`.
        """
        with log.open("w", encoding="utf-8") as sink:
            try:
                code = subprocess.run(
                    ["env", *self.settings, *command], stdout=sink, stderr=subprocess.STDOUT, timeout=timeout_s, check=False
                ).returncode
            except subprocess.TimeoutExpired as error:
                raise ContainerTestError(f"`{' '.join(command[:2])} ...` did not end within {timeout_s:.0f} s; see {log}.") from error
        if code != 0:
            words = "\n".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-15:])
            raise ContainerTestError(f"`{' '.join(command[:2])} ...` ended with exit code {code}; all of it is in {log}:\n{words}")
