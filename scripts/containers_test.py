"""The container test, step by step: `scripts/containers_test`, as root, on a Linux machine with podman and podman-compose."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from scripts.containers import image
from scripts.containers.commands import Commands, ContainerTestError
from scripts.containers.swarm import KILLED, SERVICES, ContainerSwarm, Glance, same_state

REPOSITORY = Path(__file__).resolve().parents[1]
POLL_S = 3.0
LEAVE_WITHIN_S = 5.0
LEFT_CLEANLY = (0, 130)
"""Exit codes of a peer that a signal ended and that cleaned up."""

PODMAN_SETTINGS = """\
# runc and cgroupfs work with every cgroup layout; the limits are below what a restricted machine allows.
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=4096:8192"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""

STARTED_S = time.monotonic()


def say(words: str) -> None:
    """One line of progress, with the seconds since the start."""
    sys.stdout.write(f"[{time.monotonic() - STARTED_S:6.1f} s] {words}\n")
    sys.stdout.flush()


def check_machine() -> None:
    """Refuse a machine on which this cannot work.

    Raises:
        ContainerTestError: with the sentence that says what is missing.
    """
    if missing := [tool for tool in ("podman", "podman-compose", "runc") if shutil.which(tool) is None]:
        raise ContainerTestError(f"Not installed here: {', '.join(missing)}; install them from your distribution's packages.")
    if os.geteuid() != 0:
        raise ContainerTestError("Not root: run scripts/containers_test as root, it builds images and makes networks.")


def wait_until(
    swarm: ContainerSwarm, services: Sequence[str], wanted: str, reached: Callable[[Glance], bool], timeout_s: float
) -> dict[str, Glance]:
    """Poll until every named peer has reached something.

    Args:
        wanted: what, for messages.
        reached: tells it from what a peer says.

    Returns:
        What each said last.

    Raises:
        ContainerTestError: a container ended, or the deadline passed.
    """
    deadline_s = time.monotonic() + timeout_s
    shown = ""
    while True:
        glances = {service: swarm.glance(service) for service in services}
        line = ", ".join(f"{service} epoch {glance.epoch} ({glance.state})" for service, glance in glances.items())
        if line != shown:
            say(f"   {line}")
            shown = line
        if all(reached(glance) for glance in glances.values()):
            return glances
        if ended := [service for service in services if not swarm.running(service)]:
            codes = ", ".join(f"{service} with exit code {swarm.exit_code(service)}" for service in ended)
            raise ContainerTestError(f"Ended before {wanted}: {codes}.")
        if time.monotonic() > deadline_s:
            raise ContainerTestError(f"Not all reached {wanted} within {timeout_s:.0f} s: {line}.")
        time.sleep(POLL_S)


def train_on(swarm: ContainerSwarm, services: Sequence[str], start: int, epochs: int, timeout_s: float) -> int:
    """Wait until the named peers have trained some epochs more, and check that they did it together.

    Returns:
        The newest epoch any of them is at.

    Raises:
        ContainerTestError: one stood still or computed nothing, or they do not hold the same state.
    """
    target = start + epochs
    glances = wait_until(swarm, services, f"epoch {target}", lambda glance: glance.epoch >= target, timeout_s)
    if idle := [service for service, glance in glances.items() if glance.samples == 0]:
        raise ContainerTestError(f"Computed nothing: {', '.join(idle)}.")
    common = same_state(glances.values())
    if common is None or common <= start:
        raise ContainerTestError(f"{', '.join(services)} do not hold the same state after any epoch since {start}.")
    losses = ", ".join("none yet" if glance.loss is None else f"{glance.loss:.3f}" for glance in glances.values())
    say(f"   same state after epoch {common}; losses {losses}")
    return max(glance.epoch for glance in glances.values())


