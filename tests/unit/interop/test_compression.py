"""Encodings inside an all-reduce: what hivemind's `test_compression.py` asks beyond the codecs themselves.

The codecs, their errors and their empty blocks are the business of `tests/contracts/test_codec.py` and of `test_codecs.py`; README.md says
which test states what. A swarm has one codec. It may choose by the size of a block but not by member: who encodes otherwise is left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from peers.simulation import run_simulated
from protocols.codecs import CODEC_NAMES, codec_named
from protocols.codecs.policy import SizeAdaptiveCodec
from protocols.errors import RoundError
from protocols.layout import FlatLayout
from tests.helpers.averaging_swarm import SimulatedSwarm, averaged, contribution, rules, same_bytes
from tests.helpers.watched_codec import WatchedCodec

COUNT = 4


def mean_of(numbers: list[int], size_elems: int) -> torch.Tensor:
    return torch.stack([contribution(number, size_elems).double() for number in numbers]).mean(dim=0)


def worst_error(codec_name: str, elems: int) -> float:
    """Of numbers below 5: once when parts are encoded, once when their mean is."""
    return 2 * codec_named(codec_name).worst_error(torch.full((elems,), 5.0)) + 1e-6


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_every_codec_averages_within_its_error(name: str) -> None:
    """`test_allreduce_compression`: a large block, and a smaller one that ends within a group of elements."""
    large_elems, size_elems = 2**16 + 1, 2**17 + 1

    async def main() -> None:
        async with SimulatedSwarm(COUNT, averaging=rules(name, block_elems=large_elems)) as swarm:
            done = averaged(await swarm.round(size_elems))
            assert len(done) == COUNT
            assert same_bytes(done)
            error_D = (done[0].vector_D.double() - mean_of(list(range(COUNT)), size_elems)).abs()
            assert float(error_D.max()) < worst_error(name, large_elems)
            small_D = error_D[large_elems:]
            assert name not in ("fp32", "adaptive-int8") or float(small_D.max()) < 1e-6

    run_simulated(main())


def test_each_block_goes_through_the_codec_for_its_size_and_once() -> None:
    """Mixed and adaptive compression: of seven blocks the last is small and stays exact, the others lose bits, and calls are counted."""
    small, large = WatchedCodec(codec_named("fp32")), WatchedCodec(codec_named("int8"))
    codec, size_elems = SizeAdaptiveCodec("adaptive-int8", small, large, limit_elems=20), 6 * 100 + 20

    async def main() -> None:
        async with SimulatedSwarm(COUNT, averaging=replace(rules(block_elems=100), codec=codec)) as swarm:
            done = averaged(await swarm.round(size_elems))
            assert len(done) == COUNT
            assert same_bytes(done)
            error_D = (done[0].vector_D.double() - mean_of(list(range(COUNT)), size_elems)).abs()
            assert float(error_D[-20:].max()) < 1e-6
            assert 1e-3 < float(error_D[:-20].max()) < worst_error("int8", 100)

    run_simulated(main())
    for watched, elems, blocks in ((small, 20, 1), (large, 100, 6)):
        assert Counter(asked.elems for asked in watched.encoded) == {elems: blocks * (COUNT + 1)}, "each member's part, and the mean"
        assert Counter(asked.elems for asked in watched.opened) == {elems: blocks * 2 * COUNT}, "each part once, and the mean by everybody"


@pytest.mark.parametrize("odd", range(COUNT))
def test_a_member_that_encodes_otherwise_is_left_out(odd: int) -> None:
    """Mixed compression by member, which there averages within an error: here nobody's bytes would agree."""

    async def main() -> None:
        async with SimulatedSwarm(COUNT) as swarm:
            context = swarm.members[odd].averager._context
            object.__setattr__(context, "rules", rules("fp16"))
            outcomes = await swarm.round(300)
            assert isinstance(outcomes[odd], RoundError)
            done = averaged(outcomes)
            assert len(done) == COUNT - 1
            assert same_bytes(done)
            others = [number for number in range(COUNT) if number != odd]
            torch.testing.assert_close(done[0].vector_D.double(), mean_of(others, 300), rtol=0, atol=1e-6)

    run_simulated(main(), seed=1, limit_s=120)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(128, 16, 4), (31, 7), (), (0,)])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_tensors_keep_dtype_shape_and_whether_they_are_trained(dtype: torch.dtype, shape: tuple[int, ...], requires_grad: bool) -> None:
    """On the way through the flat vector and the codec; what fp32 holds comes back bit for bit."""
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_(requires_grad)
    before, layout, codec = tensor.detach().clone(), FlatLayout.of({"x": tensor}), codec_named("fp32")
    flat_D = torch.empty(layout.size_elems)
    layout.flatten_into({"x": tensor}, flat_D)
    decoded_D = codec.decode(codec.encode(flat_D), layout.size_elems)
    assert not decoded_D.requires_grad
    with torch.no_grad():
        tensor.zero_().copy_(layout.views(decoded_D)["x"])
    assert (tensor.dtype, tensor.shape, tensor.requires_grad) == (dtype, shape, requires_grad)
    assert torch.equal(tensor.detach(), before)
