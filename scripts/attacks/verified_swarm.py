"""A swarm that verifies: every member runs the real averaging code, on a simulated network, and attackers are banned where they are caught.

Honest members end every epoch with the same bytes, or the epoch counts as unequal. Whoever has other bytes, or ended its round with an
error, takes over what most of the honest members hold, as a member of a real run would fetch the state.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from blake3 import blake3

from peers.attacks.donors import POISON_DONOR
from peers.attacks.protocol import PROTOCOL_ATTACKS as PLAYED
from peers.attacks.protocol import attacker_named
from peers.attacks.ring import Ring
from peers.attacks.vectors import VECTOR_ATTACKS, vector_attack_named
from peers.averaging.averager import Averaged
from peers.averaging.context import AveragingRules
from peers.averaging.trust_rules import EPOCHS_WORTH, TrustRules
from peers.simulation import run_simulated
from peers.training_peer import Replayed, ReplayRequest
from protocols.aggregation import aggregator_named
from protocols.codecs import codec_named
from protocols.errors import RoundError
from protocols.ids import Epoch, PeerId, RunId
from protocols.messages import Join
from scripts.attacks.colluders import Colluders
from scripts.attacks.newcomers import Newcomers
from scripts.attacks.plain_swarm import CleanRuns
from scripts.attacks.scenario import NO_ATTACK, Progress, Row, Scenario, finite
from scripts.attacks.simulated_members import SimulatedMembers
from scripts.attacks.workload import D, Learner, Workload

_RUN = RunId(bytes(range(32)))
_BANDWIDTH_BYTES_PER_S = 1_000_000
_BESIDE_S = 1.0
_REMEMBERED_EPOCHS = 3


class VerifiedRunner:
    """The defence `verified`.

    Args:
        clean: runs to compare with.
    """

    def __init__(self, clean: CleanRuns) -> None:
        self._clean = clean
        self._scenario = clean.scenario

    def plays(self, attack: str) -> bool:
        """All that averaging or newcomers can see."""
        return attack in (NO_ATTACK, *VECTOR_ATTACKS, *PLAYED, POISON_DONOR)

    def epochs(self, attack: str) -> int:
        """How often `run` will report progress."""
        return self._scenario.epochs

    def run(self, attack: str, seed: int, auditors: int, progress: Progress) -> Row:
        """See `Runner.run`."""
        began_s = time.perf_counter()
        swarm = VerifiedSwarm(self._scenario, self._clean.workload(seed), attack, seed, auditors)
        run_simulated(swarm.live(progress), seed=seed, limit_s=1e7)
        return Row(
            attack,
            "verified",
            auditors,
            seed,
            finite(swarm.learner.workload_loss()),
            finite(self._clean.loss(seed)),
            swarm.epochs_to_last_ban,
            len(swarm.attackers),
            swarm.honest_banned,
            round(time.perf_counter() - began_s, 3),
            finite(swarm.twin.workload_loss()),
            dict(swarm.reasons),
            swarm.unequal_epochs,
        )


class _Trained(Learner):
    """A learner that knows what it learns."""

    def __init__(self, workload: Workload, epochs: int) -> None:
        super().__init__(workload, epochs)
        self._workload_of = workload

    def workload_loss(self) -> float:
        """Loss of its state."""
        return self._workload_of.loss(self.params)


class VerifiedSwarm:
    """One run.

    Args:
        scenario: who trains.
        workload: what.
        attack: what attackers do.
        seed: chooses the attackers, and everything random.
        auditors: drawn in each epoch.

    Attributes:
        learner: the honest members' state.
        twin: the state without an attack of the same members: a contributor leaves when it was banned here.
        attackers: those that are left.
        reasons: bans of attackers by offence; of honest members too, as "honest: ...".
    """

    def __init__(self, scenario: Scenario, workload: Workload, attack: str, seed: int, auditors: int) -> None:
        self._scenario = scenario
        self._workload = workload
        self._attack = attack
        self._members = scenario.members()
        chosen = () if attack == NO_ATTACK else scenario.attackers_of(seed)
        self._honest = tuple(peer for peer in self._members if peer not in chosen)
        self._seed = seed
        block_elems = -(-D // len(self._members))
        half = self._honest[: len(self._honest) // 2]
        rng = np.random.default_rng((seed, 2))
        self._ring = Ring(frozenset(chosen), frozenset(half), block_elems, rng, Epoch(scenario.attack_from))
        self._colluders = Colluders(vector_attack_named(attack), workload, seed) if attack in VECTOR_ATTACKS else None
        most = EPOCHS_WORTH * scenario.peers * scenario.samples
        trust = TrustRules(auditors=auditors, most_samples=most)
        self._rules = AveragingRules(_RUN, block_elems, codec_named("fp32"), 64, trust=trust)
        self._blocks = [slice(start, end) for start, end in pairwise([*range(0, D, block_elems), D])]
        self._states: dict[int, torch.Tensor] = {}
        self._replays: dict[ReplayRequest, torch.Tensor] = {}
        self.learner = _Trained(workload, scenario.epochs)
        self.twin = _Trained(workload, scenario.epochs)
        self.attackers = list(chosen)
        self._newcomers = Newcomers(self._members, chosen) if attack == POISON_DONOR else None
        self.reasons: Counter[str] = Counter()
        self.honest_banned = self.unequal_epochs = self.failures = 0
        self.epochs_to_last_ban: int | None = None

    async def live(self, progress: Progress) -> None:
        """All epochs.

        Raises:
            LocalProtocolError: a newcomer took over poison.
        """
        lying = () if self._newcomers else self.attackers  # who serves poison averages like everybody else
        conducts = {peer: attacker_named(self._attack, peer, self._ring) for peer in lying}
        beside = {peer: server.handlers() for peer, server in self._newcomers.servers.items()} if self._newcomers else {}
        async with SimulatedMembers(len(self._members), self._rules, self._seed, conducts, self._replay, beside) as swarm:
            for epoch in range(self._scenario.epochs):
                await self._epoch(swarm, epoch)
                if self._newcomers:
                    await self._newcomer(self._newcomers, swarm, epoch)
                progress()
        if self._newcomers:
            self._newcomers.check()
            self.reasons.update(self._newcomers.reasons())

    async def _newcomer(self, newcomers: Newcomers, swarm: SimulatedMembers, epoch: int) -> None:
        attacked = epoch >= self._scenario.attack_from
        newcomers.publish(epoch + 1, self.learner.params, poisoned=attacked)
        if attacked:
            await newcomers.visit(swarm, epoch)

    async def _epoch(self, swarm: SimulatedMembers, epoch: int) -> None:
        present = (*self._honest, *self.attackers)
        vectors = self._vectors(epoch, present)
        self._twin_epoch(epoch, present)
        outcomes = await asyncio.gather(*(self._average(swarm, peer, epoch, vectors[peer]) for peer in present))
        await swarm.settle(present, _BESIDE_S)
        self._apply([outcome for outcome in outcomes[: len(self._honest)] if isinstance(outcome, Averaged)], epoch)
        for peer in present:
            swarm.members[peer].averager.held_epoch(Epoch(epoch + 1))
        self._count_bans(swarm, epoch)

    def _vectors(self, epoch: int, present: tuple[PeerId, ...]) -> dict[PeerId, torch.Tensor]:
        """What everybody would honestly contribute; tells the ring what it makes of it."""
        params_D = self._states[epoch] = self.learner.params.clone()
        for old in [old for old in self._states if old + _REMEMBERED_EPOCHS <= epoch]:
            del self._states[old]
        self._replays = {replay: found for replay, found in self._replays.items() if replay.epoch + _REMEMBERED_EPOCHS > epoch}
        vectors = dict(zip(present, self._workload.gradients(epoch, present, params_D), strict=True))
        self._ring.vectors = dict(vectors)
        self._ring.weights = dict.fromkeys(present, float(self._workload.samples))
        if self._colluders:
            own = {peer: vectors[peer] for peer in self.attackers}
            honest = {peer: vectors[peer] for peer in self._honest}
            attacked = own and epoch >= self._scenario.attack_from
            self._ring.sent = self._colluders.contributions(epoch, params_D, own, honest) if attacked else {}
            self._colluders.remember(own)
        return vectors

    async def _average(self, swarm: SimulatedMembers, peer: PeerId, epoch: int, own_D: torch.Tensor) -> Averaged | RoundError:
        join = Join(
            Epoch(epoch), blake3(self._states[epoch].numpy().tobytes()).digest(), float(self._workload.samples), _BANDWIDTH_BYTES_PER_S
        )
        try:
            return await swarm.members[peer].averager.average_epoch(join, own_D)
        except RoundError as error:
            return error

    async def _replay(self, replay: ReplayRequest) -> Replayed | None:
        """Pure, so all members of the process share what one of them has computed."""
        state_D = self._states.get(replay.epoch)
        if state_D is None:
            return None
        key = replace(replay, state_hash=b"")
        if key not in self._replays:
            self._replays[key] = self._workload.gradient(replay.epoch, replay.peer, replay.first_sample, replay.samples, state_D)
        return Replayed(self._replays[key])

    def _apply(self, held: list[Averaged], epoch: int) -> None:
        """Everybody goes on with what most of the honest members hold."""
        votes = Counter(outcome.vector_D.numpy().tobytes() for outcome in held)
        self.failures += len(self._honest) - len(held)
        self.unequal_epochs += len(votes) != 1
        if votes:
            most, _ = votes.most_common(1)[0]
            self.learner.apply(torch.frombuffer(bytearray(most), dtype=torch.float32), epoch)

    def _twin_epoch(self, epoch: int, present: tuple[PeerId, ...]) -> None:
        vectors_PD = self._workload.gradients(epoch, [peer for peer in self._members if peer in present], self.twin.params)
        rule, weights = aggregator_named("centered_clip"), [1.0] * len(vectors_PD)
        self.twin.apply(torch.cat([rule.aggregate(list(vectors_PD[:, block]), weights).value_E for block in self._blocks]), epoch)

    def _count_bans(self, swarm: SimulatedMembers, epoch: int) -> None:
        """An attacker is out when all honest members say so; an honest member as soon as one of them does."""
        ledgers = [swarm.members[peer].ledger for peer in self._honest]
        for peer in [peer for peer in self.attackers if all(peer in ledger for ledger in ledgers)]:
            self.attackers.remove(peer)
            ban = ledgers[0].of(peer)
            self.reasons[ban.offence.value if ban else "?"] += 1
            self.epochs_to_last_ban = epoch - self._scenario.attack_from + 1 if not self.attackers else None
        framed = {peer for peer in self._honest for ledger in ledgers if peer in ledger}
        for peer in framed if len(framed) > self.honest_banned else ():
            self.reasons.update(f"honest: {ban.offence.value}" for ban in [ledger.of(peer) for ledger in ledgers][:1] if ban)
        self.honest_banned = len(framed)
