"""Small line charts as SVG, without a drawing library: panels side by side, a vertical axis shared by all, logarithmic or linear."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_PANEL_WIDTH, _PANEL_HEIGHT, _GAP = 250, 210, 16
_LEFT, _TOP, _BOTTOM = 62, 34, 66
_COLOURS = ("#c2410c", "#6b7280", "#1d4ed8", "#059669", "#7c3aed", "#0891b2", "#be185d")
_LINEAR_STEP = 0.5
"""Distance of two marks on a linear vertical axis."""
_INK = "#57606a"  # readable on light and dark pages


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart.

    Args:
        title: above it.
        lines: points by name, at 0, 1, 2, ... times the spacing on the horizontal axis; all positive if the vertical axis is logarithmic.
    """

    title: str
    lines: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class _Axes:
    """Both axes: `low` and `high` are powers of ten on a logarithmic vertical axis, values on a linear one."""

    low: float
    high: float
    spacing: float
    linear: bool

    def share(self, value: float) -> float:
        """How far up a value is, 0 to 1."""
        return ((value if self.linear else math.log10(value)) - self.low) / (self.high - self.low)

    @property
    def marks(self) -> list[tuple[float, str]]:
        """Values to mark on the vertical axis, with their labels."""
        if self.linear:
            return [(number * _LINEAR_STEP, f"{number * _LINEAR_STEP:g}") for number in self._whole(_LINEAR_STEP)]
        powers = range(int(self.low), int(self.high) + 1, max(1, int(self.high - self.low) // 6))
        return [(10.0**power, f"1e{power}") for power in powers]

    def _whole(self, step: float) -> range:
        return range(round(self.low / step), round(self.high / step) + 1)


def _axes(points: Sequence[float], spacing: float, *, linear: bool) -> _Axes:
    if linear:
        low, high = math.floor(min(points) / _LINEAR_STEP) * _LINEAR_STEP, math.ceil(max(points) / _LINEAR_STEP) * _LINEAR_STEP
    else:
        low, high = math.floor(math.log10(min(points))), math.ceil(math.log10(max(points)))
    return _Axes(low, high, spacing, linear)


def svg(panels: Sequence[Panel], across: str, up: str, *, spacing: float = 1.0, linear: bool = False) -> str:
    """The picture as a document.

    Args:
        panels: from left to right; the same lines in each.
        across, up: what the axes count.
        spacing: distance of two points on the horizontal axis.
        linear: a linear vertical axis instead of a logarithmic one, for values of a few units.
    """
    axes = _axes([value for panel in panels for line in panel.lines.values() for value in line], spacing, linear=linear)
    panel_width = max(_PANEL_WIDTH, math.ceil(sum(map(_legend_width, panels[0].lines)) / len(panels)) - _GAP)
    width = _LEFT + len(panels) * (panel_width + _GAP)
    height = _TOP + _PANEL_HEIGHT + _BOTTOM
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12" fill="{_INK}">',
        f'<text transform="translate(14 {_TOP + _PANEL_HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(up)}</text>',
    ]
    for number, panel in enumerate(panels):
        left = _LEFT + number * (panel_width + _GAP)
        parts += _panel(panel, left, panel_width, axes)
        parts.append(_text(left + panel_width / 2, _TOP + _PANEL_HEIGHT + 32, across))
    x = float(_LEFT)
    for colour, name in zip(_COLOURS, panels[0].lines, strict=False):
        parts.append(f'<line x1="{x:.0f}" y1="{height - 14}" x2="{x + 22:.0f}" y2="{height - 14}" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(_text(x + 28, height - 10, name, "start"))
        x += _legend_width(name)
    return "\n".join([*parts, "</svg>", ""])


def _legend_width(name: str) -> int:
    return 60 + 7 * len(name)


def _panel(panel: Panel, left: int, width: int, axes: _Axes) -> list[str]:
    steps = max(len(line) for line in panel.lines.values()) - 1
    bottom = _TOP + _PANEL_HEIGHT

    def x(step: int) -> float:
        return left + width * step / steps

    def y(value: float) -> float:
        return bottom - _PANEL_HEIGHT * axes.share(value)

    parts = [_text(left + width / 2, _TOP - 12, panel.title)]
    for value, label in axes.marks:
        height = f"{y(value):.1f}"
        parts.append(f'<line x1="{left}" y1="{height}" x2="{left + width}" y2="{height}" stroke="{_INK}" opacity="0.25"/>')
        if left == _LEFT:
            parts.append(_text(left - 8, y(value) + 4, label, "end"))
    parts += [_text(x(step), bottom + 15, f"{step * axes.spacing:g}") for step in range(0, steps + 1, max(1, steps // 5))]
    for colour, line in zip(_COLOURS, panel.lines.values(), strict=False):
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in enumerate(line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return parts


def _text(x: float, y: float, content: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
