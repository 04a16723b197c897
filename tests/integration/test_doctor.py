"""Conformance of our libp2p node, as an independent implementation sees it; and `doctor`, which is built on that."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop
from hivemind.dht.node import DHTNode

from peers.libp2p_daemon import Libp2pOptions
from peers.libp2p_node import Libp2pNode
from peers.probe.report import CHECKS, ProbeReport, ProbeRequest
from peers.probe.runner import run_probe
from swarm.config import PeerConfig
from swarm.monitoring.doctor import examine
from swarm.monitoring.status import write_status
from tests.unit.swarm.status_builder import a_status

LOOPBACK = Libp2pOptions(listen=("/ip4/127.0.0.1/tcp/0",))


async def _probe_our_node() -> tuple[str, ProbeReport, ProbeReport]:
    async with Libp2pNode.start(secrets.token_bytes(32), LOOPBACK) as node:
        dht = await DHTNode.create(p2p=node.p2p)
        address = node.addresses()[0]
        stranger = address.rpartition("/")[0] + "/12D3KooWEyopopk7T6qT3gcSWPmmuZVEFX8HbHJ6MhHLpSKYGFEk"
        try:
            report = await asyncio.to_thread(run_probe, ProbeRequest(address))
            mistaken = await asyncio.to_thread(run_probe, ProbeRequest(stranger))
        finally:
            await dht.shutdown()
    return address, report, mistaken


def test_our_node_passes_every_check_of_the_other_implementation() -> None:
    address, report, mistaken = uvloop.run(_probe_our_node())
    assert tuple(check.name for check in report.checks) == CHECKS
    assert report.healthy, report
    assert "/ipfs/ping/1.0.0" in report.protocols
    assert "DHTProtocol.rpc_ping" in report.protocols
    assert report.observed_address.startswith("/ip4/127.0.0.1/tcp/")
    assert any(address.startswith(listening) for listening in report.listen_addresses)
    assert abs(report.check("clock").value or 0.0) < 1.0
    assert 0 < (report.check("ping").value or 0.0) < 2.0
    assert [check.ok for check in mistaken.checks] == [False], "an address with somebody else's peer id must not connect"


@contextmanager
def _insecure_node() -> Iterator[str]:
    script = Path(__file__).with_name("insecure_libp2p_node.py")
    with subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(10)


def test_a_node_that_accepts_plaintext_is_found_out() -> None:
    with _insecure_node() as address:
        report = run_probe(ProbeRequest(address))
    assert report.check("dial").ok
    assert not report.check("refuses plaintext").ok
    assert not report.check("clock").ok, "it runs no DHT that could tell the time"
    assert not report.healthy


def test_nobody_listening_is_one_failed_check() -> None:
    report = run_probe(ProbeRequest("/ip4/127.0.0.1/tcp/9/p2p/12D3KooWEyopopk7T6qT3gcSWPmmuZVEFX8HbHJ6MhHLpSKYGFEk"))
    assert [(check.name, check.ok) for check in report.checks] == [("dial", False)]


async def _examine_our_node(state_dir: Path) -> list[tuple[str, bool]]:
    async with Libp2pNode.start(secrets.token_bytes(32), LOOPBACK) as node:
        dht = await DHTNode.create(p2p=node.p2p)
        config = PeerConfig(state_dir=state_dir, device="cpu")
        write_status(config.status_path, a_status(addresses=tuple(node.addresses()), updated_at=time.time()))
        try:
            findings = await asyncio.to_thread(examine, config, None)
        finally:
            await dht.shutdown()
    return [(finding.name, finding.ok) for finding in findings]


def test_doctor_finds_the_running_peer_by_its_state_directory(tmp_path: Path) -> None:
    findings = uvloop.run(_examine_our_node(tmp_path))
    assert findings == [(name, True) for name in ("packages", "state directory", "clock here", "device", "peer", *CHECKS)]
