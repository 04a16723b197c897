"""Two of five members fail in the middle of one exchange, each in any of seven ways, and everybody who is left finishes the same round.

Hivemind's `test_allreduce_fault_tolerance`, but deterministic, with every fault really injected, and with exact expectations: each block is
bit for bit the mean over the contributors that the outcome names for it, and whoever had no accident is in every block.
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest
import torch

from peers.averaging.averager import Averaged
from peers.testing import KeyNotary, make_key
from protocols.aggregation.mean import weighted_mean
from protocols.ids import BlockIndex, Epoch, PeerId, RoundId
from protocols.layout import Blocks
from protocols.rendezvous import rendezvous_order
from tests.helpers.averaging_swarm import RUN, contribution, same_bytes
from tests.helpers.faults import BLOCK_ELEMS, SURVIVED, Aftermath, Fault, average_with, contributors_of_blocks, members_of_plan

COUNT, BLOCKS = 5, 28
SIZE_ELEMS = BLOCKS * BLOCK_ELEMS - 1
CLIENT = 4
WEIGHTS = [1.0, 2.0, 3.0, 4.0, 5.0]
BANDWIDTHS = [1_000_000] * 4 + [0]

NUMBER_OF = {KeyNotary(make_key(number)).peer: number for number in range(COUNT)}
ORDER = [NUMBER_OF[peer] for peer in rendezvous_order(RoundId(RUN, Epoch(0)), NUMBER_OF)]
LEADER, SECOND, THIRD, LAST = (number for number in ORDER if number != CLIENT)

NORMAL_S = 0.2
LOST_S = 1.0
"""A process that ends is noticed at once, by its connections; so is a member that stops."""

SLOW_S = 26.0
"""One that crawls is left alone after a while: reducers stop waiting for its parts after 6 s, others for its results after 15 s. Then
the blocks are missing that a second victim would have brought, and a slow member may be among those who reduce them again."""

Pair = tuple[Fault, Fault]
ALL_PAIRS: list[Pair] = list(combinations_with_replacement(Fault, 2))
HIVEMINDS_PAIRS: list[Pair] = [
    (Fault.NONE, Fault.FAIL_BEFORE),
    (Fault.FAIL_BEFORE, Fault.FAIL_BEFORE),
    (Fault.SLOW_SENDING, Fault.FAIL_SENDING),
    (Fault.FAIL_SENDING, Fault.FAIL_BEFORE),
    (Fault.SLOW_REDUCING, Fault.FAIL_SENDING),
    (Fault.FAIL_REDUCING, Fault.FAIL_REDUCING),
    (Fault.NONE, Fault.CANCEL),
]


def limit_s(pair: Pair) -> float:
    if set(pair) == {Fault.NONE}:
        return NORMAL_S
    return SLOW_S if {Fault.SLOW_SENDING, Fault.SLOW_REDUCING} & set(pair) else LOST_S


def exact_mean(numbers: list[int], start: int = 0, stop: int = SIZE_ELEMS) -> torch.Tensor:
    """In double precision."""
    weighted = torch.stack([WEIGHTS[number] * contribution(number, SIZE_ELEMS)[start:stop].double() for number in numbers])
    return weighted.sum(0) / sum(WEIGHTS[number] for number in numbers)


def check(after: Aftermath, faults: dict[int, Fault]) -> None:
    """What must hold after any accident."""
    expected = {number for number in range(COUNT) if faults.get(number, Fault.NONE) in SURVIVED}
    done = {number: outcome for number, outcome in after.survivors.items() if isinstance(outcome, Averaged)}
    assert set(done) == set(after.survivors) == expected, after.survivors
    assert same_bytes(list(done.values()))
    members = [after.swarm.members[number] for number in sorted(done)]
    assert len({member.rounds[-1].commit.first_plan_digest for member in members}) == 1, "not the same round"
    assert [len(member.rounds) for member in members] == [1] * len(members)
    assert [outcome.blamed for outcome in done.values()] == [{}] * len(members)
    (named,) = {tuple(contributors_of_blocks(member)) for member in members}
    undisturbed = [after.swarm.members[number].peer for number in range(COUNT) if faults.get(number, Fault.NONE) is Fault.NONE]
    assert [done[min(done)].shares[peer] for peer in undisturbed] == [1.0] * len(undisturbed), "who did nothing wrong is in every element"
    check_elements(done[min(done)], members_of_plan(members[0]), named)


def check_elements(outcome: Averaged, plan: list[PeerId], named: tuple[tuple[int, ...], ...]) -> None:
    """Every element is the mean over the contributors that are named for it, and the outcome's shares and weight say the same."""
    blocks, shares, samples = Blocks(SIZE_ELEMS, BLOCK_ELEMS), dict.fromkeys(plan, 0.0), 0.0
    for block, places in enumerate(named):
        start, stop = blocks.span(BlockIndex(block))
        numbers = [NUMBER_OF[plan[place]] for place in places]
        parts, weights = [contribution(number, SIZE_ELEMS)[start:stop] for number in numbers], [WEIGHTS[number] for number in numbers]
        assert torch.equal(outcome.vector_D[start:stop], weighted_mean(parts, weights))
        torch.testing.assert_close(outcome.vector_D[start:stop].double(), exact_mean(numbers, start, stop), rtol=0, atol=1e-6)
        for place in places:
            shares[plan[place]] += (stop - start) / SIZE_ELEMS
        samples += (stop - start) / SIZE_ELEMS * sum(weights)
    assert outcome.shares == pytest.approx({peer: share for peer, share in shares.items() if share})
    assert outcome.weight == pytest.approx(samples)


