"""Parts that members committed to: served to whoever looks at a round, and fetched from whoever holds them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from peers.averaging.context import MemberContext
from peers.averaging.evidence import Committed, Evidence, read_committed
from peers.interfaces import Stream
from protocols.errors import RemoteError, RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.frames import BlockBytes, FrameKind, FrameReader, frames_of
from protocols.ids import BlockIndex, PeerId
from protocols.messages import require
from protocols.messages_blocks import PartsRequest
from protocols.proto.swarm.v1 import trust_pb2 as pb

log = logging.getLogger(__name__)

PARTS = "parts"
"""Name of the stream."""


async def serve_parts(stream: Stream, evidence: Evidence | None, request: PartsRequest) -> None:
    """Answer a `PartsRequest`: the member's commitment, then the blocks in the order asked.

    Raises:
        RemoteRefusal: we do not hold what is asked for.
    """
    if evidence is not None and evidence.plan.index_of(stream.peer) is None:
        raise RemoteRefusal(stream.peer, "not-in-plan", "you are not in this plan")
    if evidence is not None and evidence.forgotten:
        raise RemoteRefusal(stream.peer, "forgotten", "that round is too long ago")
    committed = evidence.committed.get(request.member) if evidence else None
    if evidence is None or committed is None:
        raise RemoteRefusal(stream.peer, "unknown-parts", "this member holds nothing of that member's in that round")
    held = [evidence.parts.get((request.member, block)) for block in request.blocks]
    if any(data is None for data in held):
        raise RemoteRefusal(stream.peer, "missing-block", "this member does not hold all of these blocks")
    certificate = evidence.certificates.get(request.member, ())
    m = pb.Committed(sealed_commitment=committed.sealed, block_hashes=committed.contents, certificate=certificate)
    await stream.send(m.SerializeToString())
    for block, data in zip(request.blocks, held, strict=True):
        for frame in frames_of(BlockBytes(FrameKind.PART, block, data or b"")):
            await stream.send(frame)


async def fetch_parts(
    context: MemberContext, evidence: Evidence, member: int, blocks: Sequence[BlockIndex], holders: Iterable[PeerId]
) -> bool:
    """Get what we lack of a member's parts from the first of these holders that has them; kept in the evidence.

    Returns:
        Whether we hold all of them now.
    """
    missing = [block for block in blocks if (member, block) not in evidence.parts]
    for holder in holders:
        if not missing:
            break
        if holder == context.me:
            continue
        try:
            await _fetch(context, evidence, member, missing, holder)
        except RemoteError as error:
            log.info("parts of member %s not had: %s", evidence.plan.members[member].peer.short, error)
        missing = [block for block in blocks if (member, block) not in evidence.parts]
    return not missing


async def refuses_parts(context: MemberContext, evidence: Evidence, member: int, block: BlockIndex, holder: PeerId) -> bool:
    """Whether a holder answers, and says that it will not show a part. Silence is no refusal."""
    try:
        await _fetch(context, evidence, member, [block], holder)
    except RemoteRefusal as error:
        return error.code in ("unknown-parts", "missing-block")
    except RemoteError:
        return False
    return False


async def fetch_certificate(context: MemberContext, evidence: Evidence, member: int, holders: Iterable[PeerId]) -> None:
    """Look for the certificate of what a member brings to a later round: its reducers have it, and so do we if it has brought it to us."""
    for holder in holders:
        endpoint = context.directory.endpoint(holder)
        if evidence.is_vouched(member):
            break
        if endpoint is None or holder == context.me:
            continue
        try:
            async with context.transport.stream(endpoint, PARTS, timeout_s=context.rules.round_timeout_s) as stream:
                await stream.send(PartsRequest(evidence.digest, member, ()).encode())
                await stream.finish_sending()
                shown = await _receive(stream, context.rules.stall_timeout_s)
                await context.heavy(lambda data=shown: evidence.note_committed(member, data))  # type: ignore[misc]
        except RemoteError as error:
            log.info("certificate of member %s not had: %s", evidence.plan.members[member].peer.short, error)


async def _fetch(context: MemberContext, evidence: Evidence, member: int, blocks: Sequence[BlockIndex], holder: PeerId) -> None:
    endpoint, rules = context.directory.endpoint(holder), context.rules
    if endpoint is None:
        raise RemoteTimeout(holder, "it cannot be dialled")
    lengths = {block: rules.part_codec(evidence.plan.round_index).lengths(evidence.blocks.elems(block)) for block in blocks}
    reader = FrameReader(holder, FrameKind.PART, lengths, hashed=True)
    async with context.transport.stream(endpoint, PARTS, timeout_s=rules.round_timeout_s) as stream:
        await stream.send(PartsRequest(evidence.digest, member, tuple(blocks)).encode())
        await stream.finish_sending()
        first = await _receive(stream, rules.stall_timeout_s)
        committed = await context.heavy(lambda: _read(context, evidence, member, first))
        known = evidence.committed.setdefault(member, committed)
        require(known.contents == committed.contents, holder, "another commitment than we know")
        while not reader.complete:
            item = reader.feed(await _receive(stream, rules.stall_timeout_s))
            if item:
                require(item.content == known.contents[item.block], holder, f"block {item.block} is not the one that was committed to")
                evidence.parts[member, item.block] = item.data


def _read(context: MemberContext, evidence: Evidence, member: int, data: bytes) -> Committed:
    committed = read_committed(context, evidence.plan, evidence.plan.members[member].peer, data)
    if not committed.contents:
        raise RemoteProtocolError(evidence.plan.members[member].peer, "it has committed to nothing")
    return committed


async def _receive(stream: Stream, stall_timeout_s: float) -> bytes:
    try:
        async with asyncio.timeout(stall_timeout_s):
            frame = await stream.receive()
    except TimeoutError as error:
        raise RemoteTimeout(stream.peer, "silent while serving parts") from error
    if frame is None:
        raise RemoteRefusal(stream.peer, "incomplete", "it does not serve every part")
    return bytes(frame)
