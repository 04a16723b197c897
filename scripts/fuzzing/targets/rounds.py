"""Messages of averaging rounds, blocks, and state transfer."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, cast

import torch

from peers.averaging.context import AveragingRules, MemberContext
from peers.averaging.plans import checked_commit, checked_plan, first_plan, open_join
from peers.averaging.verdicts import Verdict, read_verdict, verdict_bytes
from peers.testing import FixedDirectory, KeyNotary, make_key
from protocols.codecs import CODEC_NAMES, Codec, both_ways, codec_named
from protocols.errors import RemoteProtocolError, RemoteRefusal
from protocols.frames import HEARTBEAT, BlockBytes, FrameKind, FrameReader, frames_of
from protocols.ids import Attempt, BlockIndex, Epoch
from protocols.manifest import Manifest
from protocols.messages import BlockTask, Closing, Commit, Join, Plan, Proven, Report, SealedJoin, parse
from protocols.messages_blocks import BlocksRequest
from protocols.messages_measure import MAX_STEP_BYTES, MeasureRequest
from protocols.messages_state import ManifestRequest, PieceChunk, PiecesRequest
from protocols.proto.swarm.v1 import control_pb2 as pb
from protocols.trust.coin import coin_root
from protocols.trust.statements import COIN_TRIES
from scripts.fuzzing.formats import BYTES, FIELDS, PROTOBUF
from scripts.fuzzing.target import SENDER, Target, message
from scripts.fuzzing.world import listed, unlisted

_LARGE = 2**19
"""Of messages that are large by nature: long enough for what grows too fast to be noticed."""

_STATE, _DIGEST, _SIZE_ELEMS = b"s" * 32, b"d" * 32, 200
COIN = (b"k" * 32,) * COIN_TRIES
"""What all of them have committed to as their shares of the coin."""

NOTARIES = tuple(KeyNotary(make_key(number)) for number in range(3))
_COMMIT = Commit(_DIGEST, Epoch(5), (b"a" * 32, b"b" * 32, b"c" * 32, b"e" * 32), 12.5, _STATE)


@lru_cache(maxsize=1)
def context() -> MemberContext:
    """A member that reads."""
    me = NOTARIES[1]
    rules = AveragingRules(cast(Any, None), 64, codec_named("fp32"), 16)
    none = cast(Any, SimpleNamespace())
    return MemberContext(me.peer, none, FixedDirectory(me.peer, {}), me, rules, cast(asyncio.TaskGroup, none))


@lru_cache(maxsize=1)
def plan_of_three() -> Plan:
    """A plan of the first three members."""
    joins = [Join(Epoch(5), _STATE, 1.0 + number, 1000, coin_root=coin_root(COIN)) for number in range(3)]
    sealed = tuple(SealedJoin(notary.peer, join, notary.seal("join", join.encode())) for notary, join in zip(NOTARIES, joins, strict=True))
    return first_plan(context(), sealed, _SIZE_ELEMS, 3, 0)


def _repair() -> Plan:
    plan = plan_of_three()
    fetch, hashes = (BlockTask(BlockIndex(0), 1),), (b"h" * 32,)
    reduce = (BlockTask(BlockIndex(1), 1), BlockTask(BlockIndex(2), 2))
    return Plan(
        plan.epoch,
        Attempt(1),
        plan.members,
        plan.size_elems,
        plan.block_elems,
        plan.codec,
        reduce,
        fetch,
        hashes,
        frozenset({0}),
        counted=3,
    )


def _read_plan(data: bytes) -> Plan:
    sender = plan_of_three().members[0].peer
    return checked_plan(context(), plan_of_three().members[1], _SIZE_ELEMS, parse(pb.Plan, data, sender), sender)


def _read_reply(data: bytes) -> Commit | Plan:
    reply, sender = parse(pb.JoinReply, data, SENDER), plan_of_three().members[0].peer
    if reply.HasField("commit"):
        return checked_commit(context(), plan_of_three().members[1], _SIZE_ELEMS, reply.commit, sender)
    return checked_plan(context(), plan_of_three().members[1], _SIZE_ELEMS, reply.plan, sender)


def _write_reply(value: Commit | Plan) -> bytes:
    reply = pb.JoinReply(commit=value.to_message()) if isinstance(value, Commit) else pb.JoinReply()
    if isinstance(value, Plan):
        reply.plan.ParseFromString(value.encode())
    return reply.SerializeToString()


def _read_verdict(data: bytes) -> Verdict:
    return read_verdict(data, plan_of_three(), _DIGEST, NOTARIES[1].peer, SENDER)


def _verdict_seeds() -> list[bytes]:
    return [verdict_bytes(_COMMIT), verdict_bytes(_repair())]


def _sealed_payload(data: bytes) -> SealedJoin:
    """A member that means harm signs whatever it likes."""
    return open_join(context(), NOTARIES[2].seal("join", data))


def _read_frames(kind: FrameKind) -> Any:
    def read(data: bytes) -> list[tuple[int, bytes, int, bytes]]:
        reader = FrameReader(SENDER, kind, {BlockIndex(0): range(10, 11), BlockIndex(1): range(1), BlockIndex(7): range(1, 34)})
        items = [reader.feed(frame) for frame in unlisted(data)]
        return [(item.block, bytes(item.data), item.contributors, item.content) for item in items if item]

    return read


def _frames(kind: FrameKind, contributors: int) -> list[bytes]:
    blocks = {0: b"0123456789", 1: b"", 7: bytes(range(33))}
    frames = [frame for at, data in blocks.items() for frame in frames_of(BlockBytes(kind, BlockIndex(at), data, contributors), 8)]
    return [listed(HEARTBEAT, *frames), listed(*frames[-5:]), listed(*frames_of(BlockBytes(kind, BlockIndex(7), b"short", contributors)))]


def _codec_target(codec: Codec) -> Target:
    sizes = (0, 1, 5, 257)

    def read(data: bytes) -> tuple[int, bytes]:
        elems = sizes[data[0] % len(sizes)] if data else 0
        return elems, codec.decode(data[1:], elems).numpy().tobytes()

    def write(value: tuple[int, bytes]) -> bytes:
        elems, raw = value
        block_E = torch.frombuffer(bytearray(raw), dtype=torch.float32) if raw else torch.empty(0)
        return bytes([sizes.index(elems)]) + bytes(codec.encode(block_E))

    def seeds() -> list[bytes]:
        random = torch.Generator().manual_seed(1)
        blocks = [torch.randn(elems, generator=random) for elems in sizes]
        return [write((block.numel(), block.numpy().tobytes())) for block in [*blocks, torch.zeros(5), torch.full((5,), 3e38)]]

    return Target(f"codec-{codec.name}", read, seeds, (ValueError,), write, input_bytes=4096)


def _states() -> list[bytes]:
    tensors = [("param/w", torch.zeros(3, 40)), ("step", torch.tensor(4, dtype=torch.int64)), ("flag", torch.ones(2, dtype=torch.bool))]
    meta = {"format": 1, "numbers": {"w": {"step": 1.5, "x": None}}}
    full = Manifest.build(tensors, epoch=3, accepted_samples=96, meta=meta, piece_bytes=64)
    return [full.encoded, Manifest.build([], epoch=0, accepted_samples=0, meta={}).encoded]


_JOINS = (
    Join(Epoch(5), _STATE, 3.0, 1000),
    Join(Epoch(2**40), _STATE, 0.0, 0, 3, b"i" * 32, (Proven(SENDER, 10**6), Proven(NOTARIES[0].peer, 7)), 2**30),
)

ROUNDS: tuple[Target, ...] = (
    message("join", *_JOINS),
    message("closing", Closing(Epoch(5)), Closing(Epoch(5), 2, stand_in=True, failures=3)),
    message("report", Report(_DIGEST, (b"", b"h" * 32, b"g" * 32)), memory_factor=48, input_bytes=_LARGE),
    message(
        "blocks-request", BlocksRequest(_DIGEST, (BlockIndex(0), BlockIndex(3), BlockIndex(2**20))), memory_factor=64, input_bytes=_LARGE
    ),
    message("manifest-request", ManifestRequest(), ManifestRequest(_STATE), form=BYTES, canonical=True),
    message("pieces-request", PiecesRequest(_STATE, (0, 1, 2**32 - 1)), form=BYTES, canonical=True),
    message("measure-request", MeasureRequest(0, 1), MeasureRequest(MAX_STEP_BYTES, MAX_STEP_BYTES), form=BYTES, canonical=True),
    message("piece-chunk", PieceChunk(3, 64, b"some bytes"), form=BYTES, canonical=True),
    Target(
        "manifest",
        lambda data: Manifest.decode(data, SENDER),
        _states,
        encode=lambda value: value.encoded,
        canonical=True,
        input_bytes=_LARGE,
    ),
    Target("sealed-join", _sealed_payload, lambda: [join.encode() for join in _JOINS], form=PROTOBUF),
    Target("signed-join", lambda data: open_join(context(), data), lambda: [member.sealed for member in plan_of_three().members]),
    Target("plan", _read_plan, lambda: [plan_of_three().encode()], encode=Plan.encode, form=PROTOBUF, input_bytes=_LARGE),
    Target(
        "join-reply",
        _read_reply,
        lambda: [_write_reply(plan_of_three()), _write_reply(_COMMIT)],
        (RemoteProtocolError, RemoteRefusal),
        _write_reply,
        form=PROTOBUF,
        input_bytes=_LARGE,
    ),
    Target("verdict", _read_verdict, _verdict_seeds, form=PROTOBUF, input_bytes=_LARGE),
    Target("frames-parts", _read_frames(FrameKind.PART), lambda: _frames(FrameKind.PART, 0), form=FIELDS),
    Target("frames-results", _read_frames(FrameKind.RESULT), lambda: _frames(FrameKind.RESULT, 5), form=FIELDS),
    *(_codec_target(codec) for name in CODEC_NAMES for codec in both_ways(name)),
)