@pytest.mark.parametrize("pair", ALL_PAIRS, ids=lambda pair: f"{pair[0].name}-{pair[1].name}")
def test_the_leader_and_another_reducer(pair: Pair) -> None:
    faults = {LEADER: pair[0], SECOND: pair[1]}
    after = average_with(faults, WEIGHTS, BANDWIDTHS, BLOCKS)
    check(after, faults)
    assert after.took_s < limit_s(pair)


@pytest.mark.parametrize("pair", HIVEMINDS_PAIRS, ids=lambda pair: f"{pair[0].name}-{pair[1].name}")
def test_a_client_and_the_last_reducer(pair: Pair) -> None:
    """A client reduces nothing, so what would befall its reducing does not happen."""
    happening = Fault.NONE if "REDUCING" in pair[0].name else pair[0]
    after = average_with({CLIENT: pair[0], LAST: pair[1]}, WEIGHTS, BANDWIDTHS, BLOCKS)
    check(after, {CLIENT: happening, LAST: pair[1]})
    assert after.took_s < SLOW_S


@pytest.mark.parametrize("fault", [Fault.FAIL_SENDING, Fault.FAIL_REDUCING])
def test_what_a_member_delivered_before_it_was_lost_counts(fault: Fault) -> None:
    """Half of its parts reached the reducers; or all did, and it was lost half-way through its results."""
    after = average_with({THIRD: fault}, WEIGHTS, BANDWIDTHS, BLOCKS)
    outcome = next(outcome for outcome in after.survivors.values() if isinstance(outcome, Averaged))
    lost = after.swarm.members[THIRD].peer
    assert 0.3 < outcome.shares[lost] < 1.0
    assert all(share == 1.0 for peer, share in outcome.shares.items() if peer != lost)


def test_when_nothing_goes_wrong_everybody_is_in_everything() -> None:
    after = average_with({}, WEIGHTS, BANDWIDTHS, BLOCKS)
    check(after, {})
    for outcome in after.survivors.values():
        assert isinstance(outcome, Averaged)
        assert set(outcome.shares.values()) == {1.0}
        torch.testing.assert_close(outcome.vector_D.double(), exact_mean(list(range(COUNT))), rtol=0, atol=1e-6)
