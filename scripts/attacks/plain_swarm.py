"""A swarm that verifies nothing: its only defence is the rule that makes one vector of many. Attackers stay for ever.

Every member reduces one block, as in a butterfly all-reduce, so each block is aggregated by itself. A part that is not finite is refused,
as a reducer refuses it, and the rest goes on without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from peers.attacks.reducers import LIE
from peers.attacks.vectors import VECTOR_ATTACKS, vector_attack_named
from protocols.aggregation import Aggregator, NonFinitePart, aggregator_named
from protocols.ids import PeerId
from scripts.attacks.colluders import Colluders
from scripts.attacks.scenario import NO_ATTACK, Progress, Row, Scenario, finite
from scripts.attacks.workload import D, Learner, Workload, load_text

"""What a lying reducer multiplies its block with."""

Rules = Callable[[int], Aggregator]
"""(how many of the parts may be attackers') -> the rule for it."""

_REDUCER_ATTACKS = ("lying_reducer", "two_faced_reducer")


class CleanRuns:
    """Runs without an attack and with the plain mean of all members, to compare others with; one for each seed, when first asked for.

    Args:
        scenario: who trains.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.text = load_text()
        self._losses: dict[int, float] = {}

    def workload(self, seed: int) -> Workload:
        """What is trained in the runs with this seed."""
        return Workload(self.text, seed, self.scenario.samples)

    def loss(self, seed: int) -> float:
        """Loss at the end."""
        if seed not in self._losses:
            swarm = PlainSwarm(self.scenario, self.workload(seed), lambda _: aggregator_named("mean"), NO_ATTACK, seed)
            for epoch in range(self.scenario.epochs):
                swarm.live(epoch)
            self._losses[seed] = swarm.loss()
        return self._losses[seed]


class PlainRunner:
    """A defence without verification.

    Args:
        defence: what the rows call it.
        rules: make one block of many.
        clean: runs to compare with.
    """

    def __init__(self, defence: str, rules: Rules, clean: CleanRuns) -> None:
        self._defence = defence
        self._rules = rules
        self._clean = clean
        self._scenario = clean.scenario

    def plays(self, attack: str) -> bool:
        """Whether the attack means anything where nobody verifies."""
        return attack in (NO_ATTACK, *VECTOR_ATTACKS, *_REDUCER_ATTACKS)

    def epochs(self, attack: str) -> int:
        """How often `run` will report progress."""
        return self._scenario.epochs

    def run(self, attack: str, seed: int, auditors: int, progress: Progress) -> Row:
        """See `Runner.run`; there are no auditors."""
        began_s = time.perf_counter()
        swarm = PlainSwarm(self._scenario, self._clean.workload(seed), self._rules, attack, seed)
        for epoch in range(self._scenario.epochs):
            swarm.live(epoch)
            progress()
        left = 0 if attack == NO_ATTACK else self._scenario.attackers
        loss, seconds = swarm.loss(), round(time.perf_counter() - began_s, 3)
        return Row(attack, self._defence, 0, seed, finite(loss), finite(self._clean.loss(seed)), None, left, 0, seconds)


class PlainSwarm:
    """Members that train together and believe each other.

    Two-faced reducers split the honest members: the first half gets the truth and the other half lies, so each half has a state of its own.

    Args:
        scenario: who trains.
        workload: what.
        rules: make one block of many.
        attack: what attackers do.
        seed: chooses the attackers.
    """

    def __init__(self, scenario: Scenario, workload: Workload, rules: Rules, attack: str, seed: int) -> None:
        self._scenario = scenario
        self._workload = workload
        self._rules = rules
        self._attack = attack
        self._members = scenario.members()
        self._attackers = () if attack == NO_ATTACK else scenario.attackers_of(seed)
        self._honest = tuple(peer for peer in self._members if peer not in self._attackers)
        self._colluders = Colluders(vector_attack_named(attack), workload, seed) if attack in VECTOR_ATTACKS else None
        self._faces = [Learner(workload, scenario.epochs) for _ in range(2 if attack == "two_faced_reducer" else 1)]

    def loss(self) -> float:
        """Mean over the states that honest members hold."""
        return sum(self._workload.loss(face.params) for face in self._faces) / len(self._faces)

    def live(self, epoch: int) -> None:
        """One epoch."""
        attacked = epoch >= self._scenario.attack_from
        vectors = self._honest_vectors(epoch)
        weights = dict.fromkeys(self._members, float(self._workload.samples))
        if self._colluders:
            own = {peer: vectors[peer] for peer in self._attackers}
            if attacked:
                honest = {peer: vectors[peer] for peer in self._honest}
                for peer, (vector_D, weight) in self._colluders.contributions(epoch, self._faces[0].params, own, honest).items():
                    vectors[peer], weights[peer] = vector_D, weight
            self._colluders.remember(own)
        truth_D = self._reduced([vectors[peer] for peer in self._members], [weights[peer] for peer in self._members])
        lie_D = self._lied(truth_D) if attacked and self._attack in _REDUCER_ATTACKS else truth_D
        self._faces[-1].apply(lie_D, epoch)
        if len(self._faces) > 1:
            self._faces[0].apply(truth_D, epoch)

    def _honest_vectors(self, epoch: int) -> dict[PeerId, torch.Tensor]:
        """What every member, attackers too, would honestly contribute; attackers hold the first state."""
        half = len(self._honest) // 2 if len(self._faces) > 1 else len(self._honest)
        first, second = (*self._honest[:half], *self._attackers), self._honest[half:]
        vectors = dict(zip(first, self._workload.gradients(epoch, first, self._faces[0].params), strict=True))
        vectors.update(zip(second, self._workload.gradients(epoch, second, self._faces[-1].params), strict=True))
        return vectors

    def _reduced(self, vectors_GD: Sequence[torch.Tensor], weights_G: Sequence[float]) -> torch.Tensor:
        return torch.cat([self._reduced_block([vector_D[block] for vector_D in vectors_GD], weights_G) for block in self._blocks()])

    def _reduced_block(self, parts_GE: list[torch.Tensor], weights_G: Sequence[float]) -> torch.Tensor:
        weights = list(weights_G)
        while True:
            refused = len(weights_G) - len(weights)
            try:
                return self._rules(self._scenario.attackers - refused).aggregate(parts_GE, weights).value_E
            except NonFinitePart as error:
                del parts_GE[error.part], weights[error.part]

    def _lied(self, truth_D: torch.Tensor) -> torch.Tensor:
        """The same with the blocks of attackers changed: member i reduces block i."""
        lie_D = truth_D.clone()
        for peer, block in zip(self._members, self._blocks(), strict=True):
            if peer in self._attackers:
                lie_D[block] *= LIE
        return lie_D

    def _blocks(self) -> list[slice]:
        bounds = [D * number // len(self._members) for number in range(len(self._members) + 1)]
        return [slice(start, end) for start, end in pairwise(bounds)]
