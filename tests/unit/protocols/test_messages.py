"""Control messages: what is written is read again, and nothing absurd gets in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.content import block_hash, content_hash, input_hash
from protocols.errors import RemoteProtocolError
from protocols.frames import MAX_MEMBERS
from protocols.ids import MAX_EPOCH, Attempt, BlockIndex, Epoch, PeerId
from protocols.messages import (
    MAX_BANDWIDTH_BYTES_PER_S,
    MAX_BLOCKS,
    MAX_FAILURES,
    MAX_ROUNDS,
    MAX_WEIGHT,
    BlockTask,
    Closing,
    Commit,
    Join,
    Plan,
    Report,
    SealedJoin,
    parse,
    plan_from_message,
    require_hashes,
)
from protocols.messages_blocks import BlocksRequest
from protocols.proto.swarm.v1 import control_pb2 as pb

SENDER = PeerId(b"s" * 32)
HASH = st.binary(min_size=32, max_size=32)
EPOCH = st.integers(0, MAX_EPOCH).map(Epoch)
BLOCKS = st.lists(st.integers(0, MAX_BLOCKS - 1).map(BlockIndex), max_size=20, unique=True)


def member(number: int) -> SealedJoin:
    join = Join(Epoch(3), b"h" * 32, 1.0, 1000)
    return SealedJoin(PeerId(bytes([number]) * 32), join, b"sealed %d" % number)


MEMBERS = tuple(member(number) for number in range(4))
PLAN = Plan(
    Epoch(3),
    Attempt(1),
    MEMBERS,
    1000,
    300,
    "fp32",
    (BlockTask(BlockIndex(0), 1), BlockTask(BlockIndex(3), 2)),
    (BlockTask(BlockIndex(1), 2),),
    (b"f" * 32,),
    frozenset({0}),
    counted=6,
)


def plan_message(**changes: object) -> pb.Plan:
    return parse(pb.Plan, replace(PLAN, **changes).encode(), SENDER)  # type: ignore[arg-type]


@given(EPOCH, HASH, st.floats(0, MAX_WEIGHT), st.integers(0, MAX_BANDWIDTH_BYTES_PER_S))
def test_joins_round_trip(epoch: Epoch, state_hash: bytes, weight: float, bandwidth: int) -> None:
    join = Join(epoch, state_hash, weight, bandwidth)
    assert Join.decode(join.encode(), SENDER) == join


@given(EPOCH, st.integers(0, MAX_ROUNDS - 1), st.booleans(), st.integers(0, MAX_FAILURES))
def test_calls_round_trip(epoch: Epoch, index: int, stand_in: bool, failures: int) -> None:
    call = Closing(epoch, index, stand_in and index > 0, failures)
    assert Closing.decode(call.encode(), SENDER) == call


@pytest.mark.parametrize(
    ("call", "sound"),
    [
        (pb.Closing(epoch=MAX_EPOCH), True),
        (pb.Closing(epoch=MAX_EPOCH + 1), False),
        (pb.Closing(round_index=MAX_ROUNDS - 1), True),
        (pb.Closing(round_index=MAX_ROUNDS), False),
        (pb.Closing(round_index=2**32 - 1), False),
        (pb.Closing(failures=MAX_FAILURES), True),
        (pb.Closing(failures=MAX_FAILURES + 1), False),
        (pb.Closing(round_index=1, stand_in=True), True),
        (pb.Closing(stand_in=True), False),
    ],
)
def test_calls_are_bounded(call: pb.Closing, sound: bool) -> None:
    try:
        named(lambda data: Closing.decode(data, SENDER), call.SerializeToString())
    except Refused:
        assert not sound
    else:
        assert sound


def test_a_join_of_an_absurd_epoch_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="epoch"):
        Join.decode(Join(Epoch(MAX_EPOCH + 1), b"h" * 32, 1.0, 9).encode(), SENDER)


@given(HASH, st.lists(HASH | st.just(b""), max_size=20).map(tuple))
def test_reports_round_trip(digest: bytes, hashes: tuple[bytes, ...]) -> None:
    assert Report.decode(Report(digest, hashes).encode(), SENDER) == Report(digest, hashes)


@given(HASH, EPOCH, st.lists(HASH, max_size=20).map(tuple), st.floats(1e-9, MAX_WEIGHT), HASH)
def test_commits_round_trip(digest: bytes, epoch: Epoch, hashes: tuple[bytes, ...], weight: float, state: bytes) -> None:
    commit = Commit(digest, epoch, hashes, weight, state)
    assert Commit.from_message(commit.to_message(), SENDER) == commit


@given(HASH, BLOCKS.map(tuple))
def test_requests_for_blocks_round_trip(digest: bytes, blocks: tuple[BlockIndex, ...]) -> None:
    assert BlocksRequest.decode(BlocksRequest(digest, blocks).encode(), SENDER) == BlocksRequest(digest, blocks)


def test_plans_round_trip() -> None:
    assert plan_from_message(plan_message(), MEMBERS, SENDER) == PLAN
    assert list(plan_message().sealed_joins) == [join.sealed for join in MEMBERS]


def test_a_plans_digest_names_everything_in_it() -> None:
    changes: list[dict[str, object]] = [
        {},
        {"epoch": Epoch(4)},
        {"attempt": Attempt(2)},
        {"members": MEMBERS[:3]},
        {"members": MEMBERS[::-1]},
        {"size_elems": 999},
        {"block_elems": 299},
        {"codec": "fp16"},
        {"reduce": PLAN.reduce[:1]},
        {"fetch": (BlockTask(BlockIndex(1), 3),)},
        {"fetch_hashes": (b"g" * 32,)},
        {"absent": frozenset()},
    ]
    digests = [replace(PLAN, **change).digest for change in changes]  # type: ignore[arg-type]
    assert len(set(digests)) == len(changes)
    assert replace(PLAN).digest == PLAN.digest
    assert len(PLAN.digest) == 32


def test_members_have_a_place_and_strangers_none() -> None:
    assert [PLAN.index_of(join.peer) for join in MEMBERS] == [0, 1, 2, 3]
    assert PLAN.index_of(SENDER) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"size_elems": 0},
        {"size_elems": 2**41},
        {"block_elems": 0},
        {"size_elems": MAX_BLOCKS + 1, "block_elems": 1},
        {"reduce": (BlockTask(BlockIndex(4), 1),)},  # 1000 elements are blocks 0 to 3
        {"reduce": (BlockTask(BlockIndex(0), 4),)},
        {"reduce": (BlockTask(BlockIndex(0), 1), BlockTask(BlockIndex(0), 2))},
        {"reduce": (BlockTask(BlockIndex(1), 1),)},  # also fetched
        {"fetch": (BlockTask(BlockIndex(9), 1),)},
        {"fetch_hashes": ()},
        {"fetch_hashes": (b"f" * 31,)},
        {"fetch_hashes": (b"",)},
        {"absent": frozenset({4})},
        {"absent": frozenset({1})},  # it has work to do
    ],
)
def test_an_absurd_plan_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        plan_from_message(plan_message(**changes), MEMBERS, SENDER)
    assert caught.value.peer == SENDER


class Uncounted(list[object]):
    """More than anybody should look at one by one."""

    def __iter__(self) -> Iterator[object]:
        raise AssertionError("it was read before it was counted")


@pytest.mark.parametrize(
    "changes",
    [
        {"reduce": Uncounted([None] * 5)},  # of four
        {"reduce": Uncounted([None] * 4)},  # one is fetched
        {"absent": Uncounted([None] * 5)},
        {"fetch": Uncounted([None] * (MAX_BLOCKS + 1)), "block_hashes": Uncounted([b""] * (MAX_BLOCKS + 1))},
    ],
)
def test_a_plans_lists_are_counted_before_they_are_read(changes: dict[str, object]) -> None:
    plain = plan_message()
    fields = {field.name: getattr(plain, field.name) for field in plain.DESCRIPTOR.fields}
    with pytest.raises(RemoteProtocolError, match="too many tasks or absences"):
        plan_from_message(SimpleNamespace(**{**fields, **changes}), MEMBERS, SENDER)  # type: ignore[arg-type]


def test_hashes_are_counted_before_they_are_read() -> None:
    with pytest.raises(RemoteProtocolError, match="too many"):
        require_hashes(cast(list[bytes], Uncounted([b""] * (MAX_BLOCKS + 1))), SENDER, may_be_missing=True)


@pytest.mark.parametrize("members", [(), (MEMBERS[0], MEMBERS[0]), tuple(member(number) for number in range(MAX_MEMBERS + 1))])
def test_a_plan_has_members_each_once_and_not_too_many(members: tuple[SealedJoin, ...]) -> None:
    with pytest.raises(RemoteProtocolError):
        plan_from_message(plan_message(absent=frozenset(), reduce=(), fetch=(), fetch_hashes=()), members, SENDER)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -1.0, -1e-9, 1.01 * MAX_WEIGHT])
def test_an_absurd_weight_is_refused(weight: float) -> None:
    with pytest.raises(RemoteProtocolError, match="weight"):
        Join.decode(pb.Join(epoch=1, state_hash=b"h" * 32, weight=weight).SerializeToString(), SENDER)
    with pytest.raises(RemoteProtocolError, match="weight"):
        Commit.from_message(pb.Commit(first_plan_digest=b"p" * 32, state_hash=b"h" * 32, weight=weight * 2**20 * MAX_MEMBERS), SENDER)


def test_an_absurd_bandwidth_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="bandwidth"):
        Join.decode(Join(Epoch(1), b"h" * 32, 1.0, MAX_BANDWIDTH_BYTES_PER_S + 1).encode(), SENDER)


def test_a_commit_to_nothing_is_refused() -> None:
    """The trainer would divide by it, or take a step for nobody's samples."""
    with pytest.raises(RemoteProtocolError, match="weight"):
        Commit.from_message(pb.Commit(first_plan_digest=b"p" * 32, state_hash=b"h" * 32, weight=0.0), SENDER)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_hashes_have_32_bytes(length: int) -> None:
    odd = b"h" * length
    with pytest.raises(RemoteProtocolError):
        Join.decode(pb.Join(state_hash=odd, weight=1.0).SerializeToString(), SENDER)
    with pytest.raises(RemoteProtocolError):
        Report.decode(pb.Report(plan_digest=odd).SerializeToString(), SENDER)
    with pytest.raises(RemoteProtocolError):
        Commit.from_message(pb.Commit(first_plan_digest=odd, state_hash=b"h" * 32, weight=1.0), SENDER)
    with pytest.raises(RemoteProtocolError):
        Commit.from_message(pb.Commit(first_plan_digest=b"p" * 32, state_hash=odd, weight=1.0), SENDER)
    with pytest.raises(RemoteProtocolError):
        Commit.from_message(pb.Commit(first_plan_digest=b"p" * 32, state_hash=b"h" * 32, block_hashes=[odd], weight=1.0), SENDER)
    if length:
        with pytest.raises(RemoteProtocolError):
            Report.decode(pb.Report(plan_digest=b"p" * 32, block_hashes=[odd]).SerializeToString(), SENDER)


