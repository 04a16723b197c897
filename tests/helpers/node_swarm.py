"""Whole nodes on one simulated network: real certificates and records, and a scripted trainer for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from peers.averaging.context import AveragingRules
from peers.averaging.trust_rules import TrustRules
from peers.bridge import Contribution, PeerHandle, RoundOutcome, RoundStatus
from peers.clock import SimulatedClock
from peers.conduct import HONEST, Conduct
from peers.expulsion import Expelled
from peers.node import Node
from peers.node_settings import NodeSettings
from peers.state_snapshot import StateSnapshot
from peers.store.memory import MemoryStore, MemorySwarm
from peers.testing import PortedTransport
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.certificate_chain import CertificateChain
from protocols.codecs import codec_named
from protocols.errors import RoundError
from protocols.ids import Epoch, PeerId, SwarmTime
from protocols.link_figures import LinkFigures
from protocols.record_keeping import record_validator
from protocols.records import Presence, Role
from protocols.signing import Sealer
from protocols.trust.ledger import Ledger
from tests.helpers.run_world import NOW, RunWorld, identity

_ELEMS = 100
TICK_S = 0.1


@lru_cache(maxsize=1)
def world() -> RunWorld:
    """One run for all tests: certificates cost time."""
    return RunWorld()


@lru_cache(maxsize=32)
def sealer_of(number: int) -> Sealer:
    """What signs for a member."""
    return world().sealer(number)


@lru_cache(maxsize=4096)
def _judged(key: str, subkey: str, value: bytes, expires_at: SwarmTime, second: int) -> str | None:
    validate = record_validator(world().run, world().authority_key)
    return validate(key, subkey, value, expires_at, SwarmTime(float(second)))


def _validator(key: str, subkey: str, value: bytes, expires_at: SwarmTime, now: SwarmTime) -> str | None:
    """All stores of a test live in one process: each signature is verified once instead of once by everybody in every second."""
    return _judged(key, subkey, value, expires_at, int(now))


def state(epoch: int, value: float = 0.0, accepted_samples: int = 0) -> StateSnapshot:
    """A training state of a few numbers."""
    return StateSnapshot.of([("weights", torch.full((_ELEMS,), value))], epoch=epoch, accepted_samples=accepted_samples, meta={})


@dataclass
class Trainee:
    """One member: its node, and a trainer that computes `samples_per_tick` samples in each tick of virtual time."""

    number: int
    node: Node
    handle: PeerHandle
    peer: PeerId
    samples_per_tick: int
    held: StateSnapshot | None
    samples: int = 0
    outcomes: list[RoundOutcome] = field(default_factory=list)
    running: asyncio.Task[None] | None = None
    training: asyncio.Task[None] | None = None
    ledger: Ledger = field(default_factory=Ledger)
    expelled: Expelled | None = None

    @property
    def epoch(self) -> int:
        """Updates applied to the state held; -1 without a state."""
        return self.held.epoch if self.held else -1

    def hold(self, snapshot: StateSnapshot) -> None:
        """Take over a state."""
        self.held = snapshot
        self.samples = 0
        self.handle.announce_epoch(Epoch(snapshot.epoch), snapshot.state_hash, snapshot.manifest.accepted_samples)

    async def train(self) -> None:
        """What `CollaborativeOptimizer` does, in short."""
        if self.held:
            self.hold(self.held)
        while True:
            await asyncio.sleep(TICK_S)
            self.samples += self.samples_per_tick
            self.handle.report(self.samples, self.samples_per_tick / TICK_S, None, "training")
            if self.handle.snapshot_wanted() and self.held:
                self.handle.publish_snapshot(self.held)
            if self.handle.view().behind:
                await self.catch_up()
            elif self.handle.epoch_closing() and self.held:
                await self.close_epoch(self.held)

    async def close_epoch(self, held: StateSnapshot) -> None:
        """Average and apply, as often as it is asked for."""
        vector = torch.full((_ELEMS,), float(self.number + 1))
        try:
            outcome = await self.node.average(Contribution(Epoch(held.epoch), vector, self.samples, held.state_hash))
        except RoundError as error:
            outcome = RoundOutcome(RoundStatus.ABORTED, Epoch(held.epoch), reason=str(error))
        self.outcomes.append(outcome)
        if outcome.vector is not None:
            (_, weights), *_ = held.tensors()
            tensors = [("weights", weights + outcome.vector)]
            accepted = held.manifest.accepted_samples + round(outcome.weight)
            self.hold(StateSnapshot.of(tensors, epoch=held.epoch + 1, accepted_samples=accepted, meta={}))
        elif outcome.status is RoundStatus.BEHIND:
            await self.catch_up()

    async def catch_up(self) -> None:
        """Fetch the swarm's state; try again later if nobody gives it."""
        try:
            self.hold(await self.node.fetch_state())
        except RoundError:
            return

    @property
    def applied(self) -> list[RoundOutcome]:
        """Outcomes that moved the state."""
        return [outcome for outcome in self.outcomes if outcome.vector is not None]


