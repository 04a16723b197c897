"""Hosts on links of a stated speed: network namespaces on this machine, joined by a bridge, both directions of every link shaped by `tbf`.

    host 0: eth0 --- p0 \
    host 1: eth0 --- p1  +-- br0, in a namespace of its own
    host 2: eth0 --- p2 /

A host's uplink is shaped where it leaves `eth0`, its downlink where the bridge hands it to the host. `tbf` counts Ethernet frames, headers
included, so TCP carries at most 1448/1514 = 95.6 % of the stated rate at the usual MTU of 1500. There is no propagation delay: what a round
trip takes is time in queues. Needs root, `ip`, `tc` and `nsenter`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

SUBNET = "10.77.0"
MAX_HOSTS = 254
QUEUE_S = 0.05
"""What the queue in front of a link holds, in seconds of its rate: as in a home router that is not bloated."""

BURST_S = 0.0015
"""What a link lets through at once, in seconds of its rate, and at least `MIN_BURST_BYTES`: hardly more than a frame, so that the rate is
the rate at any time scale that matters here."""

MIN_BURST_BYTES = 4 * 1514
COMMAND_TIMEOUT_S = 20.0

_serial = count()


class NamespaceError(Exception):
    """The namespaces cannot be had. The message is one sentence for whoever started the benchmark."""


@dataclass(frozen=True, slots=True)
class Host:
    """One host.

    Args:
        address: its IPv4 address.
        mbit: speed of its link in each direction, 10^6 bits of Ethernet frames per second; None without shaping.
        prefix: what to put before a command that is to run there.
    """

    address: str
    mbit: float | None = None
    prefix: tuple[str, ...] = ()

    @property
    def link_bytes_per_s(self) -> float | None:
        """Speed of its link in bytes."""
        return None if self.mbit is None else self.mbit * 1e6 / 8


def loopback_hosts(number: int) -> tuple[Host, ...]:
    """As many hosts, all of them this machine."""
    return (Host("127.0.0.1"),) * number


@contextmanager
def shaped_hosts(mbit: Sequence[float], congestion: str | None = None) -> Iterator[tuple[Host, ...]]:
    """Namespaces with one shaped link each, removed at the end whatever happens.

    Args:
        mbit: speed of each host's link, 10^6 bits per second, the same in both directions.
        congestion: TCP congestion control of all hosts; the machine's own default if None.

    Raises:
        NamespaceError: not root, tools missing, or the kernel refuses.
    """
    if os.geteuid() != 0:
        raise NamespaceError("Network namespaces need root; start this command with sudo.")
    if missing := [tool for tool in ("ip", "tc", "nsenter") if shutil.which(tool) is None]:
        raise NamespaceError(f"{', '.join(missing)} not found; install iproute2 and util-linux.")
    if len(mbit) > MAX_HOSTS:
        raise NamespaceError(f"At most {MAX_HOSTS} hosts fit into the subnet.")
    stem = f"swb{os.getpid()}x{next(_serial)}"
    names = [f"{stem}h{rank}" for rank in range(len(mbit))]
    bridge = f"{stem}br"
    made: list[str] = []
    try:
        _add_namespace(bridge, made)
        _run("ip", "-n", bridge, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", bridge, "link", "set", "br0", "up")
        hosts = []
        for rank, (name, rate) in enumerate(zip(names, mbit, strict=True)):
            _add_namespace(name, made)
            hosts.append(_connect(bridge, rank, name, rate))
            if congestion:
                route = (f"{SUBNET}.0/24", "dev", "eth0", "src", hosts[-1].address, "congctl", congestion)
                _run("ip", "-n", name, "route", "replace", *route)
        yield tuple(hosts)
    finally:
        for name in reversed(made):
            subprocess.run(["ip", "netns", "del", name], check=False, timeout=COMMAND_TIMEOUT_S)


def _add_namespace(name: str, made: list[str]) -> None:
    made.append(name)  # before: an interrupt may come between
    _run("ip", "netns", "add", name)


def _connect(bridge: str, rank: int, name: str, mbit: float) -> Host:
    """Plug one host into the bridge and shape both ends."""
    port, address = f"p{rank}", f"{SUBNET}.{rank + 1}"
    _run("ip", "-n", bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
    _run("ip", "-n", bridge, "link", "set", port, "master", "br0", "up")
    _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _run("ip", "-n", name, "link", "set", device, "up")
    rate = ["rate", f"{round(mbit * 1e6)}bit", "burst", str(burst_bytes(mbit)), "latency", f"{QUEUE_S * 1e3:.0f}ms"]
    _run("tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", *rate)
    _run("tc", "-n", bridge, "qdisc", "add", "dev", port, "root", "tbf", *rate)
    return Host(address, mbit, ("nsenter", f"--net=/run/netns/{name}", "--"))


def burst_bytes(mbit: float) -> int:
    """Token bucket of a link."""
    return max(MIN_BURST_BYTES, round(mbit * 1e6 / 8 * BURST_S))


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    if done.returncode:
        raise NamespaceError(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.returncode}")