def test_lists_are_bounded() -> None:
    with pytest.raises(RemoteProtocolError, match="too many"):
        Report.decode(Report(b"p" * 32, (b"",) * (MAX_BLOCKS + 1)).encode(), SENDER)
    with pytest.raises(RemoteProtocolError, match="twice"):
        BlocksRequest.decode(BlocksRequest(bytes(32), (BlockIndex(3), BlockIndex(3))).encode(), SENDER)
    with pytest.raises(RemoteProtocolError, match="too many"):
        BlocksRequest.decode(BlocksRequest(bytes(32), tuple(map(BlockIndex, range(MAX_BLOCKS + 1)))).encode(), SENDER)


DECODERS: list[Callable[[bytes], object]] = [
    lambda data: Join.decode(data, SENDER),
    lambda data: Closing.decode(data, SENDER),
    lambda data: Report.decode(data, SENDER),
    lambda data: BlocksRequest.decode(data, SENDER),
    lambda data: Commit.from_message(parse(pb.Commit, data, SENDER), SENDER),
    lambda data: plan_from_message(parse(pb.Plan, data, SENDER), MEMBERS, SENDER),
    lambda data: parse(pb.JoinReply, data, SENDER),
    lambda data: parse(pb.Verdict, data, SENDER),
]


class Refused(Exception):
    """A message was refused, and its sender named."""


