"""Small charts as SVG text, for one page: bars, shares of a whole, distributions, and columns by position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

ALONE, CASCADE = "#98a2b3", "#087f5b"
STAGES = ("#f08c00", "#1c7ed6", "#087f5b", "#ae3ec9", "#e03131", "#5c7cfa")  # by level, light first
WIDTH = 520
_LEFT, _BAR, _GAP = 128, 26, 12


def bars(rows: Sequence[tuple[str, float, str, str]], top: float | None = None) -> str:
    """Horizontal bars from 0: (name, value, what stands beside it, colour). top: the value of a full bar."""
    most = top or max((value for _, value, _, _ in rows), default=1.0) or 1.0
    full, out = WIDTH - _LEFT - 86, []
    for number, (name, value, text, colour) in enumerate(rows):
        y, width = number * (_BAR + _GAP), max(1.5, full * min(1.0, value / most))
        middle = y + _BAR / 2 + 4
        out.append(
            f'<text class="name" x="{_LEFT - 10}" y="{middle}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{_LEFT}" y="{y}" width="{full}" height="{_BAR}" rx="4" class="track"/>'
            f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="4" fill="{colour}"/>'
            f'<text class="value" x="{_LEFT + full + 8}" y="{middle}">{escape(text)}</text>'
        )
    return _svg(out, len(rows) * (_BAR + _GAP) - _GAP)


def shares(parts: Sequence[tuple[str, float, str]]) -> str:
    """One bar cut into parts (name, amount, colour), with a legend below."""
    whole, x, out = sum(amount for _, amount, _ in parts) or 1.0, 0.0, []
    for number, (name, amount, colour) in enumerate(parts):
        width = WIDTH * amount / whole
        out.append(f'<rect x="{x:.1f}" y="0" width="{max(0.0, width - 2):.1f}" height="34" rx="4" fill="{colour}"/>')
        if width > 46:
            out.append(f'<text class="in" x="{x + width / 2:.1f}" y="22">{amount / whole:.0%}</text>')
        at = number * 170
        out.append(
            f'<rect x="{at}" y="48" width="11" height="11" rx="2" fill="{colour}"/>'
            f'<text class="name" x="{at + 17}" y="58">{escape(name)}: {amount:,.0f}</text>'
        )
        x += width
    return _svg(out, 64)


def distributions(series: Mapping[str, tuple[Sequence[float], str]], unit: str) -> str:
    """Share of values at or below: a step line for each series (ascending values, colour), with its median marked."""
    height, left, most = 170, 40, _round_up(max((values[-1] for values, _ in series.values() if values), default=1.0))

    def x(value: float) -> float:
        return left + (WIDTH - left - 16) * value / most

    def y(share: float) -> float:
        return height * (1 - share)

    out = [
        f'<line class="grid" x1="{left}" x2="{WIDTH - 16}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>'
        f'<text class="tick" x="{left - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        for share in (0, 0.5, 1)
    ]
    for step in range(5):
        value = most * step / 4
        out.append(f'<text class="tick" x="{x(value):.1f}" y="{height + 16}" text-anchor="middle">{value:.3g}</text>')
    out.append(f'<text class="tick" x="{WIDTH - 16}" y="{height + 32}" text-anchor="end">{escape(unit)}</text>')
    for number, (name, (values, colour)) in enumerate(series.items()):
        if not values:
            continue
        points, below = [f"{x(values[0]):.1f},{y(0):.1f}"], 0.0
        for rank, value in enumerate(values, start=1):
            points += [f"{x(value):.1f},{y(below):.1f}", f"{x(value):.1f},{y(rank / len(values)):.1f}"]
            below = rank / len(values)
        median = values[(len(values) - 1) // 2]
        out.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2.4"/>'
            f'<circle cx="{x(median):.1f}" cy="{y(0.5):.1f}" r="4.5" fill="{colour}" stroke="#fff" stroke-width="1.5"/>'
            f'<rect x="{left + 225 * number}" y="{height + 24}" width="11" height="11" rx="2" fill="{colour}"/>'
            f'<text class="name" x="{left + 225 * number + 17}" y="{height + 34}">'
            f"{escape(name)}, median {median:.3g}</text>"
        )
    return _svg(out, height + 40)


def columns(values: Sequence[float | None], weights: Sequence[int], colour: str) -> str:
    """A column for each position, from 0 to a round number; the paler, the less often it was tested."""
    height, left, most = 130, 34, max(weights, default=1) or 1
    top = min(1.0, _round_up(max((value for value in values if value is not None), default=0.0) or 0.2))
    wide = (WIDTH - left) / max(1, len(values))
    out = [
        f'<line class="grid" x1="{left}" x2="{WIDTH}" y1="{height * (1 - share)}" y2="{height * (1 - share)}"/>'
        f'<text class="tick" x="{left - 6}" y="{height * (1 - share) + 4}" text-anchor="end">{top * share:.3g}</text>'
        for share in (0, 0.5, 1)
    ]
    for number, (value, weight) in enumerate(zip(values, weights, strict=True)):
        x = left + number * wide
        if value is not None:
            opacity = 0.25 + 0.75 * weight / most
            out.append(
                f'<rect x="{x + 2:.1f}" y="{height * (1 - value / top):.1f}" width="{wide - 4:.1f}" '
                f'height="{max(1.0, height * value / top):.1f}" rx="2" fill="{colour}" fill-opacity="{opacity:.2f}">'
                f"<title>position {number}: {value:.3f} of {weight} tested</title></rect>"
            )
        if number % max(1, len(values) // 12) == 0:
            out.append(
                f'<text class="tick" x="{x + wide / 2:.1f}" y="{height + 15}" text-anchor="middle">{number}</text>'
            )
    return _svg(out, height + 20)


def _round_up(value: float) -> float:
    """The next of 1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10 times a power of ten: a quarter of it is a plain number."""
    unit = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(unit * step for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if unit * step >= value)


def _svg(parts: Sequence[str], height: float) -> str:
    return f'<svg viewBox="0 -6 {WIDTH} {height + 12:.0f}" role="img">{"".join(parts)}</svg>'
