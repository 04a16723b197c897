"""The libp2p daemon (`p2pd`, shipped inside hivemind) as a child process that never outlives us.

Why no watchdog is needed, measured with hivemind 1.1.12: p2pd ends by itself within 50 ms once its persistent control connection closes,
however we died (SIGKILL included), and removes its own socket. Until that connection exists `-idleTimeout` ends it. It gets a session of
its own, so a terminal's Ctrl-C reaches only us and we close things in order.

This file does not import hivemind: it only looks up where the binary lies.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peers import emergency
from protocols.errors import ExitCode, NetworkSetupError

log = logging.getLogger(__name__)

MAX_CONTROL_MESSAGE_BYTES = 4 * 2**20
"""Largest message on the persistent control connection, which carries the DHT's requests and replies."""

_ATTACH_TIMEOUT_S = 15
_STOP_TIMEOUT_S = 2.0
_IDENTITY_PREFIX = bytes([0x08, 0x01, 0x12, 0x40])  # protobuf crypto.pb.PrivateKey {type: Ed25519, data: 64 bytes}


@dataclass(frozen=True, slots=True)
class Libp2pOptions:
    """What the daemon listens on and how far it goes to be reachable.

    Args:
        listen: TCP multiaddresses such as "/ip4/0.0.0.0/tcp/0"; none means that nobody can dial us.
        announce: multiaddresses to tell others instead of those found on the interfaces; ports must be explicit.
        nat_traversal: ask the router for a port (UPnP, NAT-PMP), learn from others whether we are reachable (AutoNAT), and use relays
            when we are not. Off on a local network and in tests.
        relays: full multiaddresses of trusted relays; used with `nat_traversal` only.
        serve_relay: relay other peers' traffic (costs bandwidth); for machines with a public address.
        start_timeout_s: how long the daemon may take to come up.
    """

    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    announce: tuple[str, ...] = ()
    nat_traversal: bool = False
    relays: tuple[str, ...] = ()
    serve_relay: bool = False
    start_timeout_s: float = 15.0

    def __post_init__(self) -> None:
        for address in self.listen:
            if "/tcp/" not in address or "quic" in address or "/udp/" in address:
                raise NetworkSetupError(f"Cannot listen on {address!r}: give a TCP multiaddress such as /ip4/0.0.0.0/tcp/4001.")


def identity_bytes(seed: bytes) -> bytes:
    """A private key the way p2pd reads it.

    Args:
        seed: 32 bytes of Ed25519 private key.
    """
    return _IDENTITY_PREFIX + seed + Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


class Daemon(asyncio.SubprocessProtocol):
    """A running p2pd. Made by `start_daemon`."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.exited: asyncio.Future[None] = loop.create_future()
        self.on_exit: Callable[[], None] | None = None
        self.transport: asyncio.SubprocessTransport | None = None
        self._pending = b""
        self._tail: deque[str] = deque(maxlen=10)

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        return self.transport.get_pid() if self.transport else -1

    @property
    def last_words(self) -> str:
        """Its last lines of output."""
        return " ".join(self._tail)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self.transport = cast(asyncio.SubprocessTransport, transport)  # uvloop's does not inherit from asyncio's
        pid = self.transport.get_pid()
        emergency.register(self, lambda: os.kill(pid, signal.SIGKILL))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Called by asyncio: note what the daemon says, and that it is up."""
        *lines, rest = (self._pending + data).split(b"\n")
        self._pending = rest[-4096:]
        for line in lines:
            text = line.decode(errors="replace").strip()
            self._tail.append(text[:500])
            log.debug("p2pd: %s", text)
            if text.startswith("Peer ID:") and not self.ready.done():
                self.ready.set_result(None)

    def process_exited(self) -> None:
        """Called by asyncio."""
        emergency.forget(self)
        self._tail.append(self._pending.decode(errors="replace").strip()[:500])
        if not self.exited.done():
            self.exited.set_result(None)
        if not self.ready.done():
            self.ready.set_exception(NetworkSetupError("The libp2p daemon ended while it was starting."))
        if self.on_exit:
            self.on_exit()

    async def stop(self) -> None:
        """End the process: SIGTERM, then SIGKILL after 2 s. Idempotent."""
        if self.transport is None:
            return
        try:
            for end in (self.transport.terminate, self.transport.kill):
                if self.exited.done():
                    break
                with contextlib.suppress(ProcessLookupError, TimeoutError):
                    end()
                    await asyncio.wait_for(asyncio.shield(self.exited), _STOP_TIMEOUT_S)
        finally:
            self.transport.close()  # kills what a second cancellation kept us from waiting for


