"""The probe's process: one request on standard input, one report on standard output, both one line of JSON (`peers.probe.report`).

    echo '{"address": "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooW...", "timeout_s": 5, "pings": 3}' | python -m peers.probe.libp2p_probe

Always with an explicit `sec_opt`: py-libp2p's defaults also offer plaintext, where anybody may claim any identity.
"""

from __future__ import annotations

import logging
import secrets
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio
from libp2p import new_host
from libp2p.abc import IHost, INetStream, ISecureTransport
from libp2p.crypto.ed25519 import create_new_key_pair as new_ed25519
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519
from libp2p.custom_types import TProtocol
from libp2p.host.exceptions import HostException
from libp2p.host.ping import ID as PING
from libp2p.host.ping import perform_ping_roundtrip
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.io.exceptions import IOException
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import InvalidAddrError, PeerInfo, info_from_p2p_addr
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from peers.probe import wire
from peers.probe.report import MAX_CLOCK_SKEW_S, Check, ProbeReport, ProbeRequest

DHT_PING = TProtocol("DHTProtocol.rpc_ping")
_FAILURES = (HostException, SwarmException, StreamError, MuxedStreamError, IOException, trio.TooSlowError, OSError, ValueError)


@asynccontextmanager
async def _host(*, plaintext: bool = False) -> AsyncIterator[IHost]:
    """A dial-only host with a fresh identity that speaks exactly one security protocol."""
    keys = new_ed25519()
    security: Mapping[TProtocol, ISecureTransport]
    if plaintext:
        security = {PLAINTEXT_PROTOCOL_ID: InsecureTransport(keys)}
    else:
        security = {NOISE: NoiseTransport(keys, noise_privkey=new_x25519().private_key)}
    host = new_host(key_pair=keys, sec_opt=security, muxer_opt={TProtocol(YAMUX): Yamux})
    async with host.run(listen_addrs=[]):
        yield host


async def _read_framed(stream: INetStream, limit_bytes: int) -> bytes:
    """One message with its length as a varint in front."""
    buffer = b""
    while not buffer or buffer[-1] >= 0x80:
        buffer += await _read_some(stream, 1)
    length, _ = wire.read_varint(buffer, 0)
    if length > limit_bytes:
        raise ValueError(f"a message of {length} bytes is too long")
    message = b""
    while len(message) < length:
        message += await _read_some(stream, length - len(message))
    return message


async def _read_some(stream: INetStream, most: int) -> bytes:
    data = await stream.read(most)
    if not data:
        raise ValueError("the stream ended in the middle of a message")
    return data


def _why(error: BaseException) -> str:
    """Innermost reason of a chain of library errors, in one short line."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (str(error) or type(error).__name__).splitlines()[0][:200]


async def _identify(host: IHost, peer: ID) -> Identify:
    stream = await host.new_stream(peer, [IDENTIFY])
    message = Identify()
    message.ParseFromString(await _read_framed(stream, 2**16))
    await stream.close()
    return message


async def _ping(host: IHost, peer: ID, count: int) -> float:
    """Median round trip in seconds."""
    stream = await host.new_stream(peer, [PING])
    times_s = []
    for _ in range(count):
        started = time.perf_counter()
        await perform_ping_roundtrip(stream)
        times_s.append(time.perf_counter() - started)
    await stream.close()
    return statistics.median(times_s)


async def _clock_skew_s(host: IHost, peer: ID) -> float:
    """Their clock minus ours, as hivemind's DHT tells it, corrected by half the round trip (Cristian 1989)."""
    call_id = secrets.token_bytes(16)
    stream = await host.new_stream(peer, [DHT_PING])
    started = time.time()
    await stream.write(wire.unary_call(call_id, host.get_id().to_bytes(), str(DHT_PING), wire.ping_request()))
    reply = await _read_framed(stream, wire.MAX_REPLY_BYTES)
    ended = time.time()
    await stream.close()
    return wire.ping_time(wire.unary_reply(reply, call_id)) - (started + ended) / 2