class NodeSwarm:
    """`async with NodeSwarm() as swarm:` then `swarm.add(...)`; use under `run_simulated`."""

    def __init__(self, target_samples: int = 100, trust: TrustRules | None = None) -> None:
        self.network = SimulatedNetwork(1, LinkSpec(latency_s=0.02, jitter_s=0.005, bandwidth_bytes_per_s=1e7))
        self.records = MemorySwarm()
        self.members: list[Trainee] = []
        self._target_samples = target_samples
        self._trust = trust
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> NodeSwarm:
        self._tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        return self

    async def __aexit__(self, *error: object) -> None:
        for member in self.members:
            self.kill(member)
        await self._stack.aclose()

    def add(
        self,
        number: int,
        *,
        samples_per_tick: int = 4,
        held: StateSnapshot | None = None,
        role: Role = "trainer",
        error_s: float = 0.0,
        trains: bool = True,
        founder: bool = True,
        conduct: Conduct = HONEST,
        ledger: Ledger | None = None,
        on_link: Callable[[LinkFigures], None] | None = None,
    ) -> Trainee:
        """Start a member that trains.

        Args:
            number: names it.
            samples_per_tick: its speed.
            held: the state it starts with.
            role: as it announces itself.
            error_s: how far its clock is ahead.
            trains: False for one that announces its state and then does nothing by itself.
            founder: it may begin alone.
            conduct: how it behaves.
            ledger: bans that it knows; kept up to date.
            on_link: it measures its link, and tells.
        """
        run, authority_key = world().run, world().authority_key
        who, clock = identity(number), SimulatedClock(error_s=error_s)
        rules = AveragingRules(run, 32, codec_named("fp32"), 64, 5.0, 3.0, 30.0, trust=self._trust)
        leaf_pem = CertificateChain.from_bytes(sealer_of(number).certificate).leaf_pem
        presence = Presence(who.peer, "", leaf_pem, (), role, "cpu", 1_000_000, NOW, "test")
        bandwidth = 0 if role == "client" else 1_000_000
        ledger = Ledger() if ledger is None else ledger
        settings = NodeSettings(
            run, authority_key, rules, self._target_samples, presence, bandwidth, founder, ledger=ledger, conduct=conduct, on_link=on_link
        )
        store = MemoryStore(clock, _validator, self.records)
        transport = PortedTransport(SimulatedTransport(self.network, who.peer))
        handle = PeerHandle()
        node = Node(settings, sealer_of(number), who, transport, store, handle, clock)
        member = Trainee(number, node, handle, who.peer, samples_per_tick, held)
        member.ledger = ledger
        member.running = self._tasks.create_task(self._run(member))
        if trains:
            member.training = self._tasks.create_task(member.train())
        elif held:
            member.hold(held)
        self.members.append(member)
        return member

    @staticmethod
    async def _run(member: Trainee) -> None:
        """Its process: a member that is banned ends, and the others go on."""
        try:
            await member.node.run(lambda address: None)
        except Expelled as error:
            member.expelled = error
            if member.training:
                member.training.cancel()

    def kill(self, member: Trainee) -> None:
        """The process is gone, without a word."""
        self.network.crash(member.peer)
        for task in (member.running, member.training):
            if task:
                task.cancel()

    def leave(self, member: Trainee) -> None:
        """It stops as on Ctrl-C."""
        if member.training:
            member.training.cancel()
        member.handle.stop()

    async def until(self, condition: Callable[[], bool], limit_s: float = 120.0) -> float:
        """Let time pass until something holds; returns how long that took.

        Raises:
            AssertionError: it did not come to hold within the limit.
        """
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while not condition():
            assert loop.time() - began_s < limit_s, f"not within {limit_s:g} s: epochs {[member.epoch for member in self.members]}"
            await asyncio.sleep(TICK_S / 2)
        return loop.time() - began_s

    async def pass_time(self, duration_s: float) -> None:
        """Let time pass."""
        await asyncio.sleep(duration_s)
