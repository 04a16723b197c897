"""Manifests: deterministic bytes, hashes that follow the content, and a decoder that trusts nothing."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import replace

import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import PeerId
from protocols.manifest import MAX_MANIFEST_BYTES, MAX_PIECE_BYTES, Manifest, TensorEntry, hash_piece, read_tensor, tensor_bytes

PEER = PeerId(bytes(range(32)))
TENSORS = [
    ("weight", torch.arange(35, dtype=torch.float32).reshape(5, 7)),
    ("empty", torch.zeros(0, 3)),
    ("step", torch.tensor(3.0)),
    ("half", torch.tensor([1.5, -2.0, 3.25], dtype=torch.bfloat16)),
    ("count", torch.tensor([2**40], dtype=torch.int64)),
    ("flag", torch.tensor([True, False])),
]


def build(tensors: list[tuple[str, torch.Tensor]] | None = None, **changed: object) -> Manifest:
    meta = changed.pop("meta", {"optimizer": "AdamW"})
    assert isinstance(meta, dict)
    return replace(
        Manifest.build(tensors or TENSORS, epoch=4, accepted_samples=512, meta=meta, piece_bytes=64),
        **changed,  # type: ignore[arg-type]
    )


def all_bytes(tensors: list[tuple[str, torch.Tensor]]) -> bytes:
    return b"".join(bytes(tensor_bytes(tensor)) for _, tensor in tensors)


def test_equal_states_have_equal_bytes_and_hash() -> None:
    first, second = build(), build([(name, tensor.clone()) for name, tensor in TENSORS])
    assert first.encoded == second.encoded
    assert first.root == second.root
    assert len(first.root) == 32


def test_pieces_are_the_hashes_of_the_concatenated_bytes() -> None:
    data, manifest = all_bytes(TENSORS), build()
    assert manifest.size_bytes == len(data)
    assert manifest.piece_hashes == tuple(blake3(data[start : start + 64]).digest() for start in range(0, len(data), 64))
    for index in range(len(manifest.piece_hashes)):
        piece = data[slice(*manifest.piece_span(index))]
        assert manifest.verify_piece(index, piece)
        assert not manifest.verify_piece(index, piece[:-1])
        assert not manifest.verify_piece(index, bytes([piece[0] ^ 1]) + piece[1:])


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6), piece_bytes=st.integers(64, 200))
@settings(max_examples=40, deadline=None)
def test_streaming_equals_hashing_the_whole(sizes: list[int], piece_bytes: int) -> None:
    tensors = [(f"t{index}", torch.arange(size, dtype=torch.float32) + index) for index, size in enumerate(sizes)]
    manifest = Manifest.build(tensors, epoch=0, accepted_samples=0, meta={}, piece_bytes=piece_bytes)
    data = all_bytes(tensors)
    assert manifest.piece_hashes == tuple(hash_piece(data[s : s + piece_bytes]) for s in range(0, len(data), piece_bytes))


@pytest.mark.parametrize(
    "other",
    [
        build(epoch=5),
        build(accepted_samples=513),
        build(meta={"optimizer": "SGD"}),
        build([("weight2", TENSORS[0][1]), *TENSORS[1:]]),
        build([("weight", TENSORS[0][1] + 1), *TENSORS[1:]]),
        build([("weight", TENSORS[0][1].reshape(7, 5)), *TENSORS[1:]]),
        build([TENSORS[1], TENSORS[0], *TENSORS[2:]]),
    ],
)
def test_every_difference_changes_the_state_hash(other: Manifest) -> None:
    assert other.root != build().root


def test_decode_gives_back_what_was_encoded() -> None:
    manifest = build()
    decoded = Manifest.decode(manifest.encoded, PEER)
    assert decoded == manifest
    assert decoded.root == manifest.root
    assert decoded.meta == {"optimizer": "AdamW"}


def test_tensors_come_back_bit_for_bit() -> None:
    data, manifest = all_bytes(TENSORS), build()
    for (entry, offset), (name, tensor) in zip(manifest.spans(), TENSORS, strict=True):
        restored = read_tensor(entry, data, offset)
        assert entry.name == name
        assert restored.dtype == tensor.dtype
        assert torch.equal(restored, tensor)


def test_tensors_that_are_not_contiguous_count_as_their_contiguous_copy() -> None:
    transposed = torch.arange(12, dtype=torch.float32).reshape(3, 4).T
    assert build([("t", transposed)]).root == build([("t", transposed.contiguous())]).root


def test_every_cut_of_the_bytes_is_refused() -> None:
    encoded = build().encoded
    for length in range(len(encoded)):
        with pytest.raises(RemoteProtocolError):
            Manifest.decode(encoded[:length], PEER)
    with pytest.raises(RemoteProtocolError):
        Manifest.decode(encoded + b"\0", PEER)


@given(position=st.integers(0, 10**6), value=st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_any_changed_byte_is_refused_or_gives_another_hash(position: int, value: int) -> None:
    manifest = build()
    position %= len(manifest.encoded)
    altered = manifest.encoded[:position] + bytes([value]) + manifest.encoded[position + 1 :]
    with contextlib.suppress(RemoteProtocolError):
        assert (Manifest.decode(altered, PEER).root == manifest.root) == (altered == manifest.encoded)


def test_a_refusal_names_the_peer() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        Manifest.decode(b"garbage", PEER)
    assert caught.value.peer == PEER


def encoded_by_hand(manifest: Manifest, **header: int) -> bytes:
    """The bytes of a manifest whose header numbers may lie."""
    names = ("epoch", "accepted", "piece_bytes", "tensors", "meta_bytes", "pieces")
    numbers = dict(zip(names, struct.unpack_from("<QQIIII", manifest.encoded, 5), strict=True)) | header
    return manifest.encoded[:5] + struct.pack("<QQIIII", *numbers.values()) + manifest.encoded[5 + 32 :]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"tensors": 2**32 - 1}, "absurd counts"),
        ({"meta_bytes": 2**32 - 1}, "absurd counts"),
        ({"pieces": 2**32 - 1}, "absurd counts"),
        ({"epoch": 2**64 - 1}, "counter"),
        ({"piece_bytes": 0}, "pieces of 0 bytes"),
        ({"piece_bytes": MAX_PIECE_BYTES + 1}, "pieces of"),
        ({"piece_bytes": 65}, None),
    ],
)
def test_absurd_headers_are_refused_with_the_reason(header: dict[str, int], reason: str | None) -> None:
    altered = encoded_by_hand(build(), **header)
    if reason is None:
        assert Manifest.decode(altered, PEER).root != build().root
        return
    with pytest.raises(RemoteProtocolError, match=reason):
        Manifest.decode(altered, PEER)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (replace(build(), tensors=(TensorEntry("a", "float32", ()),) * 2), "same name"),
        (replace(build(), tensors=(TensorEntry("", "float32", ()),)), "name is empty"),
        (replace(build(), tensors=(TensorEntry("a\nb", "float32", ()),)), "unprintable"),
        (replace(build(), tensors=(TensorEntry("a", "float32", (2**50,)),)), "absurd shape"),
        (replace(build(), tensors=(TensorEntry("a", "float32", (2**30, 2**30)),)), "a state of"),
        (replace(build(), piece_hashes=build().piece_hashes[:-1]), "number of pieces"),
        (replace(build(), meta_json='{"a": 1}'), "canonical form"),
        (replace(build(), meta_json='{"a":1,"a":1}'), "canonical form"),
        (replace(build(), meta_json="[1]"), "canonical form"),
        (replace(build(), meta_json='{"a":NaN}'), "not JSON"),
        (replace(build(), meta_json="[" * 100_000), "not JSON"),
    ],
)
def test_rules_that_a_manifest_may_not_break(fault: Manifest, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        Manifest.decode(fault.encoded, PEER)


def test_oversized_bytes_are_refused_unread() -> None:
    with pytest.raises(RemoteProtocolError, match="too large"):
        Manifest.decode(bytes(MAX_MANIFEST_BYTES + 1), PEER)


def test_building_what_others_would_refuse_is_our_own_bug() -> None:
    with pytest.raises(LocalProtocolError, match="same name"):
        build([("a", torch.zeros(1)), ("a", torch.zeros(1))])
    with pytest.raises(LocalProtocolError, match="dtype"):
        build([("a", torch.zeros(1, dtype=torch.complex64))])
    with pytest.raises(LocalProtocolError, match="JSON"):
        build(meta={"loss": float("nan")})
    with pytest.raises(LocalProtocolError, match="pieces"):
        Manifest.build(TENSORS, epoch=0, accepted_samples=0, meta={}, piece_bytes=MAX_PIECE_BYTES + 1)
