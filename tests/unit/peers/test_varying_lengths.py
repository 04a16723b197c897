"""Rounds whose encodings have lengths that vary: the same bytes for all, and whoever lies about a length is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from peers.conduct import Conduct
from peers.simulation import run_simulated
from protocols.codecs import codec_named
from protocols.frames import BlockBytes, BytesLike
from protocols.ids import BlockIndex, PeerId
from tests.helpers.averaging_swarm import SimulatedSwarm, averaged, contribution, rules, same_bytes

SIZE, BLOCK, COUNT, LIAR = 20_000, 4096, 4, 2
RULES = rules("rd50", BLOCK)


def through(vector_D: torch.Tensor) -> torch.Tensor:
    """As it arrives."""
    codec = codec_named("rd50")
    return torch.cat([codec.decode(codec.encode(block_E), block_E.numel()) for block_E in torch.split(vector_D, BLOCK)])


def test_everyone_gets_the_mean_of_what_was_sent_in_the_bytes_of_one_encoder() -> None:
    async def main() -> None:
        async with SimulatedSwarm(COUNT, averaging=RULES) as swarm:
            done = averaged(await swarm.round(SIZE))
            assert len(done) == COUNT
            assert same_bytes(done)
            mean_D = torch.stack([through(contribution(number, SIZE)) for number in range(COUNT)]).mean(0)
            exact_D, found_D = through(mean_D), done[0].vector_D
            agree = (found_D - exact_D).abs() <= 1e-6 + 0.01 * exact_D.abs()
            assert float(agree.float().mean()) > 0.99  # the mean is folded in another order

    run_simulated(main(), seed=1)


def test_zeros_take_a_byte_and_are_averaged() -> None:
    """Blocks of one round may differ in length by a factor of hundreds."""

    async def main() -> None:
        async with SimulatedSwarm(COUNT, averaging=RULES) as swarm:
            halves = torch.cat([contribution(0, BLOCK), torch.zeros(SIZE - BLOCK)])
            swarm.vector = lambda number, size_elems: halves  # type: ignore[method-assign]
            done = averaged(await swarm.round(SIZE))
            assert len(done) == COUNT
            assert torch.equal(done[0].vector_D, through(halves))

    run_simulated(main(), seed=1)


def test_a_member_that_comes_too_late_fetches_blocks_of_lengths_that_vary() -> None:
    async def main() -> None:
        async with SimulatedSwarm(COUNT, averaging=RULES) as swarm:
            done = averaged(await swarm.round(SIZE, after_s=lambda number: 20.0 if number == LIAR else 0.0))
            assert len(done) == COUNT
            assert same_bytes(done)
            assert not done[LIAR].included_us

    run_simulated(main(), seed=1)


@dataclass
class LiesAboutLengths(Conduct):
    """Sends other bytes than its encoder made."""

    change: Callable[[bytes], bytes]

    def part(self, block: BlockIndex, data: BytesLike, to: PeerId) -> BytesLike | None:
        return self.change(bytes(data))


@dataclass
class ReturnsOtherLengths(Conduct):
    """The same for what it reduces."""

    change: Callable[[bytes], bytes]

    def result(self, item: BlockBytes, to: PeerId) -> BlockBytes:
        return BlockBytes(item.kind, item.block, self.change(bytes(item.data)), item.contributors)


LIES: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda data: data[:-5],
    "one byte": lambda data: data[:1],
    "nothing": lambda _data: b"",
    "longer": lambda data: data + bytes(4),
    "longer than any": lambda data: data + bytes(codec_named("rd50").max_encoded_bytes(BLOCK)),
    "enormous": lambda data: data + bytes(2**22),
}
each_lie = pytest.mark.parametrize("change", LIES.values(), ids=LIES)


@each_lie
def test_whoever_sends_another_length_is_left_out(change: Callable[[bytes], bytes]) -> None:
    async def main() -> None:
        async with SimulatedSwarm(COUNT, averaging=RULES, conducts={LIAR: LiesAboutLengths(change)}) as swarm:
            outcomes = await swarm.round(SIZE)
            done = averaged([outcomes[number] for number in range(COUNT) if number != LIAR])
            assert len(done) == COUNT - 1
            assert same_bytes(done)
            assert any(swarm.members[LIAR].peer in outcome.blamed for outcome in done)

    run_simulated(main(), seed=1)


@each_lie
def test_a_reducer_that_returns_another_length_is_done_without(change: Callable[[bytes], bytes]) -> None:
    async def main() -> None:
        async with SimulatedSwarm(COUNT, averaging=RULES, conducts={LIAR: ReturnsOtherLengths(change)}) as swarm:
            outcomes = await swarm.round(SIZE)
            done = averaged([outcomes[number] for number in range(COUNT) if number != LIAR])
            assert len(done) == COUNT - 1
            assert same_bytes(done)
            assert all(bool((block_E != 0).any()) for block_E in torch.split(done[0].vector_D, BLOCK))
            assert any(swarm.members[LIAR].peer in outcome.blamed for outcome in done)

    run_simulated(main(), seed=1)
