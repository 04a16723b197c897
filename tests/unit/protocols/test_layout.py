"""The flat vector: named tensors in one row, cut into blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocols.ids import BlockIndex
from protocols.layout import Blocks, FlatLayout

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "scale": torch.tensor(7.0), "bias": torch.tensor([8.0, 9.0])}


def test_tensors_lie_one_after_another_in_the_order_given() -> None:
    layout = FlatLayout.of(TENSORS)
    assert [(slot.name, slot.start_elems, slot.size_elems) for slot in layout.slots] == [("weight", 0, 6), ("scale", 6, 1), ("bias", 7, 2)]
    flat_D = torch.empty(layout.size_elems)
    layout.flatten_into(TENSORS, flat_D)
    assert flat_D.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9]


def test_views_write_through() -> None:
    layout = FlatLayout.of(TENSORS)
    flat_D = torch.zeros(layout.size_elems)
    views = layout.views(flat_D)
    views["bias"].fill_(5)
    views["scale"].fill_(3)
    assert {name: tuple(view.shape) for name, view in views.items()} == {"weight": (2, 3), "scale": (), "bias": (2,)}
    assert flat_D.tolist() == [0] * 6 + [3, 5, 5]


def test_flatten_takes_other_dtypes_and_leaves_no_graph() -> None:
    layout = FlatLayout.of({"a": torch.zeros(2)})
    flat_D = torch.empty(2)
    layout.flatten_into({"a": torch.tensor([1.5, -2.0], dtype=torch.float64, requires_grad=True)}, flat_D)
    assert flat_D.tolist() == [1.5, -2.0]
    assert not flat_D.requires_grad


@pytest.mark.parametrize("tensors", [{}, {"weight": torch.zeros(6), "scale": torch.tensor(0.0), "bias": torch.zeros(2)}])
def test_a_missing_tensor_or_another_shape_is_refused(tensors: dict[str, torch.Tensor]) -> None:
    layout = FlatLayout.of(TENSORS)
    with pytest.raises(ValueError, match="'weight' is missing or does not have the shape"):
        layout.flatten_into(tensors, torch.empty(layout.size_elems))


@pytest.mark.parametrize("shape", [(8,), (10,), (1, 9), ()])
def test_a_vector_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected a vector of 9 elements"):
        FlatLayout.of(TENSORS).views(torch.zeros(shape))


def test_names_are_unique() -> None:
    with pytest.raises(ValueError, match="same name"):
        FlatLayout.of([("a", torch.zeros(1)), ("a", torch.zeros(2))])


def test_the_digest_names_names_shapes_and_order() -> None:
    a, b, c = torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(6)
    variants = [
        FlatLayout.of([("a", a), ("b", b)]),
        FlatLayout.of([("b", b), ("a", a)]),
        FlatLayout.of([("a", b), ("b", a)]),
        FlatLayout.of([("a", c), ("b", b)]),
        FlatLayout.of([("ab", a), ("", b)]),
        FlatLayout.of([("a", a)]),
        FlatLayout.of([]),
    ]
    assert len({layout.digest for layout in variants}) == len(variants)
    assert FlatLayout.of({"a": a + 1, "b": b}).digest == variants[0].digest  # values do not matter
    assert len(variants[0].digest) == 32


@given(st.integers(1, 10_000), st.integers(1, 3000))
def test_blocks_cover_the_vector_once(size_elems: int, block_elems: int) -> None:
    blocks = Blocks(size_elems, block_elems)
    spans = [blocks.span(BlockIndex(number)) for number in range(blocks.count)]
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
    assert spans[-1][1] == size_elems
    assert all(blocks.elems(BlockIndex(n)) == block_elems for n in range(blocks.count - 1))
    assert 1 <= blocks.elems(BlockIndex(blocks.count - 1)) <= block_elems


@pytest.mark.parametrize("block", [-1, 3, 100])
def test_no_block_beyond_the_vector(block: int) -> None:
    with pytest.raises(IndexError):
        Blocks(9, 4).span(BlockIndex(block))


@pytest.mark.parametrize(("size_elems", "block_elems"), [(0, 1), (1, 0), (-1, 4), (4, -1)])
def test_empty_vectors_and_blocks_are_refused(size_elems: int, block_elems: int) -> None:
    with pytest.raises(ValueError, match="at least one element"):
        Blocks(size_elems, block_elems)
