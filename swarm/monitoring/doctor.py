"""Examinations of `swarm-peer doctor`: of this machine, and of a node from outside (`peers.probe`)."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from peers.clock import SystemClock
from peers.probe.report import Check, ProbeRequest
from peers.probe.runner import run_probe
from protocols.errors import UserError
from swarm.config import PeerConfig, split_host_port
from swarm.monitoring.status import Liveness, PeerStatus, read_status

OUR_PACKAGES = ("swarm", "peers", "protocols")
MIN_FREE_BYTES = 2 * 10**9
_EARLIEST_S = 1_750_000_000.0
_CONNECT_S = 3.0


def examine(config: PeerConfig, address: str | None) -> list[Check]:
    """All examinations in order.

    Args:
        config: of the peer to look at; only its state directory and device matter.
        address: libp2p multiaddr to look at instead of the running peer's.

    Raises:
        LocalProtocolError: the probe itself failed: our bug.
    """
    checks = [
        check_packages(importlib.metadata.packages_distributions()),
        check_state_dir(config.state_dir),
        check_clock(SystemClock().now()),
        check_device(config.device),
    ]
    status: PeerStatus | None = None
    if address is None:
        try:
            status = read_status(config.status_path)
        except UserError as error:
            return [*checks, Check("peer", False, str(error))]
        checks.append(check_peer(status, SystemClock().now()))
        if status is None or not checks[-1].ok:
            return checks
        if status.data_address:
            checks.append(check_port(status.data_address))
        address = preferred(status.addresses)
    if address is None:
        return [*checks, Check("dial", True, "nothing to dial: this peer is a client, it only dials others")]
    try:
        return [*checks, *run_probe(ProbeRequest(address)).checks]
    except UserError as error:
        return [*checks, Check("dial", False, str(error))]


def preferred(addresses: Sequence[str]) -> str | None:
    """The address an outsider would use: not loopback if there is another; None if there is none."""
    return next((a for a in addresses if "/ip4/127." not in a and "/ip6/::1/" not in a), addresses[0] if addresses else None)


def check_packages(owners: Mapping[str, Sequence[str]]) -> Check:
    """Our three import packages must belong to one installed distribution; another with the same names would overwrite files of ours.

    Args:
        owners: import package -> distributions that ship it (`importlib.metadata.packages_distributions()`).
    """
    for package in OUR_PACKAGES:
        distributions = sorted(set(owners.get(package, ())))
        if len(distributions) > 1:
            return Check(
                "packages", False, f"{' and '.join(distributions)} both install a package '{package}': use an environment of its own."
            )
    return Check("packages", True, "no other distribution installs packages of our names")


def check_state_dir(path: Path) -> Check:
    """The state directory, or the nearest existing folder above it, must be writable and have room for checkpoints."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check("state directory", False, f"{path} cannot be written: choose another by --state-dir.")
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        return Check("state directory", False, f"only {free / 1e9:.1f} GB are free at {path}: make room for checkpoints.", float(free))
    return Check("state directory", True, f"{path} is writable, {free / 1e9:.0f} GB free", float(free))


def check_clock(now: float) -> Check:
    """The clock must at least lie after this code was written; how far it is from other members' the probe tells."""
    if now < _EARLIEST_S:
        return Check("clock here", False, f"this machine believes it is {time.strftime('%Y-%m-%d', time.gmtime(now))}: set its clock.")
    return Check("clock here", True, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def check_device(device: str) -> Check:
    """A CUDA device must exist where one is asked for."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Check("device", True, f"{torch.cuda.get_device_name()}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free", float(free))
    if device == "cuda":
        return Check("device", False, "CUDA was asked for and this torch finds no CUDA device: use --device cpu or mend the driver.")
    return Check("device", True, f"CPU with {torch.get_num_threads()} threads")


def check_peer(status: PeerStatus | None, now: float) -> Check:
    """The peer must be running."""
    if status is None:
        return Check("peer", False, "no peer has ever run with this state directory: start one, or give --address.")
    liveness = status.liveness(now)
    if liveness is not Liveness.RUNNING:
        return Check("peer", False, f"the peer is not running ({liveness.value}): start it, or give --address.")
    return Check("peer", True, f"process {status.pid} is {status.state} at epoch {status.epoch} with {len(status.members)} members")


def check_port(address: str) -> Check:
    """The announced gRPC address must accept connections."""
    try:
        host, port = split_host_port(address)
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            return Check("data port", True, f"{address} accepts connections")
    except (OSError, ValueError) as error:
        return Check("data port", False, f"{address} cannot be reached from here ({error}): check --listen, --announce and the firewall.")