async def _dial_refused(name: str, target: PeerInfo, timeout_s: float, *, plaintext: bool) -> Check:
    """A dial that must fail; it is only asked after a proper dial to the same address has succeeded."""
    async with _host(plaintext=plaintext) as host:
        try:
            with trio.fail_after(timeout_s):
                await host.connect(target)
        except _FAILURES as error:
            return Check(name, True, f"refused, as it should be: {_why(error)}")
    return Check(name, False, "the node accepted a connection that it must refuse")


async def _inside(host: IHost, request: ProbeRequest, peer: ID) -> ProbeReport:
    """The checks that use an open Noise connection."""
    checks: list[Check] = []
    identity = Identify()
    try:
        with trio.fail_after(request.timeout_s):
            identity = await _identify(host, peer)
        proven = ID.from_pubkey(deserialize_public_key(identity.public_key)) == peer
        found = f"it calls itself {identity.agent_version} and serves {len(identity.protocols)} protocols"
        checks.append(Check("identify", proven, found if proven else "it identifies itself by another key than the one it proved"))
    except _FAILURES as error:
        checks.append(Check("identify", False, f"it did not identify itself: {_why(error)}"))
    try:
        with trio.fail_after(request.timeout_s):
            rtt_s = await _ping(host, peer, request.pings)
        checks.append(Check("ping", True, f"round trip {rtt_s * 1000:.1f} ms (median of {request.pings})", rtt_s, "s"))
    except _FAILURES as error:
        checks.append(Check("ping", False, f"no answer to a ping: {_why(error)}"))
    try:
        with trio.fail_after(request.timeout_s):
            skew_s = await _clock_skew_s(host, peer)
        advice = "" if abs(skew_s) <= MAX_CLOCK_SKEW_S else ": set one of the two clocks (e.g. by NTP)"
        checks.append(Check("clock", not advice, f"its clock is {skew_s:+.3f} s from this probe's{advice}", skew_s, "s"))
    except _FAILURES as error:
        checks.append(Check("clock", False, f"its DHT did not tell the time: {_why(error)}"))
    observed = ""
    if identity.observed_addr:
        observed = str(Multiaddr(identity.observed_addr))
    return ProbeReport(
        checks=tuple(checks),
        agent=identity.agent_version,
        protocols=tuple(sorted(identity.protocols)),
        observed_address=observed,
        listen_addresses=tuple(str(Multiaddr(raw)) for raw in identity.listen_addrs),
    )


async def probe(request: ProbeRequest) -> ProbeReport:
    """Make every check in turn; each takes at most `request.timeout_s`. A failing check is a finding, never an exception."""
    try:
        target = info_from_p2p_addr(Multiaddr(request.address))
    except (MultiaddrError, InvalidAddrError, ValueError) as error:
        return ProbeReport(checks=(Check("dial", False, f"{request.address!r} is not a libp2p address ending in /p2p/...: {error}"),))
    async with _host() as host:
        started = time.perf_counter()
        try:
            with trio.fail_after(request.timeout_s):
                await host.connect(target)
        except _FAILURES as error:
            return ProbeReport(checks=(Check("dial", False, f"cannot reach {request.address}: {_why(error)}"),))
        took_s = time.perf_counter() - started
        dialled = Check("dial", True, f"connected with Noise in {took_s:.2f} s and the identity is proven", took_s, "s")
        inside = await _inside(host, request, target.peer_id)
    stranger = PeerInfo(ID.from_pubkey(new_ed25519().public_key), target.addrs)
    refusals = (
        await _dial_refused("refuses plaintext", target, request.timeout_s, plaintext=True),
        await _dial_refused("refuses wrong identity", stranger, request.timeout_s, plaintext=False),
    )
    return ProbeReport(
        checks=(dialled, *inside.checks, *refusals),
        agent=inside.agent,
        protocols=inside.protocols,
        observed_address=inside.observed_address,
        listen_addresses=inside.listen_addresses,
    )


def main() -> None:
    """Read one request, write one report."""
    logging.disable(logging.CRITICAL)  # this process's only output is its report; the libraries log every refused dial as an error
    request = ProbeRequest.from_json(sys.stdin.readline())
    report = trio.run(probe, request)
    sys.stdout.write(report.to_json() + "\n")


if __name__ == "__main__":
    main()
