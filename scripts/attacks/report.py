"""The table of attacks for people, and its summary."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from scripts.attacks.scenario import Row

NEAR_NATS, FAR_NATS = 0.1, 0.5
"""Above the loss without an attack: as good as unharmed, and harmed."""


def table(rows: Sequence[Row], title: str) -> Table:
    """Attacks down, defences across; each cell is the loss at the end, mean over seeds, and what became of the attackers."""
    columns = list(dict.fromkeys((row.defence, row.auditors) for row in rows))
    shown = Table(title=title, caption=f"loss without an attack {_mean([row.loss_clean for row in rows]):.3f} nats a byte")
    shown.add_column("attack")
    for defence, auditors in columns:
        shown.add_column(f"{defence}\n{auditors} auditors" if auditors else defence, justify="right")
    for attack in dict.fromkeys(row.attack for row in rows):
        cells = []
        for column in columns:
            found = [row for row in rows if row.attack == attack and (row.defence, row.auditors) == column]
            cells.append(_cell(found) if found else "-")
        shown.add_row(attack, *cells)
    return shown


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """For each defence, the worst that any attack did; `excess` is nats above the loss without an attack, None if beyond all numbers."""
    found: dict[str, Any] = {}
    for defence, auditors in dict.fromkeys((row.defence, row.auditors) for row in rows):
        mine = [row for row in rows if (row.defence, row.auditors) == (defence, auditors)]
        worst = max(mine, key=_excess)
        bans = [row.epochs_to_last_ban for row in mine if row.epochs_to_last_ban is not None]
        found[f"{defence}/{auditors}" if auditors else defence] = {
            "worst_attack": worst.attack,
            "worst_excess": None if worst.loss is None else round(_excess(worst), 4),
            "attackers_left": sum(row.attackers_left for row in mine),
            "honest_banned": sum(row.honest_banned for row in mine),
            "epochs_to_last_ban_max": max(bans, default=None),
            "seconds_per_cell": round(statistics.fmean(row.seconds for row in mine), 2),
        }
    return found


def _cell(rows: Sequence[Row]) -> str:
    excess = max(_excess(row) for row in rows)
    colour = "green" if excess <= NEAR_NATS else "yellow" if excess <= FAR_NATS else "red"
    text = f"[{colour}]{_mean([row.loss for row in rows]):.3f}[/{colour}]"
    left, banned = sum(row.attackers_left for row in rows), sum(row.honest_banned for row in rows)
    if any(row.auditors for row in rows):
        bans = [row.epochs_to_last_ban for row in rows if row.epochs_to_last_ban is not None]
        text += f" ({left} left)" if left else f" (bans {max(bans)})" if bans else ""
    return text + (f" [red]{banned} honest banned[/red]" if banned else "")


def _excess(row: Row) -> float:
    return float("inf") if row.loss is None or row.loss_clean is None else row.loss - row.loss_clean


def _mean(losses: Sequence[float | None]) -> float:
    return statistics.fmean(float("inf") if loss is None else loss for loss in losses)
