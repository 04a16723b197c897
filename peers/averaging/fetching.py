"""Reduced blocks that another member already holds: for repairs, and for members that come too late for a round."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from peers.averaging.context import MemberContext
from peers.averaging.result import RoundResult
from peers.interfaces import Stream
from protocols.content import block_hash
from protocols.errors import RemoteError, RemoteGone, RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.frames import HEARTBEAT, BlockBytes, FrameKind, FrameReader, frames_of
from protocols.ids import BlockIndex, PeerId
from protocols.messages_blocks import BlocksRequest

log = logging.getLogger(__name__)


async def fetch_blocks(
    context: MemberContext, holder: PeerId, first_plan_digest: bytes, wanted: Mapping[BlockIndex, bytes], result: RoundResult
) -> bool:
    """Get result blocks from a member and keep those whose hash is right. What does not come stays missing; nothing is raised.

    Returns:
        False if its process has surely ended.
    """
    endpoint = context.directory.endpoint(holder)
    if endpoint is None:
        return True
    rules = context.rules
    lengths = {block: rules.result_codec.lengths(result.blocks.elems(block)) for block in wanted}
    reader = FrameReader(holder, FrameKind.RESULT, lengths)
    try:
        async with context.transport.stream(endpoint, "blocks", timeout_s=rules.round_timeout_s) as stream:
            await stream.send(BlocksRequest(first_plan_digest, tuple(wanted)).encode())
            await stream.finish_sending()
            while not reader.complete:
                try:
                    async with asyncio.timeout(rules.stall_timeout_s):
                        frame = await stream.receive()
                except TimeoutError as error:
                    raise RemoteTimeout(holder, "silent while serving blocks") from error
                if frame is None:
                    raise RemoteRefusal(holder, "incomplete", "it does not serve every block it reported")
                if frame == HEARTBEAT:
                    raise RemoteProtocolError(holder, "a heartbeat where blocks are served")
                item = reader.feed(frame)
                if item:
                    await context.heavy(lambda i=item: _keep(context, holder, i, wanted, result))  # type: ignore[misc]
    except RemoteError as error:
        log.info("result blocks could not be fetched: %s", error)
        return not isinstance(error, RemoteGone)
    return True


def _keep(context: MemberContext, holder: PeerId, item: BlockBytes, wanted: Mapping[BlockIndex, bytes], result: RoundResult) -> None:
    if block_hash(item.content, item.contributors) != wanted[item.block]:
        raise RemoteProtocolError(holder, f"block {item.block} is not the one that was agreed")
    try:
        result.put(item, context.rules.result_codec.open(item.data, result.blocks.elems(item.block)))
    except ValueError as error:
        raise RemoteProtocolError(holder, f"block {item.block}: {error}") from error


async def serve_blocks(context: MemberContext, stream: Stream, results: Mapping[bytes, RoundResult]) -> None:
    """Answer a `BlocksRequest`; encoding a decoded block gives the agreed bytes again (the codec contract).

    Raises:
        RemoteRefusal: we do not hold that round or one of the blocks.
    """
    try:
        async with asyncio.timeout(context.rules.stall_timeout_s):
            first = await stream.receive()
    except TimeoutError as error:
        raise RemoteTimeout(stream.peer, "it asked for no block") from error
    request = BlocksRequest.decode(bytes(first or b""), stream.peer)
    result = results.get(request.first_plan_digest)
    if result is None:
        raise RemoteRefusal(stream.peer, "unknown-round", "this member does not hold the result of that round")
    for block in request.blocks:
        if block >= result.blocks.count or not result.hashes[block]:
            raise RemoteRefusal(stream.peer, "missing-block", f"this member does not hold block {block}")
        start, stop = result.blocks.span(block)
        data = await context.heavy(lambda a=start, b=stop: context.rules.result_codec.encode(result.averaged_D[a:b]))  # type: ignore[misc]
        for frame in frames_of(BlockBytes(FrameKind.RESULT, block, data, result.masks[block])):
            await stream.send(frame)
