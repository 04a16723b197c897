"""The parts between command line and network: addresses, papers, the status file's content, the public interface."""

from __future__ import annotations

import importlib
import ipaddress
from pathlib import Path

import pytest

import swarm
from peers.memory import keep_freed_memory
from peers.training_peer import MemberView, SwarmView
from protocols.ids import Epoch, PeerId
from swarm.membership import remember_addresses, remembered_addresses
from swarm.monitoring.reporter import Describes, Measured, StatusReporter
from swarm.monitoring.status import STOPPED, EpochHash, read_status
from swarm.network import leads_to, own_host

ME, OTHER = PeerId(b"m" * 32), PeerId(b"o" * 32)


@pytest.mark.parametrize(
    ("listen", "host"), [("127.0.0.1:7001", "127.0.0.1"), ("peer.example.org:0", "peer.example.org"), ("[::1]:0", "::1")]
)
def test_a_concrete_listen_address_is_what_others_dial(listen: str, host: str) -> None:
    assert own_host(listen) == host


def test_listening_everywhere_announces_one_real_address() -> None:
    host = ipaddress.ip_address(own_host("0.0.0.0:0"))
    assert not host.is_unspecified


def test_addresses_of_members_are_remembered(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    remember_addresses(tmp_path, {OTHER: ("/ip4/127.0.0.1/tcp/1/p2p/x",), ME: ("/ip4/127.0.0.1/tcp/2/p2p/y", "/ip4/10.0.0.1/tcp/2/p2p/y")})
    assert set(remembered_addresses(tmp_path)) == {
        "/ip4/127.0.0.1/tcp/1/p2p/x",
        "/ip4/127.0.0.1/tcp/2/p2p/y",
        "/ip4/10.0.0.1/tcp/2/p2p/y",
    }


def test_knowing_nobody_does_not_forget_those_of_the_last_time(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    remember_addresses(tmp_path, {OTHER: ("/ip4/127.0.0.1/tcp/1/p2p/x",)})
    remember_addresses(tmp_path, {})
    assert remembered_addresses(tmp_path) == ("/ip4/127.0.0.1/tcp/1/p2p/x",)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"a": 1}', b"[1, 2]", b"\xff\xfe"])
def test_a_damaged_list_of_addresses_is_as_good_as_none(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "addresses.json").write_bytes(damage)
    assert remembered_addresses(tmp_path) == ()


def member(peer: PeerId, epoch: int) -> MemberView:
    return MemberView(peer, "trainer", "training", Epoch(epoch), 5, 2.5, 100, 200, 3.25, b"\xab" * 32)


def test_only_addresses_that_lead_to_the_member_itself_are_dialled() -> None:
    assert leads_to(f"/ip4/127.0.0.1/tcp/1/p2p/{OTHER}", OTHER)
    for address in (
        f"/ip4/127.0.0.1/tcp/1/p2p/{ME}",
        "/ip4/127.0.0.1/tcp/1",
        "/bogus",
        "",
        f"/ip4/999.0.0.1/tcp/1/p2p/{OTHER}",
        f"/p2p/{OTHER}",
    ):
        assert not leads_to(address, OTHER)


class SeenSwarm:
    """A peer that only has a view."""

    def view(self) -> SwarmView:
        return SwarmView(Epoch(7), 40, 64, 1.5, (member(OTHER, 6), member(ME, 7)), b"\xab" * 32)


def reporter(path: Path) -> StatusReporter:
    about = Describes("demo", "ab" * 32, ME, "trainer", ("/ip4/127.0.0.1/tcp/4001/p2p/x",), "127.0.0.1:7001")
    measured = Measured(eval_loss=2.5)
    measured.hashes.append(EpochHash(7, "cd" * 32))
    return StatusReporter(path, about, SeenSwarm(), measured, lambda: 123)  # type: ignore[arg-type]


def test_the_status_tells_what_the_peer_sees(tmp_path: Path) -> None:
    status = reporter(tmp_path / "status.json").status(stopped=False)
    assert (status.epoch, status.samples, status.samples_total, status.samples_per_s) == (7, 5, 123, 2.5)
    assert (status.swarm_samples, status.target_samples, status.eval_loss) == (40, 64, 2.5)
    assert {seen.peer for seen in status.members} == {str(ME), str(OTHER)}
    assert status.hashes == (EpochHash(7, "cd" * 32),)
    assert status.state == "training"


def test_the_last_status_says_that_the_peer_has_stopped(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    writer = reporter(path)
    writer.start()
    writer.stop()
    status = read_status(path)
    assert status is not None
    assert status.state == STOPPED


def test_the_public_interface_is_what_it_says() -> None:
    assert swarm.__all__ == [
        "CollaborativeOptimizer",
        "Connection",
        "GradientSettings",
        "LocalPeer",
        "OuterSettings",
        "PeerConfig",
        "RunSpec",
        "StepOutcome",
        "StepStatus",
        "UserError",
        "connect",
        "coordinate",
        "join",
    ]
    for name in swarm.__all__:
        assert getattr(importlib.import_module("swarm"), name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute"):
        _ = swarm.nothing


def test_memory_can_be_kept_as_often_as_one_likes() -> None:
    keep_freed_memory()
    keep_freed_memory()
    assert len(bytearray(2**21)) == 2**21
