"""CPU time and orderly ends of whole process families, from `/proc`. A family is a session: a worker and whatever it starts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
POLL_S = 0.05

# Fields of /proc/PID/stat counted from the one after the command name, which may itself hold spaces and parentheses.
SESSION_FIELD = 3
USER_TICKS_FIELD = 11
SYSTEM_TICKS_FIELD = 12
STATE_FIELD = 0
PARENT_FIELD = 1
START_FIELD = 19


def _stats() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # A process may end between the listing and the reading.
            with suppress(OSError):
                yield int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()


def members(sessions: set[int]) -> list[int]:
    """Process ids of everything alive in the given sessions."""
    return [pid for pid, fields in _stats() if int(fields[SESSION_FIELD]) in sessions and fields[STATE_FIELD] != "Z"]


def cpu_s(sessions: set[int]) -> float:
    """CPU seconds, user and system, used so far by everything alive in the given sessions (resolution: one clock tick)."""
    ticks = sum(
        int(fields[USER_TICKS_FIELD]) + int(fields[SYSTEM_TICKS_FIELD]) for _, fields in _stats() if int(fields[SESSION_FIELD]) in sessions
    )
    return ticks / TICKS_PER_S


def socket_files(sessions: set[int]) -> list[Path]:
    """Files of the Unix sockets that processes in the given sessions listen on."""
    inodes, rows = set(), []
    for pid in members(sessions):
        with suppress(OSError):
            # Of the process's own network namespace, which need not be ours.
            rows += [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    inodes.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    # Columns: address, reference count, protocol, flags, type, state, inode, path (abstract names start with "@").
    return sorted({Path(row[7]) for row in rows if len(row) == 8 and row[6] in inodes and row[7].startswith("/")})


def end(sessions: set[int], *, grace_s: float) -> None:
    """End everything in the given sessions by process id: wait, then SIGTERM, then SIGKILL, `grace_s` seconds between them."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            for pid in members(sessions):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        deadline_s = time.monotonic() + grace_s
        while members(sessions):
            if time.monotonic() > deadline_s:
                break
            time.sleep(POLL_S)
        else:
            return


def born(pids: set[int]) -> dict[int, int]:
    """When each of these processes was started, in clock ticks since the machine was: a number that has been given out again shows."""
    return {pid: int(fields[START_FIELD]) for pid, fields in _stats() if pid in pids and fields[STATE_FIELD] != "Z"}


def rss_mib(pid: int) -> float:
    """Resident memory of a process, MiB.

    Raises:
        OSError: it has ended.
    """
    resident_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return resident_pages * PAGE_BYTES / 2**20


def descriptors(pid: int) -> int:
    """File descriptors that a process holds.

    Raises:
        OSError: it has ended.
    """
    return len(os.listdir(f"/proc/{pid}/fd"))


def descendants(pids: set[int]) -> set[int]:
    """The given processes that are alive and everything they have started, whatever session it is in."""
    children: dict[int, list[int]] = {}
    alive: set[int] = set()
    for pid, fields in _stats():
        if fields[STATE_FIELD] != "Z":
            alive.add(pid)
            children.setdefault(int(fields[PARENT_FIELD]), []).append(pid)
    found, rest = set(), [pid for pid in pids if pid in alive]
    while rest:
        pid = rest.pop()
        found.add(pid)
        rest += children.get(pid, [])
    return found


def await_end(pids: set[int], *, timeout_s: float) -> set[int]:
    """Wait until none of these processes is alive; returns those that still are when the time is up."""
    deadline_s = time.monotonic() + timeout_s
    while left := {pid for pid, fields in _stats() if pid in pids and fields[STATE_FIELD] != "Z"}:
        if time.monotonic() > deadline_s:
            return left
        time.sleep(POLL_S)
    return set()
