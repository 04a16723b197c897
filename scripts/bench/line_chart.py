"""Small line charts as SVG, without a drawing library: several panels side by side, a logarithmic vertical axis shared by all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_PANEL_WIDTH, _PANEL_HEIGHT, _GAP = 250, 210, 16
_LEFT, _TOP, _BOTTOM = 62, 34, 66
_COLOURS = ("#c2410c", "#6b7280", "#1d4ed8", "#059669", "#7c3aed")
_INK = "#57606a"  # readable on light and dark pages


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart.

    Args:
        title: above it.
        lines: points by name, at 0, 1, 2, ... on the horizontal axis; all positive.
    """

    title: str
    lines: Mapping[str, Sequence[float]]


def svg(panels: Sequence[Panel], across: str, up: str) -> str:
    """The picture as a document.

    Args:
        panels: from left to right; the same lines in each.
        across, up: what the axes count.
    """
    points = [value for panel in panels for line in panel.lines.values() for value in line]
    low, high = math.floor(math.log10(min(points))), math.ceil(math.log10(max(points)))
    width = _LEFT + len(panels) * (_PANEL_WIDTH + _GAP)
    height = _TOP + _PANEL_HEIGHT + _BOTTOM
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12" fill="{_INK}">',
        f'<text transform="translate(14 {_TOP + _PANEL_HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(up)}</text>',
    ]
    for number, panel in enumerate(panels):
        left = _LEFT + number * (_PANEL_WIDTH + _GAP)
        parts += _panel(panel, left, low, high)
        parts.append(_text(left + _PANEL_WIDTH / 2, _TOP + _PANEL_HEIGHT + 32, across))
    x = float(_LEFT)
    for colour, name in zip(_COLOURS, panels[0].lines, strict=False):
        parts.append(f'<line x1="{x:.0f}" y1="{height - 14}" x2="{x + 22:.0f}" y2="{height - 14}" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(_text(x + 28, height - 10, name, "start"))
        x += 60 + 7 * len(name)
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, left: int, low: int, high: int) -> list[str]:
    steps = max(len(line) for line in panel.lines.values()) - 1
    bottom = _TOP + _PANEL_HEIGHT

    def x(step: int) -> float:
        return left + _PANEL_WIDTH * step / steps

    def y(value: float) -> float:
        return bottom - _PANEL_HEIGHT * (math.log10(value) - low) / (high - low)

    parts = [_text(left + _PANEL_WIDTH / 2, _TOP - 12, panel.title)]
    for power in range(low, high + 1, max(1, (high - low) // 6)):
        height = f"{y(10.0**power):.1f}"
        parts.append(f'<line x1="{left}" y1="{height}" x2="{left + _PANEL_WIDTH}" y2="{height}" stroke="{_INK}" opacity="0.25"/>')
        if left == _LEFT:
            parts.append(_text(left - 8, y(10.0**power) + 4, f"1e{power}", "end"))
    parts += [_text(x(step), bottom + 15, str(step)) for step in range(0, steps + 1, max(1, steps // 5))]
    for colour, line in zip(_COLOURS, panel.lines.values(), strict=False):
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in enumerate(line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return parts


def _text(x: float, y: float, content: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
