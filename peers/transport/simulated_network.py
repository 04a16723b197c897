"""The network that simulated hosts share: latency, queues, loss, partitions and crashes, all drawn from one seed.

Model of a message of n bytes from a to b:

    uplink     a's uplink sends one message after the other: it leaves at max(now, uplink free) and takes n / uplink bandwidth
    path       its first byte arrives after latency + jitter (uniform in [0, jitter]); messages of one stream never overtake each other
    downlink   b's downlink takes them in order of arrival, each for n / downlink bandwidth; the last byte cannot come before it was sent
    loss       a lost message arrives late, after one retransmission timeout, doubled for each further loss, as TCP does. A lossy link
               slows calls and streams down but never breaks them
    cut        a partition or black hole lets nothing through and resets nothing: requests and replies vanish; stream messages wait
               and arrive one retransmission timeout after `heal`, if their stream still lives
    crash      a process dies on a host that goes on: its streams are reset (one latency later at the other side), whoever dials it
               is refused

Latency, jitter and loss of a path are the worse of its two ends. Header bytes and the handshakes of new connections cost nothing.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

from protocols.ids import PeerId

RETRANSMISSION_TIMEOUT_S = 0.2
"""What one loss costs a stream at least (the minimum of Linux)."""

Observer = Callable[[float, str, PeerId, PeerId, int], None]
"""Called for every event with (virtual time in s, event, from, to, size in bytes): the trace that a seed must reproduce."""


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """How a host is connected.

    Args:
        latency_s: one way, to anybody.
        jitter_s: largest extra delay of a message.
        bandwidth_bytes_per_s: uplink, and downlink unless given.
        loss: probability that a message has to be sent again, in [0, 1).
        downlink_bytes_per_s: downlink, where it differs.

    Raises:
        ValueError: a negative delay, no bandwidth, or a loss outside [0, 1).
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bandwidth_bytes_per_s: float = math.inf
    loss: float = 0.0
    downlink_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        down = self.downlink_bytes_per_s
        if self.latency_s < 0 or self.jitter_s < 0 or self.bandwidth_bytes_per_s <= 0 or (down is not None and down <= 0):
            raise ValueError(f"delays are at least 0 and bandwidths above 0: {self}")
        if not 0 <= self.loss < 1:
            raise ValueError(f"loss is a probability below 1, not {self.loss}")


class Connection(Protocol):
    """Something that breaks when its host crashes: an open call or stream, or a listener."""

    def crash(self) -> None:
        """The process is gone."""


@dataclass(eq=False, slots=True)
class Host:
    """One process of one peer, and the state of its link."""

    peer: PeerId
    spec: LinkSpec
    crashed: bool = False
    listener: Connection | None = None
    connections: dict[Connection, None] = field(default_factory=dict)
    uplink_free_s: float = 0.0
    downlink_free_s: float = 0.0

    @property
    def downlink_bytes_per_s(self) -> float:
        """Downlink bandwidth in bytes per second."""
        return self.spec.bandwidth_bytes_per_s if self.spec.downlink_bytes_per_s is None else self.spec.downlink_bytes_per_s


@dataclass(eq=False, slots=True)
class Lane:
    """One direction of one stream: what is posted on it arrives in order."""

    first_byte_s: float = 0.0
    delivered_s: float = 0.0


@dataclass(eq=False, slots=True)
class _Parcel:
    source: Host
    target: Host
    size_bytes: int
    deliver: Callable[[], None]
    lane: Lane | None  # None: a request or reply, which vanishes at a cut


def _nothing() -> None:
    """Nothing is delivered."""


