"""Our libp2p node: one daemon, our Ed25519 identity, small authenticated calls, raw streams, and the handle that the DHT runs on.

A call is one libp2p stream with protocol "/swarm/1/<name>", framed as `peers.libp2p_wire` says; a raw stream ("pipe") is what its two ends
make of it. Who is at the other end is what libp2p proved when the connection was made.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError
from hivemind.utils.multiaddr import Multiaddr

from peers.interfaces import CallHandler
from peers.libp2p_control import (
    CONTROL_TIMEOUT_S,
    Control,
    Reader,
    Writer,
    as_remote,
    decode_stream_info,
    encode_stream_info,
    read_stream_info,
    route_to,
    split_address,
)
from peers.libp2p_daemon import Daemon, Libp2pOptions, port_in_use, start_daemon
from peers.libp2p_wire import encode_reply, encode_request, read_reply, read_request
from peers.runtime_directory import RuntimeDirectory
from peers.transport.handling import BUSY, UNKNOWN_METHOD, Answered, Broken, Refusal, run_handler, unknown_method
from peers.transport.libp2p_streams import Accept
from peers.transport.pipe import Pipe
from protocols.errors import LocalProtocolError, NetworkSetupError, RemoteGone, RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.ids import PeerId

log = logging.getLogger(__name__)

_MAX_CALLS = 64
_MAX_CALLS_PER_PEER = 8
_MAX_OPEN = 4 * _MAX_CALLS  # beyond this nobody is even told that we are busy
_REQUEST_TIMEOUT_S = 10.0
_SERVE_TIMEOUT_S = 60.0
_MAX_REACHED = 4096


class Libp2pNode:
    """A running node. Make it by `async with Libp2pNode.start(seed) as node`."""

    def __init__(self, peer: PeerId, daemon: Daemon, p2p: Any, directory: Path) -> None:  # hivemind has no types
        self.peer = peer
        self.p2p = p2p
        """hivemind's handle on the daemon; only `peers.store.hivemind_dht` uses it."""
        self._daemon = daemon
        self._control = Control(str(directory / "control.sock"))
        self._listen_path = str(directory / "calls.sock")
        self._pipes_path = str(directory / "pipes.sock")
        self._handlers: dict[str, CallHandler] = {}
        self._acceptors: dict[str, Accept | None] = {}
        self._reached: set[PeerId] = set()
        self._calls: dict[asyncio.Task[Any], None] = {}
        self._calls_by_peer: Counter[PeerId] = Counter()
        self._closing_by_peer: Counter[PeerId] = Counter()
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
            pipes = await asyncio.get_running_loop().create_unix_server(lambda: Pipe(node._accept_pipe), path=node._pipes_path)
            stack.callback(pipes.close)
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
        self._addresses = [f"{address}/p2p/{self.peer}" for address in await self._control.addresses()]
        return self.addresses()

    async def serve(self, name: str, handler: CallHandler) -> None:
        """Answer calls named `name` from now on.

        Raises:
            LocalProtocolError: the name is taken.
        """
        if name in self._handlers or name in self._acceptors:
            raise LocalProtocolError(f"a handler for {name!r} is registered already")
        self._handlers[name] = handler
        await self._control.register(name, self._listen_path)

    @asynccontextmanager
    async def serve_pipes(self, name: str, accept: Accept) -> AsyncIterator[None]:
        """See `peers.transport.libp2p_streams.PipeNode.serve_pipes`.

        Raises:
            LocalProtocolError: the name is taken.
        """
        if name in self._handlers or self._acceptors.get(name) is not None:
            raise LocalProtocolError(f"streams named {name!r} are served already")
        if name not in self._acceptors:
            await self._control.register(name, self._pipes_path)
        self._acceptors[name] = accept
        try:
            yield
        finally:
            self._acceptors[name] = None  # the daemon goes on handing them over; they are dropped

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        """Make sure there is a connection to the peer at `address`.

        Raises:
            NetworkSetupError: not a full multiaddress.
            RemoteTimeout: nobody, or somebody else, answers there.
        """
        peer, route = split_address(address)
        if peer == self.peer:
            return peer
        with as_remote(peer, timeout_s):
            async with asyncio.timeout(timeout_s):
                await self._control.connect(peer, [route], timeout_s)
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
        with as_remote(peer, timeout_s):
            async with asyncio.timeout(timeout_s):
                if isinstance(to, str):
                    await self.connect(to, timeout_s=timeout_s)
                async with self._control.stream(peer, name, timeout_s) as (reader, writer):
                    writer.write(encoded)
                    await writer.drain()
                    return await read_reply(reader, peer)

    async def open_pipe(self, to: PeerId, addresses: Sequence[str], name: str, *, timeout_s: float) -> Pipe:
        """See `peers.transport.libp2p_streams.PipeNode.open_pipe`.

        Args:
            to: whom.
            addresses: full multiaddresses that it announces, by which it is looked for unless there is a connection already; those that do
                not lead to it are passed over. Without any, it must be connected or known to libp2p's own DHT.
            name: what the other side serves.
            timeout_s: for everything, dialling included.
        """
        with as_remote(to, timeout_s):
            async with asyncio.timeout(timeout_s):
                if to == self.peer:
                    return await self._pipe_to_ourselves(name)
                try:
                    return await self._pipe(to, addresses, name, timeout_s)
                except RemoteRefusal as error:
                    if error.code != UNKNOWN_METHOD:
                        raise
                    raise RemoteGone(to, "it runs, but serves no streams") from error

    async def _pipe(self, to: PeerId, addresses: Sequence[str], name: str, timeout_s: float) -> Pipe:
        if to in self._reached:
            try:
                return await self._control.pipe(to, name, timeout_s)
            except RemoteTimeout:
                self._reached.discard(to)  # by now it may be somewhere else
        await self._control.connect(to, [route for address in addresses if (route := route_to(to, address))], timeout_s)
        pipe = await self._control.pipe(to, name, timeout_s)
        if len(self._reached) >= _MAX_REACHED:
            self._reached.clear()
        self._reached.add(to)
        return pipe

    async def _pipe_to_ourselves(self, name: str) -> Pipe:
        """Libp2p does not dial itself, so speak as the daemon would."""
        _, pipe = await asyncio.get_running_loop().create_unix_connection(lambda: Pipe(None), self._pipes_path)
        pipe.write_preamble(encode_stream_info(self.peer, name))
        return pipe

    def _accept_pipe(self, pipe: Pipe, message: bytes | None) -> None:
        accept: Accept | None = None
        if message is not None:
            try:
                peer, name = decode_stream_info(message)
                accept = self._acceptors.get(name)
            except ValueError as error:
                log.debug("dropped a stream: %s", error)
        if accept is None:
            pipe.close()
        else:
            accept(peer, pipe)

    async def _serve_stream(self, reader: Reader, writer: Writer) -> None:
        """Owner of one incoming call; asyncio starts it as a task for every stream that the daemon hands over."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # asyncio runs this as a task
        if len(self._calls) >= _MAX_OPEN:
            writer.close()
            return
        self._calls[task] = None
        caller: PeerId | None = None
        try:
            async with asyncio.timeout(_SERVE_TIMEOUT_S):
                caller, name = await read_stream_info(reader)
                with _counted(self._calls_by_peer, caller):
                    await self._serve_call(caller, name, reader, writer)
                if self._closing_by_peer[caller] < _MAX_CALLS_PER_PEER:
                    with _counted(self._closing_by_peer, caller):
                        await _closed_by_caller(reader)
        except (TimeoutError, EOFError, OSError, ValueError, RemoteProtocolError) as error:
            log.debug("dropped a call from=%s reason=%r", caller or "?", error)
        finally:
            self._calls.pop(task, None)
            writer.close()

    async def _serve_call(self, caller: PeerId, name: str, reader: Reader, writer: Writer) -> None:
        handler = self._handlers.get(name)
        outcome: Answered[bytes] | Refusal | Broken
        if self._calls_by_peer.total() > _MAX_CALLS or self._calls_by_peer[caller] > _MAX_CALLS_PER_PEER:
            outcome = Refusal(BUSY, "too many calls at once, try again later")
        elif handler is None:
            outcome = unknown_method(name)
        else:
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                request = await read_request(reader, caller)
            outcome = await run_handler(handler(caller, request), name, caller)
        writer.write(encode_reply(outcome, name))
        await writer.drain()

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
        async with asyncio.timeout(CONTROL_TIMEOUT_S):
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


@contextmanager
def _counted(counts: Counter[PeerId], caller: PeerId) -> Iterator[None]:
    counts[caller] += 1
    try:
        yield
    finally:
        counts[caller] -= 1
        if not counts[caller]:
            del counts[caller]


async def _closed_by_caller(reader: Reader) -> None:
    """Let the caller close the stream: closing first could cut off what it has not read. By then it may have called again."""
    async with asyncio.timeout(_REQUEST_TIMEOUT_S):
        while await reader.read(2**16):
            pass
