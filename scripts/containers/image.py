"""The base image, made from the distribution's own packages where no registry can be reached, and the image under test."""

from __future__ import annotations

import shutil
from pathlib import Path

from scripts.containers import pip_settings
from scripts.containers.commands import Commands, ContainerTestError

LOCAL_BASE = "localhost/swarm-base:bookworm"
RELEASE = "bookworm"
"""Debian 12: the release whose python3 is 3.11."""

BASE_TIMEOUT_S = 600.0
BUILD_TIMEOUT_S = 1800.0


def exists(commands: Commands, name: str) -> bool:
    """Whether podman holds an image of that name."""
    return commands.attempt("podman", "image", "exists", name).code == 0


def mirror_of_this_machine(commands: Commands) -> str | None:
    """The package mirror this machine installs the release from; None when it runs another distribution."""
    if shutil.which("apt-get") is None:
        return None
    listing = commands.attempt("apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages").output
    for line in listing.splitlines():
        release, _, mirror = line.partition(" ")
        if release == RELEASE:
            return mirror.strip()
    return None


def make_base(commands: Commands, work: Path) -> None:
    """Bootstrap a minimal system with Python 3.11 and import it as `LOCAL_BASE`; about a minute, 275 MB.

    Raises:
        ContainerTestError: debootstrap is missing or failed.
    """
    if shutil.which("debootstrap") is None:
        raise ContainerTestError("debootstrap is missing and no base image was named: install it, or give --base-image NAME.")
    root = work / "base"
    mirror = mirror_of_this_machine(commands)
    command = ["debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", RELEASE, str(root)]
    try:
        commands.run_logged(work / "debootstrap.log", *command, *([mirror] if mirror else []), timeout_s=BASE_TIMEOUT_S)
    finally:
        # An interrupted bootstrap may leave these mounted, and the directory is about to be removed.
        for mounted in ("proc", "sys"):
            commands.attempt("umount", "--lazy", "--quiet", str(root / mounted))
    # Downloaded packages are of no use inside an image.
    for leftover in (root / "var/cache/apt/archives").glob("*.deb"):
        leftover.unlink()
    archive = work / "base.tar"
    commands.run("tar", "-C", str(root), "-c", "-f", str(archive), ".", timeout_s=BASE_TIMEOUT_S)
    commands.run("podman", "import", str(archive), LOCAL_BASE, timeout_s=BASE_TIMEOUT_S)
    archive.unlink()


def build(commands: Commands, repository: Path, work: Path, *, base: str, torch: str, name: str, log: Path) -> None:
    """Build the image under test from the sources in `repository`.

    Args:
        base: image to build on; needs Python 3.11 with venv, and useradd.
        torch: "cpu" or "cuda".
        name: tag of the result.
        log: where the build's output goes.

    Raises:
        ContainerTestError: the build failed; the message holds its last lines.
    """
    docker = repository / "docker"
    package_index = pip_settings.of_this_machine(commands).build_options(work / "pip.conf")
    # Chroot isolation builds wherever we are root, also inside a container that may not create namespaces of its own.
    command = ["podman", "build", "--isolation=chroot", "--format=docker", *package_index]
    command += ["--build-arg", f"BASE_IMAGE={base}", "--build-arg", f"TORCH={torch}"]
    command += ["--ignorefile", str(docker / "Dockerfile.dockerignore"), "-f", str(docker / "Dockerfile"), "-t", name, str(repository)]
    commands.run_logged(log, *command, timeout_s=BUILD_TIMEOUT_S)
