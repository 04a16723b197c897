"""One end of `scripts.bench.transports`: a member of a made-up run that serves, or dials and measures.

    python -m scripts.bench.transports_peer TRANSPORT RANK DIRECTORY      (TRANSPORT: grpc, direct or libp2p; RANK 0 serves, 1 dials)

Rank 0 writes `<directory>/<transport>.json`, where rank 1 finds it. Rank 1 answers orders, JSON lines on standard input:

    {"op": "send", "mib": n, "message_kib": k}   -> {"seconds": t}                     one stream, until the other end has read everything
    {"op": "ask", "times": n}                    -> {"call_s": [...], "message_s": [...]}   64 bytes there and back
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peers.clock import SystemClock
from peers.credentials import MemberCredentials, TlsKey
from peers.identity import Identity
from peers.interfaces import Endpoint, Handlers, Stream, Transport
from peers.libp2p_daemon import Libp2pOptions
from peers.libp2p_node import Libp2pNode
from peers.memory import keep_freed_memory
from peers.transport.direct import DirectTransport
from peers.transport.grpc_mtls import GrpcTransport
from peers.transport.libp2p_streams import Libp2pStreams
from protocols.ids import PeerId, RunId, SwarmTime
from protocols.issuing import Issuer, issue_member_certificate, make_run_ca

RUN = RunId(b"\x18" * 32)
DAY_S = 86400.0
DEADLINE_S = 600.0
LISTEN = "127.0.0.1:0"


def credentials_of(rank: int) -> tuple[Identity, MemberCredentials]:
    """Who a rank is, and its papers from an authority that everybody knows: both follow from the rank."""
    authority = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x01")
    identity = Identity(Ed25519PrivateKey.from_private_bytes(bytes(31) + bytes([2 + rank])))
    begins, ends = SwarmTime(time.time() - DAY_S), SwarmTime(time.time() + DAY_S)
    ca = make_run_ca(authority, "benchmark", 1, begins, ends)
    key = TlsKey.generate()
    chain = issue_member_certificate(Issuer(authority, ca), key.claimed_by(identity, RUN), RUN, 2 + rank, begins, ends)
    return identity, MemberCredentials.verified(RUN, authority.public_key().public_bytes_raw(), key, chain, ca)


async def open_transport(name: str, rank: int, stack: AsyncExitStack) -> tuple[Transport, MemberCredentials, Libp2pNode | None]:
    """A transport by name; its node if it has one."""
    identity, credentials = credentials_of(rank)
    clock = SystemClock()
    if name == "libp2p":
        options = Libp2pOptions(listen=("/ip4/127.0.0.1/tcp/0",))
        node = await stack.enter_async_context(Libp2pNode.start(identity.seed, options))
        return Libp2pStreams(node, credentials.proof(clock, _nobody)), credentials, node
    tls = credentials.tls(clock, _nobody)
    kind = DirectTransport if name == "direct" else GrpcTransport
    return kind(tls, LISTEN, "127.0.0.1"), credentials, None


def _nobody(_peer: PeerId) -> bool:
    return False


async def echo(_caller: PeerId, request: bytes) -> bytes:
    """Serves "echo"."""
    return request


async def drain(stream: Stream) -> None:
    """Serves "drain": reads everything, then says so."""
    while await stream.receive() is not None:
        pass
    await stream.send(b"done")


async def echo_stream(stream: Stream) -> None:
    """Serves "echo-stream"."""
    while (message := await stream.receive()) is not None:
        await stream.send(bytes(message))


HANDLERS = Handlers(calls={"echo": echo}, streams={"drain": drain, "echo-stream": echo_stream})


async def send(transport: Transport, to: Endpoint, mib: int, message_kib: int) -> dict[str, Any]:
    """Seconds until the other end has read `mib` MiB in messages of `message_kib` KiB."""
    message = bytes(message_kib * 1024)
    async with transport.stream(to, "drain", timeout_s=DEADLINE_S) as stream:
        began_s = time.monotonic()
        for _ in range(mib * 1024 // message_kib):
            await stream.send(message)
        await stream.finish_sending()
        await stream.receive()
        return {"seconds": time.monotonic() - began_s}


async def ask(transport: Transport, to: Endpoint, times: int) -> dict[str, Any]:
    """Seconds of each of so many round trips, as calls and as messages of one stream."""
    payload, call_s, message_s = bytes(64), [], []
    for _ in range(times):
        began_s = time.monotonic()
        await transport.call(to, "echo", payload, timeout_s=DEADLINE_S)
        call_s.append(time.monotonic() - began_s)
    async with transport.stream(to, "echo-stream", timeout_s=DEADLINE_S) as stream:
        for _ in range(times):
            began_s = time.monotonic()
            await stream.send(payload)
            await stream.receive()
            message_s.append(time.monotonic() - began_s)
    return {"call_s": call_s, "message_s": message_s}


async def obey(transport: Transport, to: Endpoint) -> None:
    """Rank 1: follow orders until the pipe closes."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        if order["op"] == "send":
            _tell(await send(transport, to, order["mib"], order["message_kib"]))
        else:
            _tell(await ask(transport, to, order["times"]))


def _tell(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


async def main(name: str, rank: int, directory: Path) -> None:
    """Serve or dial until standard input closes."""
    async with AsyncExitStack() as stack:
        transport, credentials, node = await open_transport(name, rank, stack)
        stack.push_async_callback(transport.close)
        address = await stack.enter_async_context(transport.serve(HANDLERS))
        file = directory / f"{name}.json"
        if rank == 0:
            found = {"peer": str(credentials.peer), "address": address, "certificate": credentials.chain.leaf_pem.decode()}
            file.write_text(json.dumps({**found, "libp2p": node.addresses() if node else []}))
        _tell({"daemon_pid": node.daemon_pid if node else None})
        if rank == 0:
            await asyncio.to_thread(sys.stdin.read)
            return
        found = json.loads(file.read_text())
        to = Endpoint(PeerId.parse(found["peer"]), found["address"], found["certificate"].encode(), tuple(found["libp2p"]))
        await obey(transport, to)


if __name__ == "__main__":
    keep_freed_memory()
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
