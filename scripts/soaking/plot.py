"""The picture of a soak: one panel a quantity, elders in colour, everybody else in grey, what befell them as marks below. Plain SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from scripts.soaking.verdict import Record, Sample

WIDTH = 900
PANEL_HEIGHT = 130
LEFT, RIGHT, TOP, GAP, BOTTOM = 70, 20, 50, 30, 40
COLOURS = ("#1f6fb4", "#c8501e", "#2a8c4a", "#8a4fae")
GREY = "#b8b8b8"
MARKS = {"kill": "#c02020", "cut": "#d09000", "start": "#2a8c4a"}
PANELS = (
    ("rss_mib", "memory, MiB"),
    ("daemon_rss_mib", "memory of the libp2p daemon, MiB"),
    ("fds", "file descriptors"),
    ("tasks", "asyncio tasks"),
    ("threads", "threads"),
    ("epoch", "epochs closed"),
)


def ticks(top: float, count: int = 4) -> list[float]:
    """Round numbers from 0 to at least `top`, about `count` steps."""
    if top <= 0:
        return [0.0, 1.0]
    raw = top / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw)
    return [step * number for number in range(math.ceil(top / step) + 1)]


def svg(record: Record, title: str) -> str:
    """The picture as text.

    Args:
        record: of the soak.
        title: above it.
    """
    end_s = max((sample.at_s for sample in record.samples), default=1.0) or 1.0
    height = TOP + len(PANELS) * (PANEL_HEIGHT + GAP) + 3 * 14 + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>',
    ]
    top = TOP
    for quantity, label in PANELS:
        parts += _panel(record, quantity, label, top, end_s)
        top += PANEL_HEIGHT + GAP
    parts += _marks(record, top, end_s)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _x(at_s: float, end_s: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * at_s / end_s


def _value(sample: Sample, quantity: str) -> float | None:
    return float(sample.epoch) if quantity == "epoch" else sample.values.get(quantity)


def _panel(record: Record, quantity: str, label: str, top: int, end_s: float) -> list[str]:
    lines: dict[int, list[tuple[float, float]]] = {}
    for sample in record.samples:
        value = _value(sample, quantity)
        if value is not None:
            lines.setdefault(sample.rank, []).append((sample.at_s, value))
    grid = ticks(max((value for line in lines.values() for _, value in line), default=1.0))

    def y(value: float) -> float:
        return top + PANEL_HEIGHT * (1 - value / grid[-1])

    parts = [f'<text x="{LEFT}" y="{top - 6}" font-weight="bold">{escape(label)}</text>']
    for value in grid:
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    elders = sorted(record.elders)
    for rank in sorted(lines, key=lambda rank: rank in record.elders):  # elders on top
        elder = rank in record.elders
        colour, width = (COLOURS[elders.index(rank) % len(COLOURS)], 1.4) if elder else (GREY, 0.8)
        parts.append(_polyline([(_x(at_s, end_s), y(value)) for at_s, value in lines[rank]], colour, width))
    return parts


def _polyline(points: Sequence[tuple[float, float]], colour: str, width: float) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline fill="none" stroke="{colour}" stroke-width="{width}" points="{path}"/>'


def _marks(record: Record, top: int, end_s: float) -> list[str]:
    parts = []
    for row, (what, colour) in enumerate(MARKS.items()):
        y = top + row * 14
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{what}</text>')
        for happening in record.happenings:
            if happening.what == what:
                x = _x(happening.at_s, end_s)
                parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 5}" y2="{y + 5}" stroke="{colour}"/>')
    y = top + len(MARKS) * 14 + 14
    for minute in ticks(end_s / 60, 10):
        if minute * 60 <= end_s:
            parts.append(f'<text x="{_x(minute * 60, end_s):.1f}" y="{y}" text-anchor="middle">{minute:g} min</text>')
    return parts
