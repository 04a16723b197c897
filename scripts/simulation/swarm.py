"""Members that live, average and die, on virtual time. Read `SimulatedSwarm.run`, then `_live`, the life of one member."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from blake3 import blake3

from peers.averaging.averager import Averaged, Averager, RoundDone
from peers.averaging.context import AveragingRules, MemberContext
from peers.bandwidth import Bandwidth
from peers.interfaces import Endpoint
from peers.testing import FixedDirectory, KeyNotary, make_key
from peers.transport.simulated import SimulatedNetwork, SimulatedTransport
from protocols.codecs import codec_named
from protocols.errors import RoundError
from protocols.ids import Epoch, PeerId, RunId
from protocols.messages import Join
from scripts.simulation.figures import EpochFigures, Figures, Vector
from scripts.simulation.scenario import Scenario

STUCK_AFTER_S = 120.0
"""Virtual seconds a round: no deadline of ours is that long. Whoever has not ended by then is stuck."""

_START_SPREAD_S = 0.1
"""Members are ready for an epoch within this time."""

_PAUSE_S = 2.0
"""Between epochs members compute."""

_FIRST_GUESS_S = 1.0
"""How long a round takes, as long as none has been seen: to let members die in the middle of it."""


@dataclass(eq=False)
class _Member:
    """One member; its process may die and start again.

    Args:
        number: from 0.
        notary: its key.
        directory: its view.
        bandwidth_bytes_per_s: of its link; 0 if nobody can dial it.
    """

    number: int
    notary: KeyNotary
    directory: FixedDirectory
    bandwidth_bytes_per_s: int
    process: asyncio.Task[None] | None = None
    rounds_done: int = 0
    dies_in_round: int | None = None
    dies_after: float = 0.0
    contribution_D: Vector = field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def peer(self) -> PeerId:
        """Its identity."""
        return self.notary.peer


class SimulatedSwarm:
    """All members and what happens to them.

    Args:
        scenario: what is simulated.
        progress: called with the number of rounds that a member has come out of, again and again.
    """

    def __init__(self, scenario: Scenario, progress: Callable[[int], None]) -> None:
        self.figures = Figures()
        self._scenario = scenario
        self._progress = progress
        self._rounds = len(scenario.grid.sides)
        self._network = SimulatedNetwork(scenario.seed)
        run = RunId(blake3(f"simulation {scenario.seed}".encode()).digest())
        self._rules = AveragingRules(run, -(-scenario.elems // scenario.blocks), codec_named("fp32"), scenario.max_group)
        self._members = self._assembled()
        self._begun = [asyncio.Event() for _ in range(scenario.epochs)]
        self._awaited: dict[_Member, None] = {}
        self._all_ended = asyncio.Event()
        self._epoch_figures = EpochFigures(self._rounds)
        self._typical_s = _FIRST_GUESS_S
        self._fates, self._lags = scenario.dice("fates"), scenario.dice("lags")

    def _assembled(self) -> list[_Member]:
        scenario = self._scenario
        notaries = [KeyNotary(make_key(number)) for number in range(scenario.peers)]
        endpoints = {notary.peer: Endpoint(notary.peer, str(notary.peer)) for notary in notaries}
        undialable = frozenset(notaries[number].peer for number in scenario.undialable)
        members = []
        for number, (notary, link) in enumerate(zip(notaries, scenario.links(), strict=True)):
            self._network.set_host(notary.peer, link)
            bandwidth = 0 if notary.peer in undialable else int(link.bandwidth_bytes_per_s)
            members.append(_Member(number, notary, FixedDirectory(notary.peer, endpoints, undialable), bandwidth))
        return members

    async def run(self) -> Figures:
        """Let it live through all epochs."""
        async with asyncio.TaskGroup() as processes:
            for epoch in range(self._scenario.epochs):
                await self._begin(Epoch(epoch), processes)
                await self._wait_for_everybody()
                self._conclude(epoch)
                await asyncio.sleep(_PAUSE_S)
            for member in self._members:
                if member.process:
                    member.process.cancel()
        self.figures.virtual_s = self._now_s()
        return self.figures

    # An epoch

    async def _begin(self, epoch: Epoch, processes: asyncio.TaskGroup) -> None:
        """Bring back who has died, decide who dies this time, and start."""
        scenario = self._scenario
        for member in self._members:
            if member.process is None:
                self._network.restart(member.peer)
                for other in self._members if epoch else ():
                    other.directory.suspects.discard(member.peer)
                member.process = processes.create_task(self._live(member, epoch), name=f"member {member.number}")
            member.rounds_done, member.dies_in_round = 0, None
            fates = [self._fates.random() < scenario.crash_rate for _ in range(self._rounds)]
            member.dies_in_round = fates.index(True) if True in fates else None
            member.dies_after = self._fates.random()
            member.contribution_D = scenario.contribution(epoch, member.number)
        self._epoch_figures = EpochFigures(self._rounds)
        self._awaited = dict.fromkeys(self._members)
        self._all_ended.clear()
        self._begun[epoch].set()

    async def _wait_for_everybody(self) -> None:
        try:
            async with asyncio.timeout(STUCK_AFTER_S * self._rounds):
                await self._all_ended.wait()
        except TimeoutError:
            for member in list(self._awaited):
                self.figures.member_stuck(self._now_s(), member.number, self._rounds)
                self._kill(member)

    def _conclude(self, epoch: int) -> None:
        survivors = {member.number: member.contribution_D for member in self._members if member.process is not None}
        self.figures.relative_errors += self._epoch_figures.relative_errors(survivors)
        if self.figures.round_s:
            self._typical_s = float(np.median(self.figures.round_s[-self._scenario.peers :]))

    # A member

    async def _live(self, member: _Member, epoch: Epoch) -> None:
        """A process of a member, from its first epoch until it is cancelled."""
        transport = SimulatedTransport(self._network, member.peer)
        async with asyncio.TaskGroup() as tasks:
            dialable, bandwidth = member.bandwidth_bytes_per_s > 0, Bandwidth()
            peer, directory, notary = member.peer, member.directory, member.notary
            context = MemberContext(peer, transport, directory, notary, self._rules, tasks, dialable=dialable, bandwidth=bandwidth)
            averager = Averager(context, lambda epoch: None, lambda done: self._round_done(member, done))
            averager.held_epoch(epoch)
            async with transport.serve(averager.handlers):
                for number in range(epoch, self._scenario.epochs):
                    await self._begun[number].wait()
                    await asyncio.sleep(self._lags.uniform(0.0, _START_SPREAD_S))
                    outcome = await self._average(member, averager, Epoch(number))
                    self._ended(member, outcome)
                    averager.held_epoch(Epoch(number + 1))
                await asyncio.Event().wait()

    async def _average(self, member: _Member, averager: Averager, epoch: Epoch) -> Averaged | RoundError:
        state_hash = blake3(epoch.to_bytes(8, "little")).digest()
        join = Join(epoch, state_hash, self._scenario.weight(member.number), member.bandwidth_bytes_per_s)
        self._arm(member, 0)
        try:
            return await averager.average_epoch(join, torch.from_numpy(member.contribution_D))
        except RoundError as error:
            return error

    def _arm(self, member: _Member, index: int) -> None:
        """The member enters this round; if it is to die in it, let that happen at some moment of it."""
        if member.dies_in_round == index:
            asyncio.get_running_loop().call_later(member.dies_after * self._typical_s, self._die, member, member.process)

    def _die(self, member: _Member, process: asyncio.Task[None] | None) -> None:
        if member.process is process:
            self.figures.member_died(self._now_s(), member.number, member.rounds_done)
            self._kill(member)

    def _kill(self, member: _Member) -> None:
        self._network.crash(member.peer)
        if member.process:
            member.process.cancel()
        member.process = None
        self._no_longer_awaited(member)

    def _round_done(self, member: _Member, done: RoundDone) -> None:
        index = done.round_id.index
        name = self._epoch_figures.hold(member.number, index, done.vector_D.numpy(), done.commit.weight)
        self.figures.round_done(self._now_s(), member.number, done, name)
        member.rounds_done = index + 1
        self._progress(1)
        self._arm(member, index + 1)

    def _ended(self, member: _Member, outcome: Averaged | RoundError) -> None:
        if isinstance(outcome, Averaged):
            self._epoch_figures.hold(member.number, self._rounds - 1, outcome.vector_D.numpy(), outcome.weight)
        self.figures.epoch_done(self._now_s(), member.number, self._rounds, outcome)
        self._no_longer_awaited(member)

    def _no_longer_awaited(self, member: _Member) -> None:
        self._awaited.pop(member, None)
        if not self._awaited:
            self._all_ended.set()

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
