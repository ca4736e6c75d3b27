"""A line chart as SVG: a few series over named points. For benchmarks; nothing to install, opens in any browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

_COLOURS = ("#1b7f4b", "#c77700", "#b3261e", "#1a5fb4", "#6a3d9a", "#5e5c64")
_LEFT, _TOP, _WIDTH, _HEIGHT = 56, 34, 420, 220


def line_chart(
    path: Path, title: str, across: str, points: Sequence[object], series: Mapping[str, Sequence[float]]
) -> None:
    """Write one chart: `points` along the bottom at equal distances, each series a line from 0 up."""
    top = max((value for values in series.values() for value in values), default=1.0) * 1.1 or 1.0

    def x(index: int) -> float:
        return _LEFT + _WIDTH * (index / max(1, len(points) - 1))

    def y(value: float) -> float:
        return _TOP + _HEIGHT * (1 - value / top)

    height = _TOP + _HEIGHT + 44 + 16 * len(series)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 24}" height="{height}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="18" font-size="13" font-weight="bold">{escape(title)}</text>',
    ]
    for step in range(5):
        value = top * step / 4
        out.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for index, point in enumerate(points):
        at = f'x="{x(index):.1f}" y="{_TOP + _HEIGHT + 14}"'
        out.append(f'<text {at} text-anchor="middle">{escape(str(point))}</text>')
    out.append(f'<text x="{_LEFT + _WIDTH / 2}" y="{_TOP + _HEIGHT + 30}" text-anchor="middle">{escape(across)}</text>')
    for number, (name, values) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(values))
        below = _TOP + _HEIGHT + 46 + 16 * number
        out.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<rect x="{_LEFT}" y="{below - 8}" width="12" height="4" fill="{colour}"/>'
            f'<text x="{_LEFT + 18}" y="{below}">{escape(name)}</text>'
        )
    path.write_text("\n".join([*out, "</svg>\n"]), encoding="utf-8")
