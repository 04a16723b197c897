"""Our libp2p node: one daemon, our Ed25519 identity, small authenticated calls, and the handle that the DHT runs on.

A call is one libp2p stream with protocol "/swarm/1/<name>", framed as `peers.libp2p_wire` says. Who calls is what libp2p proved when the
connection was made.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import base58
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.utils import (
    P2PDaemonError,
    read_pbmsg_safe,
    write_pbmsg,
)
from hivemind.proto import p2pd_pb2 as pb
from hivemind.utils.logging import use_hivemind_log_handler
from hivemind.utils.multiaddr import Multiaddr

from peers.interfaces import CallHandler
from peers.libp2p_daemon import Daemon, Libp2pOptions, port_in_use, start_daemon
from peers.libp2p_wire import encode_reply, encode_request, read_reply, read_request
from peers.runtime_directory import RuntimeDirectory
from peers.transport.handling import Answered, Broken, Refusal, run_handler, unknown_method
from protocols.errors import LocalProtocolError, NetworkSetupError, RemoteProtocolError, RemoteTimeout
from protocols.ids import PeerId

log = logging.getLogger(__name__)

_PREFIX = "/swarm/1/"
_MAX_CALLS = 64
_MAX_CALLS_PER_PEER = 8
_MAX_OPEN = 4 * _MAX_CALLS  # beyond this nobody is even told that we are busy
_REQUEST_TIMEOUT_S = 10.0
_SERVE_TIMEOUT_S = 60.0
_CONTROL_TIMEOUT_S = 10.0
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


def split_address(address: str) -> tuple[PeerId, str]:
    """Split a full multiaddress ".../p2p/12D3..." into the peer and what leads to it.

    Raises:
        NetworkSetupError: it is not one.
    """
    route, found, name = address.rpartition("/p2p/")
    try:
        if not found or not route:
            raise ValueError("no peer id")
        _encode_route(route)
        return PeerId.parse(name), route
    except ValueError as error:
        raise NetworkSetupError(f"{address!r} is not an address like /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW...") from error


class Libp2pNode:
    """A running node. Make it by `async with Libp2pNode.start(seed) as node`."""

    def __init__(self, peer: PeerId, daemon: Daemon, p2p: Any, directory: Path) -> None:  # hivemind has no types
        self.peer = peer
        self.p2p = p2p
        """hivemind's handle on the daemon; only `peers.store.hivemind_dht` uses it."""
        self._daemon = daemon
        self._control_path = str(directory / "control.sock")
        self._listen_path = str(directory / "calls.sock")
        self._handlers: dict[str, CallHandler] = {}
        self._calls: dict[asyncio.Task[Any], None] = {}
        self._calls_by_peer: Counter[PeerId] = Counter()
        self._addresses: list[str] = []

    @classmethod
    @asynccontextmanager
    async def start(cls, seed: bytes, options: Libp2pOptions | None = None, runtime_base: Path | None = None) -> AsyncIterator[Libp2pNode]:
        """Start the daemon in the running loop; everything is gone, files included, when the context ends.

        Args:
            seed: 32 bytes of Ed25519 private key.
            options: where to listen; all interfaces by default.
            runtime_base: parent of the private directory for sockets; one per user under the temporary directory by default.

        Raises:
            NetworkSetupError: the daemon cannot start, or a port is taken.

        Cancellation: ends the daemon and removes the files. Should even that be cut short, the daemon ends when we do, and the next
        start removes the files.
        """
        options = options or Libp2pOptions()
        peer = PeerId(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())
        async with AsyncExitStack() as stack:
            directory = RuntimeDirectory(runtime_base)
            stack.callback(directory.remove)
            daemon = await start_daemon(directory.path, seed, options)
            stack.push_async_callback(daemon.stop)
            p2p = await _attach(directory.path)
            stack.push_async_callback(_detach, p2p)
            daemon.on_exit = lambda: fail_pending_calls(p2p, "the libp2p daemon ended")
            node = cls(peer, daemon, p2p, directory.path)
            await node.refresh_addresses()
            node._check_ports(options)
            server = await asyncio.start_unix_server(node._serve_stream, path=node._listen_path)
            stack.push_async_callback(node._stop_serving, server)
            log.info("libp2p node is up peer=%s pid=%d addresses=%s", peer.short, daemon.pid, node._addresses)
            yield node

    @property
    def daemon_pid(self) -> int:
        """Process id of the daemon."""
        return self._daemon.pid

    async def wait_for_daemon_exit(self) -> None:
        """Return when the daemon has ended. Before the node is closed that means it crashed: nobody can be reached any more."""
        await asyncio.shield(self._daemon.exited)

    def addresses(self) -> list[str]:
        """Full multiaddresses as of the start or the last `refresh_addresses`."""
        return list(self._addresses)

    async def refresh_addresses(self) -> list[str]:
        """Ask the daemon for its addresses: they change when the router gives us a port or a relay takes us."""
        async with asyncio.timeout(_CONTROL_TIMEOUT_S), self._control(pb.Request(type=pb.Request.IDENTIFY)) as (reply, _, _):
            self._addresses = [f"{Multiaddr(raw)}/p2p/{self.peer}" for raw in reply.identify.addrs]
        return self.addresses()

    async def serve(self, name: str, handler: CallHandler) -> None:
        """Answer calls named `name` from now on.

        Raises:
            LocalProtocolError: the name is taken.
        """
        protocol = _PREFIX + name
        if protocol in self._handlers:
            raise LocalProtocolError(f"a handler for {name!r} is registered already")
        self._handlers[protocol] = handler
        where = Multiaddr(f"/unix{self._listen_path}").to_bytes()
        request = pb.StreamHandlerRequest(addr=where, proto=[protocol], balanced=False)
        async with asyncio.timeout(_CONTROL_TIMEOUT_S):
            async with self._control(pb.Request(type=pb.Request.STREAM_HANDLER, streamHandler=request)) as (reply, _, _):
                if reply.type == pb.Response.ERROR:
                    raise LocalProtocolError(f"the libp2p daemon refuses a handler for {name!r}: {reply.error.msg}")

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        """Make sure there is a connection to the peer at `address`.

        Raises:
            NetworkSetupError: not a full multiaddress.
            RemoteTimeout: nobody, or somebody else, answers there.
        """
        peer, route = split_address(address)
        if peer == self.peer:
            return peer
        request = pb.ConnectRequest(peer=_peer_bytes(peer), addrs=[_encode_route(route)], timeout=math.ceil(timeout_s))
        with _as_remote(peer, timeout_s):
            async with asyncio.timeout(timeout_s):
                async with self._control(pb.Request(type=pb.Request.CONNECT, connect=request)) as (reply, _, _):
                    _raise_if_failed(reply, peer)
        return peer

    async def call(self, to: PeerId | str, name: str, request: bytes, *, timeout_s: float) -> bytes:
        """One request, one reply.

        Args:
            to: a full multiaddress, or the id of a peer that libp2p can find (connected, or known to its DHT).
            name: what the other side serves.
            request: at most `MAX_CALL_BYTES`.
            timeout_s: for everything, dialling included.

        Raises:
            LocalProtocolError: the request is too large.
            NetworkSetupError: `to` is not a full multiaddress.
            RemoteTimeout: unreachable, broken, or no reply in time.
            RemoteRefusal: the handler refused, or nobody serves `name` there (code "unknown-method").
            RemoteProtocolError: an oversized or malformed reply.
        """
        encoded = encode_request(request)
        peer = to if isinstance(to, PeerId) else split_address(to)[0]
        with _as_remote(peer, timeout_s):
            async with asyncio.timeout(timeout_s):
                if isinstance(to, str):
                    await self.connect(to, timeout_s=timeout_s)
                opening = pb.StreamOpenRequest(peer=_peer_bytes(peer), proto=[_PREFIX + name], timeout=math.ceil(timeout_s))
                opened = self._control(pb.Request(type=pb.Request.STREAM_OPEN, streamOpen=opening))
                async with opened as (reply, reader, writer):
                    _raise_if_failed(reply, peer, name)
                    writer.write(encoded)
                    await writer.drain()
                    return await read_reply(reader, peer)

    @asynccontextmanager
    async def _control(self, request: Any) -> AsyncIterator[tuple[Any, Reader, Writer]]:
        """One request to the daemon on a connection of its own, which turns into the stream when it opens one."""
        reader, writer = await asyncio.open_unix_connection(self._control_path)
        try:
            await write_pbmsg(writer, request)
            reply = pb.Response()
            await read_pbmsg_safe(reader, reply)
            yield reply, reader, writer
        finally:
            writer.close()

    async def _serve_stream(self, reader: Reader, writer: Writer) -> None:
        """Owner of one incoming call; asyncio starts it as a task for every stream that the daemon hands over."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # asyncio runs this as a task
        if len(self._calls) >= _MAX_OPEN:
            writer.close()
            return
        self._calls[task] = None
        info = pb.StreamInfo()
        try:
            async with asyncio.timeout(_SERVE_TIMEOUT_S):
                await read_pbmsg_safe(reader, info)
                caller = _parse_peer(info.peer)
                self._calls_by_peer[caller] += 1
                try:
                    await self._serve_call(caller, info.proto, reader, writer)
                finally:
                    self._calls_by_peer[caller] -= 1
                    self._calls_by_peer += Counter()  # drops the zeros
        except (TimeoutError, EOFError, OSError, ValueError, RemoteProtocolError) as error:
            log.debug("dropped a call from=%s reason=%r", base58.b58encode(info.peer).decode() if info.HasField("peer") else "?", error)
        finally:
            self._calls.pop(task, None)
            writer.close()

    async def _serve_call(self, caller: PeerId, protocol: str, reader: Reader, writer: Writer) -> None:
        name = protocol.removeprefix(_PREFIX)
        handler = self._handlers.get(protocol)
        outcome: Answered[bytes] | Refusal | Broken
        if len(self._calls) > _MAX_CALLS or self._calls_by_peer[caller] > _MAX_CALLS_PER_PEER:
            outcome = Refusal("busy", "too many calls at once, try again later")
        elif handler is None:
            outcome = unknown_method(name)
        else:
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                request = await read_request(reader, caller)
            outcome = await run_handler(handler(caller, request), name, caller)
        writer.write(encode_reply(outcome, name))
        await writer.drain()
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            while await reader.read(2**16):  # until the caller closes: closing first could cut off what it has not read
                pass

    async def _stop_serving(self, server: asyncio.Server) -> None:
        server.close()
        for task in list(self._calls):
            task.cancel()
        if self._calls:
            await asyncio.wait(list(self._calls), timeout=1.0)

    def _check_ports(self, options: Libp2pOptions) -> None:
        """The daemon starts when one of several addresses works; we asked for all of them.

        Raises:
            NetworkSetupError: a port that we asked for is not ours.
        """
        have = {part.split("/")[0] for address in self._addresses for part in address.split("/tcp/")[1:]}
        for address in options.listen if not options.announce else ():
            port = address.split("/tcp/")[1].split("/")[0]
            if port not in have | {"0"}:
                raise port_in_use(address)


def fail_pending_calls(p2p: Any, reason: str) -> None:
    """End every request that waits for an answer of the daemon on the persistent connection, so that no task of the DHT waits on."""
    for future in list(p2p._client.control._pending_calls.values()):  # noqa: SLF001  # hivemind 1.1 has no other way
        if not future.done():
            future.set_exception(P2PDaemonError(reason))


async def _attach(directory: Path) -> Any:
    """Client of hivemind for a daemon that we started."""
    try:
        async with asyncio.timeout(_CONTROL_TIMEOUT_S):
            return await P2P.replicate(Multiaddr(f"/unix{directory}/control.sock"))
    except (OSError, TimeoutError, EOFError) as error:
        raise NetworkSetupError(f"The libp2p daemon does not answer on its control socket: {error}.") from error


async def _detach(p2p: Any) -> None:
    fail_pending_calls(p2p, "this node is closing")
    control = p2p._client.control  # noqa: SLF001
    handlers = list(control._handler_tasks.values())  # noqa: SLF001
    for task in handlers:
        task.cancel()
    await p2p.shutdown()
    tasks = [task for task in (control._read_task, control._write_task, *handlers) if task is not None]  # noqa: SLF001
    done, _ = await asyncio.wait(tasks, timeout=1.0)
    for task in done:
        if not task.cancelled():
            task.exception()  # seen here, or asyncio reports it as never retrieved


def _raise_if_failed(reply: Any, peer: PeerId, name: str = "") -> None:
    if reply.type != pb.Response.ERROR:
        return
    if "protocols not supported" in reply.error.msg:
        raise unknown_method(name).as_error(peer)
    raise RemoteTimeout(peer, f"cannot be reached: {_why_not_dialled(reply.error.msg)}")


def _why_not_dialled(message: str) -> str:
    """What go-libp2p says of each address that it tried, without addresses and doubles; its whole message if it is not about dialling."""
    reasons = re.findall(r"^\s*\* \[[^\]]*\] (.*)$", message, re.MULTILINE)
    told = dict.fromkeys(reason.rpartition(": ")[2] for reason in reasons if reason != "dial backoff")
    return (", ".join(told) or " ".join(message.split()))[:300]


@contextlib.contextmanager
def _as_remote(peer: PeerId, timeout_s: float) -> Any:
    """Turn what a broken connection raises into RemoteTimeout."""
    try:
        yield
    except TimeoutError as error:
        raise RemoteTimeout(peer, f"no answer within {timeout_s:g} s") from error
    except (EOFError, OSError) as error:
        raise RemoteTimeout(peer, "the connection broke") from error


def _peer_bytes(peer: PeerId) -> bytes:
    return base58.b58decode(str(peer))


def _parse_peer(raw: bytes) -> PeerId:
    return PeerId.parse(base58.b58encode(raw).decode())


def _encode_route(route: str) -> bytes:
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
