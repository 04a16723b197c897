"""What we ask of the libp2p daemon on its control socket, how it names peers and addresses, and what its failures mean.

Each request takes a connection of its own, which turns into the stream when it opens one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import base58
from google.protobuf.message import DecodeError
from hivemind.p2p.p2p_daemon_bindings.utils import read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2 as pb
from hivemind.utils.logging import use_hivemind_log_handler
from hivemind.utils.multiaddr import Multiaddr

from peers.transport.handling import unknown_method
from peers.transport.pipe import Pipe
from protocols.errors import LocalProtocolError, NetworkSetupError, RemoteGone, RemoteTimeout
from protocols.ids import PeerId

PREFIX = "/swarm/1/"
"""Of the names of all our libp2p protocols."""

CONTROL_TIMEOUT_S = 10.0
_MAX_PEER_BYTES = 64
_P2P_CODE = b"\xa5\x03"  # multicodec 421 as a varint

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


def _quiet_hivemind() -> None:
    """Undo what importing hivemind does to logging: its own stderr handler, and "WARN" as the name of the level WARNING everywhere.

    Its messages go to the application's handlers like any library's; without any handlers they go nowhere.
    """
    use_hivemind_log_handler("nowhere")
    logging.addLevelName(logging.WARNING, "WARNING")
    logging.getLogger("hivemind").addHandler(logging.NullHandler())


_quiet_hivemind()


class Control:
    """Speaks with one daemon.

    Args:
        path: of its control socket.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    async def addresses(self) -> list[str]:
        """Where it listens, or is announced, as text without the peer."""
        async with asyncio.timeout(CONTROL_TIMEOUT_S), self._request(pb.Request(type=pb.Request.IDENTIFY)) as (reply, _, _):
            return [str(Multiaddr(raw)) for raw in reply.identify.addrs]

    async def register(self, name: str, path: str) -> None:
        """Have incoming streams named `name` handed over at the Unix socket `path`.

        Raises:
            LocalProtocolError: it refuses.
        """
        handler = pb.StreamHandlerRequest(addr=Multiaddr(f"/unix{path}").to_bytes(), proto=[PREFIX + name], balanced=False)
        request = pb.Request(type=pb.Request.STREAM_HANDLER, streamHandler=handler)
        async with asyncio.timeout(CONTROL_TIMEOUT_S), self._request(request) as (reply, _, _):
            if reply.type == pb.Response.ERROR:
                raise LocalProtocolError(f"the libp2p daemon refuses a handler for {name!r}: {reply.error.msg}")

    async def connect(self, peer: PeerId, routes: Sequence[str], timeout_s: float) -> None:
        """Have it make sure of a connection, by any of the routes (multiaddresses without the peer); without any, nothing happens.

        Raises:
            RemoteGone, RemoteTimeout: there is none.
        """
        if not routes:
            return
        wanted = pb.ConnectRequest(peer=_peer_bytes(peer), addrs=[encode_route(route) for route in routes], timeout=math.ceil(timeout_s))
        async with self._request(pb.Request(type=pb.Request.CONNECT, connect=wanted)) as (reply, _, _):
            _raise_if_failed(reply, peer)

    @asynccontextmanager
    async def stream(self, peer: PeerId, name: str, timeout_s: float) -> AsyncIterator[tuple[Reader, Writer]]:
        """A new stream, closed with the context.

        Raises:
            RemoteRefusal: it is connected, and does not serve `name`.
            RemoteGone, RemoteTimeout: it cannot be reached.
        """
        async with self._request(_opening(peer, name, timeout_s)) as (reply, reader, writer):
            _raise_if_failed(reply, peer, name)
            yield reader, writer

    async def pipe(self, peer: PeerId, name: str, timeout_s: float) -> Pipe:
        """A new stream as a pipe; raises what `stream` raises, and EOFError if the daemon hangs up."""
        opened: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

        def answered(_pipe: Pipe, message: bytes | None) -> None:
            if not opened.done():
                opened.set_result(message)

        _, pipe = await asyncio.get_running_loop().create_unix_connection(lambda: Pipe(answered), self._path)
        try:
            pipe.write_preamble(_opening(peer, name, timeout_s).SerializeToString())
            message = await opened
            if message is None:
                raise EOFError
            _raise_if_failed(pb.Response.FromString(message), peer, name)
        except BaseException:
            pipe.close()
            raise
        return pipe

    @asynccontextmanager
    async def _request(self, request: Any) -> AsyncIterator[tuple[Any, Reader, Writer]]:
        reader, writer = await asyncio.open_unix_connection(self._path)
        try:
            await write_pbmsg(writer, request)
            reply = pb.Response()
            await read_pbmsg_safe(reader, reply)
            yield reply, reader, writer
        finally:
            writer.close()