def named(decode: Callable[[bytes], object], data: bytes) -> object:
    try:
        return decode(data)
    except RemoteProtocolError as error:
        if error.peer == SENDER:
            raise Refused from error
        raise


@given(st.sampled_from(DECODERS), st.binary(max_size=200))
def test_junk_is_refused_with_its_senders_name(decode: Callable[[bytes], object], junk: bytes) -> None:
    with suppress(Refused):
        named(decode, junk)


@given(st.data())
def test_damaged_messages_are_refused_or_sound(data: st.DataObject) -> None:
    good = data.draw(st.sampled_from([PLAN.encode(), Join(Epoch(3), b"h" * 32, 1.0, 9).encode(), Report(b"p" * 32, (b"q" * 32,)).encode()]))
    where, value = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 255))
    damaged = good[:where] + bytes([value]) + good[where + 1 :]
    for decode in DECODERS:
        try:
            read = named(decode, damaged)
        except Refused:
            continue
        if isinstance(read, Join):
            assert math.isfinite(read.weight)
            assert len(read.state_hash) == 32
        if isinstance(read, Plan):
            assert plan_from_message(parse(pb.Plan, read.encode(), SENDER), MEMBERS, SENDER) == read


def test_a_blocks_hash_names_its_bytes_and_its_contributors() -> None:
    assert content_hash(b"abc") == content_hash(bytearray(b"abc")) == content_hash(memoryview(b"abc"))
    abc, abd = content_hash(b"abc"), content_hash(b"abd")
    assert len({block_hash(abc, 1), block_hash(abc, 2), block_hash(abd, 1), block_hash(content_hash(b""), 1)}) == 4


def test_an_input_is_named_by_what_it_is_and_then_by_its_group() -> None:
    one, same, other_group, other = (
        input_hash(contents, plan) for contents, plan in (([b"a"], b"p"), ([b"a"], b"p"), ([b"a"], b"q"), ([b"b"], b"p"))
    )
    assert one == same != other_group
    assert one[:16] == other_group[:16] != other[:16]