class SimulatedNetwork:
    """All hosts and everything in flight between them. Lives in one simulated loop.

    Args:
        seed: of jitter and loss.
        default: link of every host that `set_host` does not name.
        observer: sees every event.
    """

    def __init__(self, seed: int, default: LinkSpec | None = None, observer: Observer | None = None) -> None:
        self._random = random.Random(seed)  # the point is that it can be predicted
        self._default = default or LinkSpec()
        self._observer = observer
        self._hosts: dict[PeerId, Host] = {}
        self._cuts: list[tuple[frozenset[PeerId], frozenset[PeerId]]] = []
        self._waiting_for_heal: list[_Parcel] = []

    def host(self, peer: PeerId) -> Host:
        """The host of `peer`; every peer has one."""
        if peer not in self._hosts:
            self._hosts[peer] = Host(peer, self._default)
        return self._hosts[peer]

    def set_host(self, peer: PeerId, spec: LinkSpec) -> None:
        """Connect `peer` differently from now on."""
        self.host(peer).spec = spec

    def partition(self, group_a: Collection[PeerId], group_b: Collection[PeerId]) -> None:
        """Let nothing through between the two groups, either way. Adds to the cuts there are."""
        self._cuts.append((frozenset(group_a), frozenset(group_b)))

    def blackhole(self, a: PeerId, b: PeerId) -> None:
        """Let nothing through between two hosts: neither data nor resets."""
        self.partition([a], [b])

    def heal(self) -> None:
        """Undo all partitions and black holes; what streams had sent into them arrives after a retransmission timeout."""
        self._cuts.clear()
        waiting, self._waiting_for_heal = self._waiting_for_heal, []
        for parcel in waiting:
            self._launch(parcel, RETRANSMISSION_TIMEOUT_S)

    def crash(self, peer: PeerId) -> None:
        """Kill the process of `peer`: handlers are cancelled, streams break on both sides, dialling it is refused; what it calls itself
        hangs until it times out, so cancel its tasks too.
        """
        host = self.host(peer)
        host.crashed = True
        self._observe("crash", _Parcel(host, host, 0, _nothing, None))
        listener, host.listener = host.listener, None
        if listener is not None:
            listener.crash()
        for connection in list(host.connections):
            connection.crash()
        host.connections.clear()

    def restart(self, peer: PeerId) -> None:
        """Let `peer` run again. It has no streams and serves nothing until a transport serves again."""
        host = self.host(peer)
        host.crashed = False
        self._observe("restart", _Parcel(host, host, 0, _nothing, None))

    def post(self, source: Host, target: Host, size_bytes: int, deliver: Callable[[], None], lane: Lane | None) -> None:
        """Send `size_bytes`; `deliver` is called when the last of them has arrived.

        Args:
            source: sending host.
            target: receiving host.
            size_bytes: payload, 0 for a mark such as "finished".
            deliver: must not raise.
            lane: the stream's direction; None for a request or reply, which vanishes when it meets a cut.
        """
        self._launch(_Parcel(source, target, size_bytes, deliver, lane), 0.0)

    def signal(self, source: Host, target: Host, deliver: Callable[[], None]) -> None:
        """Send a reset or refusal: no bytes, passes the queues, waits at a cut, is never lost."""
        if self._is_cut(source, target):
            self._waiting_for_heal.append(_Parcel(source, target, 0, deliver, Lane()))
            return
        asyncio.get_running_loop().call_later(self._latency_s(source, target), deliver)

    def _launch(self, parcel: _Parcel, extra_s: float) -> None:
        source, target = parcel.source, parcel.target
        loop = asyncio.get_running_loop()
        self._observe("send", parcel)
        start_s = max(loop.time(), source.uplink_free_s)
        sending_s = parcel.size_bytes / source.spec.bandwidth_bytes_per_s
        source.uplink_free_s = start_s + sending_s
        if self._cuts and self._stopped_by_cut(parcel):
            return
        loss = max(source.spec.loss, target.spec.loss)
        losses = 0
        while loss and self._random.random() < loss:
            self._observe("loss", parcel)
            extra_s += RETRANSMISSION_TIMEOUT_S * 2**losses
            losses += 1
        jitter_s = max(source.spec.jitter_s, target.spec.jitter_s)
        first_byte_s = start_s + self._latency_s(source, target) + extra_s + (self._random.uniform(0.0, jitter_s) if jitter_s else 0.0)
        if parcel.lane is not None:
            first_byte_s = parcel.lane.first_byte_s = max(first_byte_s, parcel.lane.first_byte_s)
        loop.call_at(first_byte_s, self._arrive, parcel, first_byte_s + sending_s)

    def _arrive(self, parcel: _Parcel, last_byte_s: float) -> None:
        if self._cuts and self._stopped_by_cut(parcel):
            return
        target = parcel.target
        loop = asyncio.get_running_loop()
        target.downlink_free_s = max(loop.time(), target.downlink_free_s) + parcel.size_bytes / target.downlink_bytes_per_s
        due_s = max(target.downlink_free_s, last_byte_s)
        if parcel.lane is not None:
            due_s = parcel.lane.delivered_s = max(due_s, parcel.lane.delivered_s)
        if due_s <= loop.time():
            self._deliver(parcel)
        else:
            loop.call_at(due_s, self._deliver, parcel)

    def _deliver(self, parcel: _Parcel) -> None:
        if self._cuts and self._stopped_by_cut(parcel):
            return
        self._observe("deliver", parcel)
        parcel.deliver()

    def _stopped_by_cut(self, parcel: _Parcel) -> bool:
        if not self._is_cut(parcel.source, parcel.target):
            return False
        self._observe("cut", parcel)
        if parcel.lane is not None:
            self._waiting_for_heal.append(parcel)
        return True

    def _is_cut(self, source: Host, target: Host) -> bool:
        a, b = source.peer, target.peer
        return any((a in left and b in right) or (b in left and a in right) for left, right in self._cuts)

    @staticmethod
    def _latency_s(source: Host, target: Host) -> float:
        return max(source.spec.latency_s, target.spec.latency_s)

    def _observe(self, event: str, parcel: _Parcel) -> None:
        if self._observer is not None:
            now_s = asyncio.get_running_loop().time()
            self._observer(now_s, event, parcel.source.peer, parcel.target.peer, parcel.size_bytes)
