"""Frames of an exchange stream: blocks survive any cut, and anything else is refused with its sender's name."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.content import content_hash
from protocols.errors import RemoteProtocolError
from protocols.frames import HEARTBEAT, BlockBytes, FrameKind, FrameReader, frames_of
from protocols.ids import BlockIndex, PeerId

SENDER = PeerId(b"s" * 32)
HEADER = struct.Struct("<BBBBIIIQ")


def block(number: int, data: bytes, kind: FrameKind = FrameKind.PART, contributors: int = 0) -> BlockBytes:
    return BlockBytes(kind, BlockIndex(number), data, contributors)


def reader(sizes: dict[int, int], kind: FrameKind = FrameKind.PART) -> FrameReader:
    return FrameReader(SENDER, kind, {BlockIndex(number): range(size, size + 1) for number, size in sizes.items()})


def frame(number: int, offset: int, total: int, chunk: bytes, *, kind: int = 1, contributors: int = 0, reserved: int = 0) -> bytes:
    return HEADER.pack(kind, reserved, 0, 0, number, offset, total, contributors) + chunk


def assert_refused(frames: list[bytes], sizes: dict[int, int], kind: FrameKind = FrameKind.PART) -> None:
    """The last frame, and only that one, is refused."""
    target = reader(sizes, kind)
    for good in frames[:-1]:
        target.feed(good)
    with pytest.raises(RemoteProtocolError) as caught:
        target.feed(frames[-1])
    assert caught.value.peer == SENDER


def test_the_layout_of_a_frame() -> None:
    (only,) = frames_of(block(7, b"abc", FrameKind.RESULT, 0b101))
    assert only == b"\x02\0\0\0" + b"\x07\0\0\0" + b"\0\0\0\0" + b"\x03\0\0\0" + b"\x05\0\0\0\0\0\0\0" + b"abc"
    assert bytes(24) == HEARTBEAT


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), st.integers(1, 50), st.integers(0, 2**64 - 1), st.data())
def test_blocks_arrive_as_they_were_sent(contents: list[bytes], chunk_bytes: int, contributors: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(contents))))
    target = reader({number: len(content) for number, content in enumerate(contents)}, FrameKind.RESULT)
    arrived = []
    for number in order:
        assert not target.complete
        sent = block(number, contents[number], FrameKind.RESULT, contributors)
        results = [target.feed(one) for one in frames_of(sent, chunk_bytes)]
        assert results[:-1] == [None] * (len(results) - 1)
        assert target.feed(HEARTBEAT) is None
        arrived.append(results[-1])
    expected = [block(number, contents[number], FrameKind.RESULT, contributors) for number in order]
    assert arrived == [replace(sent, content=content_hash(sent.data)) for sent in expected]
    assert target.complete


@given(st.binary(max_size=80))
def test_any_bytes_are_refused_or_understood(junk: bytes) -> None:
    target = reader({0: 8, 3: 60})
    try:
        item = target.feed(junk)
    except RemoteProtocolError:
        return
    kind, _, _, _, number, offset, total, contributors = HEADER.unpack_from(junk)
    assert junk == HEARTBEAT or (kind, offset, contributors) == (1, 0, 0)
    assert junk == HEARTBEAT or total == {0: 8, 3: 60}[number]
    assert item is None or item.data == junk[24:]


FIELDS = st.tuples(
    st.integers(0, 2), st.integers(0, 2), st.integers(0, 9), st.integers(0, 9), st.binary(max_size=9), st.sampled_from([0, 0, 0, 1, 2**63])
)


@given(st.lists(FIELDS, max_size=12), st.sampled_from([FrameKind.PART, FrameKind.RESULT]))
def test_whatever_comes_a_block_is_exactly_its_chunks(fields: list[tuple[int, int, int, int, bytes, int]], kind: FrameKind) -> None:
    """Header fields near the right ones, in any order: what is returned was sent, whole, in order, once."""
    sizes = {0: 6, 1: 0, 2: 9}
    target = reader(sizes, kind)
    chunks = b""
    seen: set[int] = set()
    for frame_kind, number, offset, total, chunk, contributors in fields:
        message = frame(number, offset, total, chunk, kind=frame_kind, contributors=contributors)
        try:
            item = target.feed(message)
        except RemoteProtocolError:
            return
        chunks += b"" if message == HEARTBEAT else chunk
        if item is not None:
            assert (item.kind, item.block, item.contributors) == (kind, number, contributors)
            assert item.data == chunks
            assert len(chunks) == sizes[number]
            assert number not in seen
            seen.add(number)
            chunks = b""
    assert target.complete == (seen == set(sizes))


@pytest.mark.parametrize(
    "frames",
    [
        [frame(5, 0, 4, b"abcd")],  # nobody expects block 5
        [frame(0, 0, 5, b"abcde")],  # longer than its encoding
        [frame(0, 0, 3, b"abc")],  # shorter
        [frame(0, 0, 4, b"abcde")],  # a chunk beyond the end
        [frame(0, 2, 4, b"cd")],  # the beginning is missing
        [frame(0, 0, 4, b"ab"), frame(0, 3, 4, b"d")],  # a gap
        [frame(0, 0, 4, b"ab"), frame(0, 0, 4, b"ab")],  # the same chunk again
        [frame(0, 0, 4, b"ab"), frame(0, 2, 4, b"cde")],  # overlong at the end
        [frame(0, 0, 4, b"ab"), frame(0, 2, 3, b"c")],  # shrinks on the way
        [frame(0, 0, 4, b"ab"), frame(0, 2, 9, b"cdefghi")],  # grows on the way
        [frame(0, 0, 4, b"ab"), frame(1, 2, 4, b"cd")],  # another block in between
        [frame(0, 0, 4, b"ab"), frame(0, 2, 4, b"")],  # a chunk of nothing
        [frame(0, 0, 4, b"")],
        [frame(0, 0, 4, b"abcd"), frame(0, 0, 4, b"abcd")],  # a block twice
        [frame(0, 0, 4, b"abcd", kind=2)],  # a result among parts
        [frame(0, 0, 4, b"abcd", kind=9)],  # no such kind
        [frame(0, 0, 4, b"abcd", contributors=1)],  # a part with contributors
        [frame(0, 0, 4, b"abcd", reserved=1)],
        [HEARTBEAT + b"x"],  # a heartbeat that carries something
        [HEARTBEAT[:-1]],
        [b""],
    ],
)
def test_anything_but_the_next_chunk_is_refused(frames: list[bytes]) -> None:
    assert_refused(frames, {0: 4, 1: 4})


def test_contributors_cannot_change_within_a_result() -> None:
    first, second = frame(0, 0, 4, b"ab", kind=2, contributors=3), frame(0, 2, 4, b"cd", kind=2, contributors=7)
    assert_refused([first, second], {0: 4}, FrameKind.RESULT)


def test_an_empty_stream_is_complete_at_once() -> None:
    assert reader({}).complete
    assert_refused([frame(0, 0, 0, b"")], {})


# Lengths that vary


def varying() -> FrameReader:
    return FrameReader(SENDER, FrameKind.RESULT, {BlockIndex(0): range(1, 7)})


@given(st.binary(min_size=1, max_size=6), st.integers(1, 7))
def test_any_length_within_the_bound_is_taken_and_ends_where_its_first_frame_says(content: bytes, chunk_bytes: int) -> None:
    target = varying()
    items = [target.feed(one) for one in frames_of(block(0, content, FrameKind.RESULT), chunk_bytes)]
    assert items[-1] == replace(block(0, content, FrameKind.RESULT), content=content_hash(content))
    assert target.complete


@pytest.mark.parametrize(
    "frames",
    [
        [frame(0, 0, 0, b"", kind=2)],  # nothing at all
        [frame(0, 0, 7, b"abcdefg", kind=2)],  # longer than any encoding, and refused before a byte of it is kept
        [frame(0, 0, 2**32 - 1, b"a", kind=2)],
        [frame(0, 0, 3, b"abcd", kind=2)],  # more than it said
        [frame(0, 0, 5, b"ab", kind=2), frame(0, 2, 4, b"cd", kind=2)],  # says less on the way
        [frame(0, 0, 2, b"ab", kind=2), frame(0, 2, 4, b"cd", kind=2)],  # goes on after its end
        [frame(0, 0, 4, b"ab", kind=2), frame(0, 2, 4, b"", kind=2)],
    ],
)
def test_a_length_beyond_the_bound_or_a_lie_about_it_is_refused(frames: list[bytes]) -> None:
    target = varying()
    for good in frames[:-1]:
        target.feed(good)
    with pytest.raises(RemoteProtocolError) as caught:
        target.feed(frames[-1])
    assert caught.value.peer == SENDER


def test_what_was_cut_off_is_not_complete() -> None:
    target = varying()
    assert target.feed(frame(0, 0, 4, b"abc", kind=2)) is None
    assert not target.complete