def _opening(peer: PeerId, name: str, timeout_s: float) -> Any:
    stream = pb.StreamOpenRequest(peer=_peer_bytes(peer), proto=[PREFIX + name], timeout=math.ceil(timeout_s))
    return pb.Request(type=pb.Request.STREAM_OPEN, streamOpen=stream)


def encode_stream_info(peer: PeerId, name: str) -> bytes:
    """What the daemon says first on a stream that it hands over."""
    info: bytes = pb.StreamInfo(peer=_peer_bytes(peer), addr=b"", proto=PREFIX + name).SerializeToString()
    return info


def decode_stream_info(message: bytes) -> tuple[PeerId, str]:
    """Who has opened a stream, and its name.

    Raises:
        ValueError: not a message of the daemon, or a peer whose key is not Ed25519.
    """
    try:
        info = pb.StreamInfo.FromString(message)
    except DecodeError as error:
        raise ValueError(f"not a message of the daemon: {error}") from error
    if len(info.peer) > _MAX_PEER_BYTES:  # writing base58 takes time with the square of the length
        raise ValueError(f"a peer id of {len(info.peer)} bytes")
    return PeerId.parse(base58.b58encode(info.peer).decode()), _text(info.proto).removeprefix(PREFIX)


def _text(field: str | bytes) -> str:
    """A text field of the daemon's: protobuf gives bytes where they are not UTF-8, and the other side may have had its say in them."""
    return field if isinstance(field, str) else field.decode(errors="replace")


async def read_stream_info(reader: Reader) -> tuple[PeerId, str]:
    """The same from a stream; raises EOFError where it ends before."""
    info = pb.StreamInfo()
    await read_pbmsg_safe(reader, info)
    return decode_stream_info(info.SerializeToString())


def split_address(address: str) -> tuple[PeerId, str]:
    """Split a full multiaddress ".../p2p/12D3..." into the peer and what leads to it.

    Raises:
        NetworkSetupError: it is not one.
    """
    route, found, name = address.rpartition("/p2p/")
    try:
        if not found or not route:
            raise ValueError("no peer id")
        encode_route(route)
        return PeerId.parse(name), route
    except ValueError as error:
        raise NetworkSetupError(f"{address!r} is not an address like /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW...") from error


def _raise_if_failed(reply: Any, peer: PeerId, name: str = "") -> None:
    if reply.type != pb.Response.ERROR:
        return
    message = _text(reply.error.msg)
    if "protocols not supported" in message:
        raise unknown_method(name).as_error(peer)
    reasons = _why_not_dialled(message)
    why = (", ".join(reasons) or " ".join(message.split()))[:300]
    if reasons == ["connection refused"]:
        raise RemoteGone(peer, f"cannot be reached: {why}")
    raise RemoteTimeout(peer, f"cannot be reached: {why}")


def _why_not_dialled(message: str) -> list[str]:
    """What go-libp2p says of each address that it tried, without addresses and doubles; empty if the message is not about dialling."""
    reasons = re.findall(r"^\s*\* \[[^\]]*\] (.*)$", message, re.MULTILINE)
    return list(dict.fromkeys(reason.rpartition(": ")[2] for reason in reasons if reason != "dial backoff"))


def route_to(peer: PeerId, address: str) -> str | None:
    """The route in an address that a member announced as its own; None if it is none, or leads to somebody else."""
    try:
        named, route = split_address(address)
    except NetworkSetupError:
        return None
    return route if named == peer else None


@contextlib.contextmanager
def as_remote(peer: PeerId, timeout_s: float) -> Iterator[None]:
    """Turn what a broken connection raises into RemoteTimeout."""
    try:
        yield
    except TimeoutError as error:
        raise RemoteTimeout(peer, f"no answer within {timeout_s:g} s") from error
    except (EOFError, OSError) as error:
        raise RemoteTimeout(peer, "the connection broke") from error


def _peer_bytes(peer: PeerId) -> bytes:
    return base58.b58decode(str(peer))


def encode_route(route: str) -> bytes:
    """Binary form of a multiaddress without the final peer id.

    hivemind writes an inner "/p2p/<relay>" as CIDv1, which go-libp2p refuses, so that part is written here as the bare multihash.

    Raises:
        ValueError: not a multiaddress.
    """
    head, *relays = route.split("/p2p/")
    out: bytes = Multiaddr(head).to_bytes()
    for part in relays:
        name, slash, rest = part.partition("/")
        raw = base58.b58decode(name)
        out += _P2P_CODE + bytes([len(raw) & 0x7F]) + raw
        out += Multiaddr("/" + rest).to_bytes() if slash else b""
    return out