async def start_daemon(directory: Path, seed: bytes, options: Libp2pOptions) -> Daemon:
    """Start p2pd with its control socket at `directory`/control.sock and wait until it listens.

    Args:
        directory: private; the identity lies there, mode 0600, until the daemon has read it.
        seed: 32 bytes of Ed25519 private key.
        options: where to listen.

    Raises:
        NetworkSetupError: port in use, address not ours, or it does not come up in time.
    """
    identity = directory / "identity"
    fd = os.open(identity, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(identity_bytes(seed))
    environment = {"PATH": os.defpath, "GOLOG_LOG_LEVEL": "error"}
    command = [str(_binary()), *_arguments(directory, identity, options)]
    loop = asyncio.get_running_loop()
    try:
        _, daemon = await loop.subprocess_exec(
            Daemon, *command, stdin=None, stderr=asyncio.subprocess.STDOUT, env=environment, start_new_session=True
        )
    except OSError as error:
        raise NetworkSetupError(f"Cannot start the libp2p daemon: {error}.") from error
    try:
        async with asyncio.timeout(options.start_timeout_s):
            await daemon.ready
    except (NetworkSetupError, TimeoutError) as error:
        await daemon.stop()
        raise _explain(daemon.last_words, options) from error
    except asyncio.CancelledError:
        await daemon.stop()
        raise
    finally:
        identity.unlink(missing_ok=True)
    return daemon


def _binary() -> Path:
    spec = importlib.util.find_spec("hivemind")
    if spec is None or spec.origin is None:
        raise NetworkSetupError("The package hivemind is not installed: install this project's requirements again.")
    return Path(spec.origin).parent / "hivemind_cli" / "p2pd"


def _arguments(directory: Path, identity: Path, options: Libp2pOptions) -> list[str]:
    flags: dict[str, object] = {
        "listen": f"/unix{directory}/control.sock",
        "id": identity,
        "dhtServer" if options.listen else "dhtClient": 1,  # libp2p's own DHT finds the address of a peer id; records are not kept there
        "idleTimeout": f"{_ATTACH_TIMEOUT_S}s",
        "persistentConnMaxMsgSize": MAX_CONTROL_MESSAGE_BYTES,
        "connManager": 1,
        "tls": 1,
        "noise": 1,
        "natPortMap": int(options.nat_traversal),
        "autonat": int(options.nat_traversal),
        "autoRelay": int(options.nat_traversal),
        "relay": int(options.nat_traversal or options.serve_relay),
        "relayService": int(options.serve_relay),
    }
    if options.listen:
        flags["hostAddrs"] = ",".join(options.listen)
    else:
        flags["noListenAddrs"] = 1
    if options.announce:
        flags["announceAddrs"] = ",".join(options.announce)
    if options.relays and options.nat_traversal:
        flags["trustedRelays"] = ",".join(options.relays)
    return [f"-{name}={value}" for name, value in flags.items()]


def _explain(last_words: str, options: Libp2pOptions) -> NetworkSetupError:
    where = ", ".join(options.listen)
    if "address already in use" in last_words:
        return port_in_use(where)
    if "cannot assign requested address" in last_words:
        return NetworkSetupError(f"Cannot listen on {where}: it is not an address of this machine.")
    return NetworkSetupError(f"The libp2p daemon did not start within {options.start_timeout_s:g} s: {last_words or 'it said nothing'}.")


def port_in_use(where: str) -> NetworkSetupError:
    """The error for a port that another program holds."""
    return NetworkSetupError(
        f"Cannot listen on {where}: the port is in use, choose another or stop the other program.", ExitCode.PORT_IN_USE
    )
