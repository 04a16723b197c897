"""Members that live, average and die, on virtual time. Read `SimulatedSwarm.run`, then `_live`, the life of one member."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import torch
from blake3 import blake3

from peers.averaging.averager import Averaged, Averager, RoundDone
from peers.averaging.context import AveragingRules, MemberContext
from peers.averaging.trust_rules import EPOCHS_WORTH, TrustRules
from peers.bandwidth import Bandwidth
from peers.conduct import HONEST
from peers.interfaces import Endpoint
from peers.node import LEDGERS_READ
from peers.testing import FixedDirectory, KeyNotary, make_key
from peers.training_peer import Replayed, ReplayRequest
from peers.transport.simulated import SimulatedNetwork, SimulatedTransport
from protocols.codecs import codec_named
from protocols.errors import RoundError
from protocols.ids import Epoch, PeerId, RunId
from protocols.messages import Join
from scripts.simulation.attackers import Attackers
from scripts.simulation.bans import Bans
from scripts.simulation.figures import EpochFigures, Figures
from scripts.simulation.member import Member
from scripts.simulation.scenario import Scenario

STUCK_AFTER_S = 120.0
"""Virtual seconds a round: no deadline of ours is that long. Whoever has not ended by then is stuck."""

_START_SPREAD_S = 0.1
"""Members are ready for an epoch within this time."""

_PAUSE_S = 2.0
"""Between epochs members compute."""

_FIRST_GUESS_S = 1.0
"""How long a round takes, as long as none has been seen: to let members die in the middle of it."""


class SimulatedSwarm:
    """All members and what happens to them.

    Args:
        scenario: what is simulated.
        progress: called with the number of rounds that a member has come out of, again and again.
    """

    def __init__(self, scenario: Scenario, progress: Callable[[int], None]) -> None:
        self._scenario = scenario
        self._progress = progress
        self._rounds = len(scenario.grid.sides)
        self._network = SimulatedNetwork(scenario.seed)
        run = RunId(blake3(f"simulation {scenario.seed}".encode()).digest())
        trust = TrustRules(auditors=scenario.auditors, most_samples=EPOCHS_WORTH * scenario.all_samples) if scenario.auditors else None
        self._rules = AveragingRules(run, -(-scenario.elems // scenario.blocks), codec_named("fp32"), scenario.max_group, trust=trust)
        peers = [KeyNotary(make_key(number)).peer for number in range(scenario.peers)]
        self._numbers = {peer: number for number, peer in enumerate(peers)}
        self._attackers = Attackers(scenario, run, peers)
        self._bans = Bans({peers[number]: name for number, name in scenario.attacking.items()})
        self.figures = Figures(self._bans if trust else None)
        self._members = self._assembled()
        self._begun = [asyncio.Event() for _ in range(scenario.epochs)]
        self._awaited: dict[Member, None] = {}
        self._all_ended = asyncio.Event()
        self._epoch_figures = EpochFigures(self._rounds)
        self._typical_s = _FIRST_GUESS_S
        self._fates, self._lags = scenario.dice("fates"), scenario.dice("lags")
        self._coins, self._meetings = scenario.dice("coins"), scenario.dice("meetings")

    def _assembled(self) -> list[Member]:
        scenario = self._scenario
        notaries = [KeyNotary(make_key(number)) for number in range(scenario.peers)]
        endpoints = {notary.peer: Endpoint(notary.peer, str(notary.peer)) for notary in notaries}
        undialable = frozenset(notaries[number].peer for number in scenario.undialable)
        members = []
        for number, (notary, link) in enumerate(zip(notaries, scenario.links(), strict=True)):
            self._network.set_host(notary.peer, link)
            bandwidth = 0 if notary.peer in undialable else int(link.bandwidth_bytes_per_s)
            conduct = self._attackers.conducts.get(notary.peer, HONEST)
            members.append(Member(number, notary, FixedDirectory(notary.peer, endpoints, undialable), bandwidth, conduct))
        return members

    async def run(self) -> Figures:
        """Let it live through all epochs."""
        async with asyncio.TaskGroup() as processes:
            for epoch in range(self._scenario.epochs):
                await self._begin(Epoch(epoch), processes)
                await self._wait_for_everybody()
                self._conclude(epoch)
                await asyncio.sleep(_PAUSE_S)
                if self._scenario.auditors and self._judged(epoch):
                    break
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
            if member.expelled:
                continue
            if scenario.auditors:
                member.directory.suspects.clear()  # whoever lives has announced itself meanwhile
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
        if scenario.attackers:
            self._prepare_attackers(epoch)
        self._epoch_figures = EpochFigures(self._rounds)
        self._awaited = dict.fromkeys(member for member in self._members if member.honest)
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
        survivors = {member.number: member.contribution_D for member in self._members if member.process is not None and member.honest}
        self.figures.relative_errors += self._epoch_figures.relative_errors(survivors)
        if self.figures.round_s:
            self._typical_s = float(np.median(self.figures.round_s[-self._scenario.peers :]))

    # Attackers

    def _prepare_attackers(self, epoch: Epoch) -> None:
        banned = frozenset(member.peer for member in self._members if member.expelled)
        self._attackers.prepare(epoch, banned, {m.peer: torch.from_numpy(m.contribution_D) for m in self._members if not m.expelled})

    def _judged(self, epoch: int) -> bool:
        """Note who is banned. Whether all attackers are out, for an epoch already, so that nothing more will come of it."""
        honest = {member.peer: member.ledger for member in self._members if member.honest and member.process}
        out = self._bans.look(epoch, honest)
        for member in self._members:
            if member.peer in out:
                self.figures.trace.note(self._now_s(), "banned", member.number)
                member.expelled = True
                self._kill(member)
        self.figures.epochs = epoch + 1
        return bool(self._attackers.conducts) and not self._bans.attackers and not out

    async def _replay(self, replay: ReplayRequest) -> Replayed | None:
        """What a member should have contributed: everybody can know it."""
        return Replayed(torch.from_numpy(self._scenario.contribution(replay.epoch, self._numbers[replay.peer], replay.samples)))

    # A member

    async def _live(self, member: Member, epoch: Epoch) -> None:
        """A process of a member, from its first epoch until it is cancelled."""
        transport = SimulatedTransport(self._network, member.peer)
        async with asyncio.TaskGroup() as tasks:
            dialable, bandwidth = member.bandwidth_bytes_per_s > 0, Bandwidth()
            peer, directory, notary = member.peer, member.directory, member.notary
            context = MemberContext(
                peer, transport, directory, notary, self._rules, tasks, dialable=dialable, bandwidth=bandwidth, ledger=member.ledger,
                conduct=member.conduct, random_bytes=self._coins.randbytes,
            )  # fmt: skip
            averager = Averager(context, lambda epoch: None, lambda done: self._round_done(member, done), self._replay)
            averager.held_epoch(epoch)
            async with transport.serve(averager.handlers):
                if averager.guarding and epoch:
                    tasks.create_task(averager.guarding.court.fetch_ledger(self._first_met(member)), name="bans")
                for number in range(epoch, self._scenario.epochs):
                    await self._begun[number].wait()
                    await asyncio.sleep(self._lags.uniform(0.0, _START_SPREAD_S))
                    outcome = await self._average(member, averager, Epoch(number))
                    self._ended(member, outcome)
                    averager.held_epoch(Epoch(number + 1))
                await asyncio.Event().wait()

    async def _average(self, member: Member, averager: Averager, epoch: Epoch) -> Averaged | RoundError:
        state_hash = blake3(epoch.to_bytes(8, "little")).digest()
        join = Join(epoch, state_hash, self._scenario.weight(member.number), member.bandwidth_bytes_per_s)
        self._arm(member, 0)
        try:
            return await averager.average_epoch(join, torch.from_numpy(member.contribution_D))
        except RoundError as error:
            return error

    def _arm(self, member: Member, index: int) -> None:
        """The member enters this round; if it is to die in it, let that happen at some moment of it."""
        if member.dies_in_round == index:
            asyncio.get_running_loop().call_later(member.dies_after * self._typical_s, self._die, member, member.process)

    def _die(self, member: Member, process: asyncio.Task[None] | None) -> None:
        if member.process is process:
            self.figures.member_died(self._now_s(), member.number, member.rounds_done)
            self._kill(member)

    def _kill(self, member: Member) -> None:
        self._network.crash(member.peer)
        if member.process:
            member.process.cancel()
        member.process = None
        self._no_longer_awaited(member)

    def _first_met(self, member: Member) -> list[PeerId]:
        """Whom a member asks for bans when it is back."""
        others = [other.peer for other in self._members if other is not member and other.process and other.bandwidth_bytes_per_s]
        return self._meetings.sample(others, min(LEDGERS_READ, len(others)))

    def _round_done(self, member: Member, done: RoundDone) -> None:
        index = done.round_id.index
        if not member.honest:
            member.rounds_done = index + 1
            self._arm(member, index + 1)
            return
        name = self._epoch_figures.hold(member.number, index, done.vector_D.numpy(), done.commit.weight)
        self.figures.round_done(self._now_s(), member.number, done, name)
        member.rounds_done = index + 1
        self._progress(1)
        self._arm(member, index + 1)

    def _ended(self, member: Member, outcome: Averaged | RoundError) -> None:
        if not member.honest:
            return
        if isinstance(outcome, Averaged):
            self._epoch_figures.hold(member.number, self._rounds - 1, outcome.vector_D.numpy(), outcome.weight)
        self.figures.epoch_done(self._now_s(), member.number, self._rounds, outcome)
        self._no_longer_awaited(member)

    def _no_longer_awaited(self, member: Member) -> None:
        self._awaited.pop(member, None)
        if not self._awaited:
            self._all_ended.set()

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
