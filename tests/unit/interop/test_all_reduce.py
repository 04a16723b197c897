"""One group that averages: what hivemind's `test_allreduce.py` asks of partitioning, of a reducer and of the protocol.

Stricter here: the result is the same bytes for everybody, whatever the block size, the shares and the order of arrival, and it is exact to
the rounding of fp32. Helpers get it too. A group in which nobody brings anything, or nobody can reduce, fails and changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from peers.simulation import run_simulated
from peers.transport.simulated import LinkSpec
from protocols.aggregation.mean import weighted_mean
from protocols.butterfly import BlockReducer
from protocols.codecs import codec_named
from protocols.ids import BlockIndex
from protocols.layout import Blocks, FlatLayout
from protocols.partition import assign_blocks
from tests.helpers.averaging_swarm import SimulatedSwarm, averaged, contribution, rules, same_bytes
from tests.helpers.group_roles import BringingSwarm, Cast, Part, check_round, check_untouched, clients_of, play_round
from tests.helpers.round_values import plan_of
from tests.helpers.watched_codec import WatchedCodec

SIZE_ELEMS = 500
TRAINER, CLIENT, HELPER = Part.TRAINER, Part.CLIENT, Part.HELPER
GROUPS = [
    (TRAINER, TRAINER, TRAINER, TRAINER),
    (CLIENT, TRAINER, TRAINER, TRAINER),
    (TRAINER, HELPER, TRAINER, TRAINER),
    (CLIENT, HELPER, TRAINER, CLIENT),
    (CLIENT, HELPER, HELPER, HELPER),
    (HELPER, HELPER, TRAINER, HELPER),
    (HELPER, HELPER, HELPER, HELPER),
    (CLIENT, CLIENT, CLIENT, CLIENT),
]
WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (0.1, 0.2, 0.3, 0.4), (0.15, 0.0, 0.35, 0.45)]
FRACTIONS = [(0.25, 0.25, 0.25, 0.25), (0.1, 0.2, 0.3, 0.4), (0.15, 0.0, 0.35, 0.45), (0.0, 0.0, 1.0, 0.0)]
PAIRS = [(0, 0), (1, 1), (2, 2), (1, 3), (2, 0), (0, 2)]
"""Of weights and fractions: each with each would say little more and take twice as long."""


# The protocol


@pytest.mark.parametrize("parts", GROUPS, ids=lambda parts: "-".join(part.name for part in parts))
@pytest.mark.parametrize("block_elems", [2**20, 256, 19])
def test_every_group_holds_the_weighted_mean_or_fails_as_one(parts: tuple[Part, ...], block_elems: int) -> None:
    """`test_allreduce_protocol`: weights and shares, zeros among them, an epoch for each pair of them."""
    casts = [Cast(parts, WEIGHTS[weights], FRACTIONS[fractions]) for weights, fractions in PAIRS]

    async def main() -> None:
        vectors = [contribution(number, SIZE_ELEMS) for number in range(len(parts))]
        async with BringingSwarm(vectors, averaging=rules(block_elems=block_elems), clients=clients_of(parts)) as swarm:
            for epoch, cast in enumerate(casts):
                check_round(swarm, cast, await play_round(swarm, cast, SIZE_ELEMS, epoch), SIZE_ELEMS)
        check_untouched(vectors)

    run_simulated(main(), seed=1)


@pytest.mark.parametrize(("size_elems", "block_elems"), [(1, 1), (1, 19), (37, 1), (38, 19), (39, 19)])
def test_blocks_of_one_element_and_vectors_shorter_than_a_block(size_elems: int, block_elems: int) -> None:
    cast = Cast((TRAINER, CLIENT, HELPER, TRAINER), WEIGHTS[1], FRACTIONS[1])

    async def main() -> None:
        async with SimulatedSwarm(4, averaging=rules(block_elems=block_elems), clients=clients_of(cast.parts)) as swarm:
            check_round(swarm, cast, await play_round(swarm, cast, size_elems, 0), size_elems)

    run_simulated(main(), seed=1)


# A reducer


def arrivals(senders: int, parts: int) -> list[list[tuple[int, int]]]:
    """(sender, block) in the order of arrival: in step, one sender after the other, the last blocks first, and at random."""
    in_step = [(sender, block) for block in range(parts) for sender in range(senders)]
    shuffled = list(in_step)
    random.Random(senders * 1000 + parts).shuffle(shuffled)
    return [in_step, sorted(in_step), in_step[::-1], shuffled]


def reduced(reducer: BlockReducer, order: Sequence[tuple[int, int]], vectors: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """What a reducer makes of parts that arrive in this order."""
    blocks = Blocks(max(vectors[0].numel(), 1), 10)
    means: dict[int, torch.Tensor] = {}
    assert reducer.start() == []
    for sender, block in order:
        for ready in reducer.part_arrived(sender, BlockIndex(block)):
            start, stop = blocks.span(ready.block)
            parts = [vectors[i][start:stop] for i in ready.contributors]
            means[ready.block] = weighted_mean(parts, [weights[i] for i in ready.contributors])
    assert reducer.missing_senders() == frozenset()
    return torch.cat([means[block] for block in sorted(means)]) if means else torch.empty(0)


@pytest.mark.parametrize("senders", [1, 2, 4, 10])
@pytest.mark.parametrize("parts", [0, 1, 100])
def test_parts_are_reduced_to_the_same_bytes_in_whatever_order_they_arrive(senders: int, parts: int) -> None:
    """`test_reducer`; the reducer is a helper, and with 0 parts somebody else reduces everything."""
    weights = [1.0 + sender for sender in range(senders)]
    speeds = [0 if parts else 1000] + [0] * (senders - 1) + [1000 if parts else 0]
    plan = plan_of([*weights, 0.0], speeds, num_blocks=max(parts, 1))
    size_elems = plan.size_elems if parts else 0
    vectors = [contribution(sender, size_elems) for sender in range(senders)]
    expected = weighted_mean(vectors, weights)
    for order in arrivals(senders, parts):
        assert torch.equal(reduced(BlockReducer(plan, senders), order, vectors, weights), expected)


def test_the_network_may_deliver_in_any_order() -> None:
    """Ten members on links that tremble, and so the parts of a block meet in another order each time."""
    erratic = LinkSpec(latency_s=0.02, jitter_s=0.5, bandwidth_bytes_per_s=1e6)
    found = set()
    for seed in range(4):

        async def main(seed: int = seed) -> bytes:
            async with SimulatedSwarm(10, link=erratic, seed=seed, averaging=rules(block_elems=10)) as swarm:
                done = averaged(await swarm.round(300, weights=[1.0 + number for number in range(10)]))
                assert len(done) == 10
                assert same_bytes(done)
                assert set(done[0].shares.values()) == {1.0}
                return done[0].vector_D.numpy().tobytes()

        found.add(run_simulated(main(), seed=seed))
    assert len(found) == 1


# Partitioning


@pytest.mark.parametrize("block_elems", [19, 31337, 2**20, 10**10])
@pytest.mark.parametrize("fractions", FRACTIONS)
def test_tensors_survive_being_cut_and_dealt(block_elems: int, fractions: tuple[float, ...]) -> None:
    """`test_partitioning` and its edge cases: every element is at one reducer; tensors without elements are at none."""
    shapes = [(0,), (), (3, 0, 5), (311, 211), (1,), (7, 2, 9), (0, 1)]
    generator = torch.Generator().manual_seed(7)
    tensors = {f"t{number}": torch.randn(shape, generator=generator) for number, shape in enumerate(shapes)}
    layout, codec = FlatLayout.of(tensors), codec_named("fp32")
    flat_D, gathered_D = torch.empty(layout.size_elems), torch.full((layout.size_elems,), float("nan"))
    layout.flatten_into(tensors, flat_D)
    blocks = Blocks(layout.size_elems, block_elems)
    owners = assign_blocks(blocks.count, [round(100 * fraction) for fraction in fractions])
    assert len(owners) == blocks.count
    for member, fraction in enumerate(fractions):
        assert fraction or member not in owners
        for block in (BlockIndex(number) for number, owner in enumerate(owners) if owner == member):
            start, stop = blocks.span(block)
            codec.decode_into(codec.encode(flat_D[start:stop]), gathered_D[start:stop])
    for name, view in layout.views(gathered_D).items():
        assert torch.equal(view, tensors[name])


def test_parts_travel_while_later_ones_are_still_to_be_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """`test_partitioning_asynchronous`: whoever can send no faster encodes as it sends, not everything before."""
    monkeypatch.setattr("peers.transport.simulated_stream.WINDOW_BYTES", 2**12)
    codec, slow = WatchedCodec(codec_named("fp32")), LinkSpec(latency_s=0.02, bandwidth_bytes_per_s=2e5)

    async def main() -> None:
        async with SimulatedSwarm(3, link=slow, averaging=replace(rules(block_elems=500), codec=codec)) as swarm:
            done = averaged(await swarm.round(30_000))
            assert len(done) == 3
            assert same_bytes(done)

    run_simulated(main(), seed=1)
    began_s, ended_s = codec.encoded[0].at_s, codec.opened[-1].at_s
    assert codec.opened[0].at_s < began_s + (ended_s - began_s) / 10
    assert codec.encoded[-1].at_s > began_s + (ended_s - began_s) / 2
