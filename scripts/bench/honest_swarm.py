"""A small swarm of honest members to which much happens. Read `HonestSwarm.run`."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from blake3 import blake3

from peers.averaging.averager import Averager, RoundDone
from peers.averaging.context import AveragingRules, MemberContext
from peers.averaging.trust_rules import TrustRules
from peers.interfaces import Endpoint
from peers.testing import FixedDirectory, KeyNotary, make_key
from peers.training_peer import Replayed, ReplayRequest
from peers.transport.simulated import LinkSpec, SimulatedNetwork, SimulatedTransport
from protocols.codecs import codec_named
from protocols.errors import RoundError
from protocols.ids import Epoch, PeerId, RunId
from protocols.messages import Join
from protocols.trust.ledger import Ledger
from protocols.trust.offences import Offence

_LINK = LinkSpec(latency_s=0.03, jitter_s=0.01, bandwidth_bytes_per_s=1e7, loss=0.01)
_DIES, _LATE = 0.03, 0.08
_LATEST_S, _ROUND_S, _PAUSE_S = 6.0, 2.0, 4.0
_STUCK_AFTER_S = 600.0
_LOOKED_INTO = frozenset({Offence.CONTRIBUTION, Offence.CHECK})


@dataclass(frozen=True, slots=True)
class Case:
    """What a swarm is like.

    Args:
        codec, aggregator: names.
        members: how many.
        max_group: most of them in a group; with more members there are two rounds an epoch.
        bucket: parts averaged before the aggregator sees them.
        epochs: that it lives.
        seed: of everything random.
    """

    codec: str
    aggregator: str
    members: int
    max_group: int
    bucket: int
    epochs: int
    seed: int


@dataclass
class Found:
    """What happened; adds up."""

    epochs: int = 0
    member_epochs: int = 0
    bans: int = 0
    judgements: int = 0
    accusations_upheld: int = 0
    audits_passed: int = 0
    verified_rounds: int = 0
    unverified_rounds: int = 0
    crashed: int = 0
    late: int = 0
    stuck: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    offences: Counter[str] = field(default_factory=Counter)

    def __iadd__(self, other: Found) -> Found:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}


@dataclass(eq=False)
class _Member:
    number: int
    notary: KeyNotary
    directory: FixedDirectory
    ledger: Ledger = field(default_factory=Ledger)
    process: asyncio.Task[None] | None = None
    epoch_task: asyncio.Task[None] | None = None
    averager: Averager | None = None


class HonestSwarm:
    """Members that live, come late, die and come back.

    Args:
        case: what the swarm is like.
        progress: called after every epoch.
    """

    def __init__(self, case: Case, progress: Callable[[], None]) -> None:
        self._case, self._progress = case, progress
        self._dice = random.Random(case.seed)
        self._elems = self._dice.choice((40, 500, 3000))
        trust = TrustRules(aggregator=case.aggregator, bucket=case.bucket, auditors=max(1, case.members // 2))
        run = RunId(blake3(f"honest {case.seed}".encode()).digest())
        block_elems = max(1, self._elems // self._dice.choice((1, 4, 9)))
        self._rules = AveragingRules(run, block_elems, codec_named(case.codec), case.max_group, trust=trust)
        self._network = SimulatedNetwork(case.seed, _LINK)
        notaries = [KeyNotary(make_key(number)) for number in range(case.members)]
        endpoints = {notary.peer: Endpoint(notary.peer, str(notary.peer)) for notary in notaries}
        self._members = [_Member(i, notary, FixedDirectory(notary.peer, endpoints)) for i, notary in enumerate(notaries)]
        self._vectors: dict[tuple[int, PeerId], tuple[torch.Tensor, float]] = {}
        self.found = Found()

    async def run(self) -> Found:
        """All epochs."""
        async with asyncio.TaskGroup() as tasks:
            for epoch in range(self._case.epochs):
                await self._epoch(Epoch(epoch), tasks)
                self._progress()
            for member in self._members:
                self._stop(member)
        self.found.epochs = self._case.epochs
        return self.found

    async def _epoch(self, epoch: Epoch, tasks: asyncio.TaskGroup) -> None:
        self._draw_contributions(epoch)
        for member in self._members:
            member.directory.suspects.clear()
            if member.process is None:
                self._network.restart(member.notary.peer)
                member.process = tasks.create_task(self._live(member, epoch))
        await asyncio.sleep(0.1)
        for member in self._members:
            member.epoch_task = tasks.create_task(self._average(member, epoch))
            if self._dice.random() < _DIES and len(self._members) > 1:
                asyncio.get_running_loop().call_later(self._dice.uniform(0, _ROUND_S), self._die, member)
        _, stuck = await asyncio.wait([m.epoch_task for m in self._members if m.epoch_task], timeout=_STUCK_AFTER_S)
        self.found.stuck += len(stuck)
        await asyncio.sleep(_PAUSE_S)
        for member in self._members:
            if member.averager:
                member.averager.held_epoch(Epoch(epoch + 1))

    # What members bring

    def _draw_contributions(self, epoch: Epoch) -> None:
        dice, generator = self._dice, torch.Generator().manual_seed(self._dice.randrange(2**31))
        common_D = torch.randn(self._elems, generator=generator)
        kind = dice.choice(("alike", "noisy", "noisy", "equal", "apart", "lengths", "zeros"))
        self._vectors = {key: known for key, known in self._vectors.items() if key[0] + 2 > epoch}
        for member in self._members:
            own_D = torch.randn(self._elems, generator=generator)
            vector_D = {
                "alike": common_D + 0.01 * own_D,
                "noisy": common_D + own_D,
                "equal": common_D.clone(),
                "apart": own_D,
                "lengths": own_D * 10.0 ** dice.uniform(-8, 4),
                "zeros": own_D * float(dice.random() < 0.5),
            }[kind]
            if dice.random() < 0.2:
                vector_D[: self._elems // 2] = 0.0
            self._vectors[epoch, member.notary.peer] = vector_D, float(round(10 ** dice.uniform(0, 2)))

    async def _replay(self, replay: ReplayRequest) -> Replayed | None:
        """The same on other hardware."""
        known = self._vectors.get((replay.epoch, replay.peer))
        if known is None:
            return None
        vector_D, _ = known
        other_D = torch.randn(vector_D.numel(), generator=torch.Generator().manual_seed(self._dice.randrange(2**31)))
        size = 10.0 ** self._dice.uniform(-6, -2.3)
        return Replayed(vector_D + other_D * (size * vector_D.norm() / other_D.norm()))

    # A member

    async def _live(self, member: _Member, epoch: Epoch) -> None:
        async with asyncio.TaskGroup() as tasks:
            transport = SimulatedTransport(self._network, member.notary.peer)
            context = MemberContext(
                member.notary.peer, transport, member.directory, member.notary, self._rules, tasks, ledger=member.ledger,
                random_bytes=self._dice.randbytes,
            )  # fmt: skip
            member.averager = Averager(context, lambda epoch: None, self._observe, self._replay)
            member.averager.held_epoch(epoch)
            async with transport.serve(member.averager.handlers):
                await asyncio.Event().wait()

    def _observe(self, done: RoundDone) -> None:
        verified = done.case is not None and done.case.verified is not None
        self.found.verified_rounds += verified
        self.found.unverified_rounds += done.included_us and not verified

    async def _average(self, member: _Member, epoch: Epoch) -> None:
        self.found.member_epochs += 1
        if self._dice.random() < _LATE:
            await asyncio.sleep(self._dice.uniform(0, _LATEST_S))
        vector_D, weight = self._vectors[epoch, member.notary.peer]
        if member.averager is None:
            return
        try:
            averaged = await member.averager.average_epoch(Join(epoch, bytes(32), weight, 1_000_000), vector_D)
        except RoundError as error:
            self.found.failures[type(error).__name__] += 1
        else:
            self.found.late += not averaged.included_us

    def _die(self, member: _Member) -> None:
        if member.process:
            self.found.crashed += 1
            self._network.crash(member.notary.peer)
            self._stop(member)

    def _stop(self, member: _Member) -> None:
        """End its process; what it said of others counts."""
        guarding = member.averager.guarding if member.averager else None
        judged = guarding.court.judged if guarding else frozenset()
        self.found.judgements += len(judged)
        self.found.accusations_upheld += sum(offence in _LOOKED_INTO for _, offence in judged)
        self.found.offences.update(offence.value for _, offence in judged)
        self.found.audits_passed += sum(guarding.auditing.passed.values()) if guarding else 0
        self.found.bans += len(member.ledger.bans)
        for task in (member.process, member.epoch_task):
            if task:
                task.cancel()
        member.process = member.averager = None
