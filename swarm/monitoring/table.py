"""The table people look at: one row per peer, and the swarm's epoch, loss and progress below it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from protocols.ids import PeerId
from swarm.monitoring.status import BannedStatus, Liveness, MemberStatus, PeerStatus

_STATE_STYLES = {
    "training": "green",
    "auditing": "magenta",
    "averaging": "cyan",
    "syncing": "yellow",
    "joining": "yellow",
    "starting": "yellow",
    "leaving": "yellow",
    "stopped": "dim",
    "killed": "red",
    "banned": "bold red",
    "died": "bold red",
    "not responding": "bold red",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One peer in the table; the same fields as `MemberStatus`, with a name for people."""

    name: str
    role: str
    state: str
    epoch: int | None = None
    samples: int | None = None
    samples_per_s: float | None = None
    sent_bytes: int | None = None
    received_bytes: int | None = None
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class SwarmSummary:
    """The swarm as a whole; losses in nats per token, None while unknown; `bans` as `ban_line` tells of each."""

    run_name: str
    run_id: str
    epoch: int
    loss: float | None
    eval_loss: float | None
    swarm_samples: int
    target_samples: int
    note: str = ""
    bans: tuple[str, ...] = ()


def member_rows(status: PeerStatus) -> list[Row]:
    """Rows from what one peer sees; its own row is marked."""
    return [_row(_short(member.peer) + (" (me)" if member.peer == status.peer else ""), member) for member in status.members]


def own_row(name: str, status: PeerStatus | None, state: str | None = None) -> Row:
    """A row from what a peer says of itself.

    Args:
        name: for people.
        status: its status, or None while it has not reported.
        state: overrules the status (e.g. "killed").
    """
    if status is None:
        return Row(name=name, role="", state=state or "starting")
    return Row(
        name=name,
        role=status.role,
        state=state or status.state,
        epoch=status.epoch,
        samples=status.samples_total,
        samples_per_s=status.samples_per_s if state is None else 0.0,
        sent_bytes=status.sent_bytes,
        received_bytes=status.received_bytes,
        loss=status.loss,
    )


def ban_line(name: str, ban: BannedStatus) -> str:
    """Who is out, since when and why, for people."""
    return f"{name} banned in epoch {ban.epoch}: {ban.reason}"


def summary_of(status: PeerStatus, note: str = "", names: Mapping[str, str] = MappingProxyType({})) -> SwarmSummary:
    """The swarm as one peer sees it.

    Args:
        status: of that peer.
        note: shown below everything else.
        names: what people call members, by the text form of their ids; the end of the id for others.
    """
    names = {status.peer: "this peer", **names}
    return SwarmSummary(
        run_name=status.run_name,
        run_id=status.run_id,
        epoch=status.epoch,
        loss=status.swarm_loss,
        eval_loss=status.eval_loss,
        swarm_samples=status.swarm_samples,
        target_samples=status.target_samples,
        note=note,
        bans=tuple(ban_line(names.get(ban.peer, _short(ban.peer)), ban) for ban in status.banned),
    )


def status_view(status: PeerStatus, liveness: Liveness) -> RenderableType:
    """Table and summary from one status, with a warning when its writer is gone."""
    view = render(member_rows(status), summary_of(status, status.last_error))
    if liveness is Liveness.RUNNING:
        return view
    return Group(view, Text(f"This peer is not running: {liveness.value}. The table shows its last report.", style="bold red"))


def render(rows: Iterable[Row], summary: SwarmSummary | None) -> RenderableType:
    """The table, and below it one line about the swarm, a bar for the samples that close the epoch, and a line for each ban."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")  # fits 80 columns
    table.add_column("peer", no_wrap=True)
    table.add_column("role", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for heading in ("epoch", "samples", "per s", "in", "out", "loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(row.name),
            Text(row.role),
            Text(row.state, style=_STATE_STYLES.get(row.state, "")),
            _number(row.epoch),
            _number(row.samples),
            "" if row.samples_per_s is None else f"{row.samples_per_s:.1f}",
            "" if row.received_bytes is None else human_bytes(row.received_bytes),
            "" if row.sent_bytes is None else human_bytes(row.sent_bytes),
            "" if row.loss is None else f"{row.loss:.3f}",
        )
    if summary is None:
        return table
    return Group(table, _footer(summary))


def _footer(summary: SwarmSummary) -> RenderableType:
    loss = "" if summary.loss is None else f"  loss {summary.loss:.3f}"
    held_out = "" if summary.eval_loss is None else f"  held-out {summary.eval_loss:.3f} nats/byte"
    line = Text(f"{summary.run_name} {summary.run_id[:12]}  epoch {summary.epoch}{loss}{held_out}", style="bold")
    target = max(summary.target_samples, 1)
    done = min(max(summary.swarm_samples, 0), target)
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=target, completed=done, width=40), f"{summary.swarm_samples}/{summary.target_samples} samples")
    parts: list[RenderableType] = [line, grid]
    parts += [Text(line, style="red") for line in summary.bans]
    if summary.note:
        parts.append(Text(summary.note, style="dim"))
    return Group(*parts)


def human_bytes(count: int) -> str:
    """Three digits and a unit of powers of 1000, as network speeds are counted."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _short(peer: str) -> str:
    try:
        return PeerId.parse(peer).short
    except ValueError:
        return peer[-8:]


def _row(name: str, member: MemberStatus) -> Row:
    return Row(
        name=name,
        role=member.role,
        state=member.state,
        epoch=member.epoch,
        samples=member.samples,
        samples_per_s=member.samples_per_s,
        sent_bytes=member.sent_bytes,
        received_bytes=member.received_bytes,
        loss=member.loss,
    )
