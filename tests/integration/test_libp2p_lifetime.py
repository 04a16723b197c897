"""The libp2p daemon never outlives us and leaves nothing behind, however we end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import uvloop

from peers.clock import SystemClock
from peers.libp2p_daemon import Libp2pOptions
from peers.libp2p_node import Libp2pNode
from peers.store.hivemind_dht import HivemindStore
from protocols.ids import SwarmTime

LOOPBACK = Libp2pOptions(listen=("/ip4/127.0.0.1/tcp/0",))
ROOT = Path(__file__).parents[2]

PROGRAM = """
import asyncio, os, sys
from pathlib import Path
import uvloop
from peers.clock import SystemClock
from peers.libp2p_daemon import Libp2pOptions
from peers.libp2p_node import Libp2pNode
from peers.store.hivemind_dht import HivemindStore
from protocols.ids import SwarmTime
from peers.store.hivemind_dht import HivemindStore

async def main():
    options = Libp2pOptions(listen=("/ip4/127.0.0.1/tcp/0",))
    async with Libp2pNode.start(os.urandom(32), options, Path(sys.argv[1])) as node:
        store = await HivemindStore.create(node, sys.argv[2:], lambda *record: None, SystemClock())
        try:
            print(node.daemon_pid, node.addresses()[0], flush=True)
            await asyncio.Event().wait()
        finally:
            await store.close()

try:
    uvloop.run(main())
except KeyboardInterrupt:
    sys.exit(130)
"""


_STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture
def base() -> Iterator[Path]:
    """Parent of the private directories; short, because it ends up in socket names."""
    path = Path(tempfile.mkdtemp(prefix="swarm-", dir="/tmp"))
    yield path / "run"
    while _STARTED:
        with _STARTED.pop() as process:
            process.kill()  # a test that failed may have left it, and its daemon ends with it
    shutil.rmtree(path)


def start(base: Path, *addresses: str) -> tuple[subprocess.Popen[str], psutil.Process, str]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error::ResourceWarning", "-c", PROGRAM, str(base), *addresses],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _STARTED.append(process)
    assert process.stdout is not None
    line = process.stdout.readline().split()
    assert len(line) == 2, process.communicate(timeout=10)[1]
    return process, psutil.Process(int(line[0])), line[1]


def entries(directory: Path) -> set[Path]:
    return set(directory.iterdir())


def gone(daemon: psutil.Process, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not daemon.is_running() or daemon.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_the_daemon_dies_with_a_killed_process_and_the_next_start_cleans_up(base: Path) -> None:
    process, daemon, _ = start(base)
    assert daemon.ppid() == process.pid
    assert os.getsid(daemon.pid) != os.getsid(process.pid), "a terminal's Ctrl-C must not reach it"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert gone(daemon, within_s=2)
    left = list(base.iterdir())
    assert sorted(entry.name for directory in left for entry in directory.iterdir()) == ["calls.sock", "pipes.sock"]

    async def main() -> None:
        async with Libp2pNode.start(os.urandom(32), LOOPBACK, base):
            assert not set(left) & entries(base)

    uvloop.run(main())
    assert not base.exists()


def test_the_daemon_dies_with_a_killed_process_that_has_company(base: Path) -> None:
    async def main() -> None:
        async with Libp2pNode.start(os.urandom(32), LOOPBACK, base) as ours:
            store = await HivemindStore.create(ours, [], lambda *_: None, SystemClock())
            process, daemon, address = await asyncio.to_thread(start, base, *ours.addresses())
            await ours.connect(address, timeout_s=5)
            assert await store.put("k", "s", b"x", SwarmTime(time.time() + 60))
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.communicate, None, 10)
            assert await asyncio.to_thread(gone, daemon, 2)
            assert await store.get("k") == {"s": b"x"}
            await store.close()

    uvloop.run(main())
    assert base.exists(), "the killed process's directory waits for the next start"


def test_ctrl_c_in_a_terminal_ends_everything_quietly(base: Path) -> None:
    process, daemon, _ = start(base)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130, err
    assert time.monotonic() - began < 5
    assert gone(daemon, within_s=0.1), "it was waited for"
    assert (out, err) == ("", "")
    assert not base.exists()


@pytest.mark.parametrize("how", ["return", "raise", "cancel"])
def test_nothing_is_left_after_the_context(base: Path, how: str) -> None:
    daemons: list[psutil.Process] = []
    reported: list[dict[str, object]] = []

    running = asyncio.Event()

    async def body() -> None:
        async with Libp2pNode.start(os.urandom(32), LOOPBACK, base) as node:
            daemons.append(psutil.Process(node.daemon_pid))
            (directory,) = entries(base)
            assert directory.lstat().st_mode & 0o777 == 0o700
            assert {entry.name for entry in entries(directory)} == {"calls.sock", "control.sock", "pipes.sock"}, "the identity file is gone"
            running.set()
            if how == "raise":
                raise RuntimeError("on purpose")
            if how == "cancel":
                await asyncio.Event().wait()

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(body())
            await running.wait()
            if how == "cancel":
                task.cancel()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert others == set()

    if how == "raise":
        with pytest.raises(ExceptionGroup):
            uvloop.run(main())
    else:
        uvloop.run(main())
    assert not daemons[0].is_running()
    assert not base.exists()
    assert reported == []


def test_two_nodes_of_one_user_leave_each_other_alone(base: Path) -> None:
    async def main() -> None:
        async with Libp2pNode.start(os.urandom(32), LOOPBACK, base) as first:
            async with Libp2pNode.start(os.urandom(32), LOOPBACK, base):
                assert len(entries(base)) == 2
            assert len(entries(base)) == 1
            assert await first.refresh_addresses() == first.addresses()

    uvloop.run(main())


def test_importing_leaves_logging_alone() -> None:
    program = """
import logging
import peers.libp2p_node
import peers.store.hivemind_dht
assert logging.getLevelName(logging.WARNING) == "WARNING"
assert not logging.getLogger().handlers
hivemind = logging.getLogger("hivemind")
assert [type(handler).__name__ for handler in hivemind.handlers] == ["NullHandler"]
assert hivemind.propagate and hivemind.level == logging.NOTSET
logging.getLogger("hivemind.dht").error("nobody listens")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