def drive(swarm: ContainerSwarm, options: argparse.Namespace) -> None:
    """Train, kill one, train on, stop the others.

    Raises:
        ContainerTestError: something did not happen that must.
    """
    say(f"4/8 starting {', '.join(SERVICES)} on one network")
    swarm.up()
    everybody = len(SERVICES)
    glances = wait_until(swarm, SERVICES, "sight of each other", lambda glance: glance.members >= everybody, options.timeout_s)
    start = max(glance.epoch for glance in glances.values())
    say(f"5/8 all three see each other at epoch {start}; waiting for {options.epochs} epochs together")
    reached = train_on(swarm, SERVICES, start, options.epochs, options.timeout_s)
    if ill := [service for service in SERVICES if not swarm.healthy(service)]:
        raise ContainerTestError(f"The health check of the image fails in {', '.join(ill)}.")
    say("   health check passes in all three")
    if diagnosis := swarm.diagnosis(options.kill):
        raise ContainerTestError(f"`swarm-peer doctor` finds {options.kill} unhealthy:\n{diagnosis}")
    say(f"   doctor finds {options.kill} healthy, seen from outside by another libp2p implementation")

    swarm.kill(options.kill)
    survivors = [service for service in SERVICES if service != options.kill]
    reached = max(reached, *(swarm.glance(service).epoch for service in survivors))
    say(f"6/8 killed {options.kill} with SIGKILL at epoch {reached}; waiting for {options.more_epochs} more epochs of the others")
    train_on(swarm, survivors, reached, options.more_epochs, options.timeout_s)
    if swarm.running(options.kill) or swarm.exit_code(options.kill) != KILLED:
        raise ContainerTestError(f"{options.kill} was to stay dead and did not.")

    say(f"7/8 stopping {' and '.join(survivors)}")
    for service, number in zip(survivors, (signal.SIGINT, signal.SIGTERM), strict=True):
        took_s = swarm.end(service, number)
        code = swarm.exit_code(service)
        say(f"   {service} ended {took_s:.1f} s after {number.name} with exit code {code}")
        if took_s > LEAVE_WITHIN_S or code not in LEFT_CLEANLY:
            raise ContainerTestError(f"{service} was to leave by itself within {LEAVE_WITHIN_S:.0f} s of {number.name}.")


def take_down(swarm: ContainerSwarm) -> list[str]:
    """Remove everything, undisturbed by further Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    say("8/8 taking everything down")
    return swarm.down()


def run(options: argparse.Namespace, work: Path) -> None:
    """All steps in order; whatever happens, the containers are gone afterwards.

    Raises:
        ContainerTestError: a step failed.
    """
    say("1/8 checking this machine")
    check_machine()
    (work / "containers.conf").write_text(PODMAN_SETTINGS, encoding="utf-8")
    settings = [f"CONTAINERS_CONF={work / 'containers.conf'}"]
    if not Path("/run/systemd/private").exists():
        settings.append("DISABLE_HC_SYSTEMD=true")
    commands = Commands(tuple(settings))

    base = options.base_image or image.LOCAL_BASE
    say(f"2/8 base image {base}")
    if not options.base_image and not image.exists(commands, base):
        say("   not there yet: bootstrapping one from the distribution's packages (about a minute)")
        image.make_base(commands, work)

    log = REPOSITORY / "build" / "containers_test.log"
    log.parent.mkdir(exist_ok=True)
    name = f"localhost/swarm-peer:{options.torch}"
    say(f"3/8 building {name} (minutes when the dependencies changed); output in {log.relative_to(REPOSITORY)}")
    image.build(commands, REPOSITORY, work, base=base, torch=options.torch, name=name, log=log)
    say("   built, " + commands.run("podman", "image", "inspect", "--format", "{{.Size}}", name).strip() + " bytes")

    swarm = ContainerSwarm(commands, REPOSITORY, f"swarmtest{os.getpid()}", name, options.run_file.resolve())
    try:
        drive(swarm, options)
    except ContainerTestError:
        for service in SERVICES:
            say(f"   last words of {service}:\n{swarm.last_words(service)}")
        raise
    finally:
        left = take_down(swarm)
    if left:
        raise ContainerTestError(f"Could not be removed: {', '.join(left)}.")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line of the test."""
    parser = argparse.ArgumentParser(
        prog="scripts/containers_test",
        description="Build the image, train with three containers, kill one, see the others go on, take everything down.",
        epilog="example: scripts/containers_test --kill coordinator",
    )
    parser.add_argument("--base-image", metavar="NAME", help="build on this image instead of one bootstrapped here")
    parser.add_argument("--torch", choices=("cpu", "cuda"), default="cpu", help="which wheels of torch the image holds")
    parser.add_argument("--run-file", type=Path, default=Path(__file__).parent / "containers" / "run.toml", help="TOML file of the run")
    parser.add_argument("--epochs", type=int, default=10, help="epochs that all three train together")
    parser.add_argument("--more-epochs", type=int, default=5, help="epochs that the others train after the kill")
    parser.add_argument("--kill", choices=SERVICES, default="volunteer-2", help="whom to kill")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="deadline of each wait for epochs, seconds")
    return parser.parse_args(arguments)


def stop_on(number: int) -> None:
    """Let a signal end the test the way Ctrl-C does, so that it cleans up."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    handler: Callable[[int, FrameType | None], None] = interrupt
    signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        Process exit code: 0 all went well, 1 it did not, 130 interrupted.
    """
    options = parse_arguments(arguments)
    stop_on(signal.SIGTERM)
    try:
        with tempfile.TemporaryDirectory(prefix="containers-test-") as work:
            run(options, Path(work))
    except ContainerTestError as error:
        sys.stderr.write(f"containers_test: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("containers_test: interrupted; everything it had started is gone.\n")
        return 130
    say("all went well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
