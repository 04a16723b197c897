"""Groups of members of each role, and what their average must be, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from peers.averaging.averager import Averaged
from peers.averaging.context import AveragingRules
from protocols.aggregation.mean import weighted_mean
from protocols.errors import RoundError
from tests.helpers.averaging_swarm import SimulatedSwarm, contribution, same_bytes
from tests.helpers.faults import members_of_plan

FASTEST_BYTES_PER_S = 4_000_000


class Part(Enum):
    """What a member does in a group."""

    TRAINER = "brings numbers and reduces"
    CLIENT = "brings numbers and cannot be dialled"
    HELPER = "reduces and brings nothing"


@dataclass(frozen=True)
class Cast:
    """A group.

    Args:
        parts: of its members, in the order of their numbers.
        weights: samples that each would bring.
        fractions: bandwidth that each would offer for reducing, as fractions of one number.
    """

    parts: tuple[Part, ...]
    weights: tuple[float, ...]
    fractions: tuple[float, ...]

    @property
    def brought(self) -> list[float]:
        """Weights: a helper brings nothing."""
        return [0.0 if part is Part.HELPER else weight for part, weight in zip(self.parts, self.weights, strict=True)]

    @property
    def bandwidths(self) -> list[int]:
        """Bandwidths: a client reduces nothing."""
        offered = zip(self.parts, self.fractions, strict=True)
        return [0 if part is Part.CLIENT else round(fraction * FASTEST_BYTES_PER_S) for part, fraction in offered]

    @property
    def can_average(self) -> bool:
        """Whether somebody brings something and somebody reduces."""
        return any(self.brought) and any(self.bandwidths)


def clients_of(parts: Sequence[Part]) -> list[int]:
    """Numbers of the members that nobody can dial."""
    return [number for number, part in enumerate(parts) if part is Part.CLIENT]


class BringingSwarm(SimulatedSwarm):
    """A swarm whose members bring what they are given.

    Args:
        brought: the vector of each member.
        averaging, clients: see `SimulatedSwarm`.
    """

    def __init__(self, brought: Sequence[torch.Tensor], *, averaging: AveragingRules | None = None, clients: Sequence[int] = ()) -> None:
        super().__init__(len(brought), averaging=averaging, clients=clients)
        self.brought = brought

    def vector(self, number: int, size_elems: int) -> torch.Tensor:
        return self.brought[number]


def check_untouched(vectors: Sequence[torch.Tensor]) -> None:
    """What members have brought has not changed: what they get is another vector."""
    for number, vector_D in enumerate(vectors):
        assert torch.equal(vector_D, contribution(number, vector_D.numel()))


async def play_round(swarm: SimulatedSwarm, cast: Cast, size_elems: int, epoch: int) -> list[Averaged | RoundError]:
    """Let a group average once."""
    return await swarm.round(size_elems, epoch=epoch, weights=cast.brought, bandwidths=cast.bandwidths)


def check_round(swarm: SimulatedSwarm, cast: Cast, outcomes: Sequence[Averaged | RoundError], size_elems: int) -> None:
    """Everybody holds the bytes of the weighted mean, or nobody holds anything."""
    if not cast.can_average:
        assert all(isinstance(outcome, RoundError) for outcome in outcomes), outcomes
        return
    done = [outcome for outcome in outcomes if isinstance(outcome, Averaged)]
    assert len(done) == len(cast.parts), outcomes
    assert same_bytes(done)
    number_of = {member.peer: number for number, member in enumerate(swarm.members)}
    in_order = [number_of[peer] for peer in members_of_plan(swarm.members[0])]
    senders = [number for number in in_order if cast.brought[number]]
    weights = [cast.brought[number] for number in senders]
    vectors = [contribution(number, size_elems) for number in senders]
    assert torch.equal(done[0].vector_D, weighted_mean(vectors, weights))
    exact_D = sum(weight * vector_D.double() for weight, vector_D in zip(weights, vectors, strict=True)) / sum(weights)
    largest = max(float(vector_D.abs().max()) for vector_D in vectors)
    assert float((done[0].vector_D.double() - exact_D).abs().max()) <= (len(senders) + 2) * 2**-23 * largest
    assert all(outcome.shares == {swarm.members[number].peer: 1.0 for number in senders} for outcome in done)
    assert all(abs(outcome.weight - sum(weights)) < 1e-9 for outcome in done)
