"""`gantt`: what all stages did, as one SVG: a lane per stage, a bar per pass, its stripes coloured by request.

    above   the whole run; the shaded stretch is what is drawn larger below
    below   a few passes of the busiest stage, and the messages between stages: drafts down, verdicts (dashed) up, from
            the moment a message is sent to the moment it is taken
    foot    how busy each stage was, and how much of the latency was hidden, over the whole run

A hatched stripe is a prefill. Colours come round again after `len(_COLOURS)` requests.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from cascade_runtime.tracing.arrows import Arrow, arrows
from cascade_runtime.tracing.occupancy import Occupancy, occupancy, side_by_side
from cascade_runtime.tracing.tracer import Share, Span, Trace

# for all kinds of colour vision: Okabe and Ito's, and darker ones beside them
_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#a39a00",
    "#5b4b9a",
    "#8a5a2b",
    "#66706f",
)
_WIDTH, _LEFT, _RIGHT = 1200, 96, 20
_PASSES = 6  # of the busiest stage in the enlarged stretch
_LETTER = 5.6  # px of a letter of a bar's label
_CAPTION = "the shaded stretch, with the messages between stages; 7/8: seven of eight drafts were accepted"
_STYLE = """text{font:12px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:#24292f}
.title{font-size:16px;font-weight:600}.dim{fill:#6e7781}.stage{font-weight:600}.end{text-anchor:end}
.middle{text-anchor:middle}.bar{font-size:10px;fill:#fff;font-weight:600}.back{fill:#eef1f4}
.grid{stroke:#d0d7de;stroke-width:.7}.message{fill:none;stroke-width:1.1}.verdict{stroke-dasharray:3 2.5}"""
_PREFILL = (
    '<pattern id="prefill" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="2.6" height="6" fill="#fff" fill-opacity=".32"/></pattern>'
)


@dataclass(frozen=True)
class _Stretch:
    """A stretch of time over the width of the picture; ns of the wall clock. `origin_ns` is 0 on its axis."""

    start_ns: float
    end_ns: float
    origin_ns: float

    def x(self, at_ns: float) -> float:
        """Where a moment lies, px; what is outside lies on the edge."""
        share = (at_ns - self.start_ns) / max(self.end_ns - self.start_ns, 1.0)
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(share, 0.0), 1.0)

    def holds(self, start_ns: float, end_ns: float) -> bool:
        """Whether any of it is inside."""
        return end_ns > self.start_ns and start_ns < self.end_ns


@dataclass(frozen=True)
class _Lane:
    """Where a stage is drawn, px."""

    trace: Trace
    top: float
    height: float

    @property
    def bottom(self) -> float:
        return self.top + self.height


def gantt(traces: Sequence[Trace], title: str) -> str:
    """The picture, as the text of an SVG file; stages from top to bottom in the order given."""
    busy, whole = occupancy(traces), _whole(traces)
    part = _enlarged(traces, whole)
    above = _lanes(traces, 58, high=(12, 22), apart=(5, 5))
    below = _lanes(traces, above[-1].bottom + 66, high=(20, 46), apart=(8, 54))
    shaded = f'x="{whole.x(part.start_ns):.1f}" width="{whole.x(part.end_ns) - whole.x(part.start_ns):.1f}"'
    foot = below[-1].bottom + 52
    height = foot + 44
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {_WIDTH} {height:.0f}">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style><defs>{_PREFILL}{_arrow_heads()}</defs>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text class="title" x="{_LEFT}" y="28">{escape(title)}</text>',
        f'<rect {shaded} y="50" height="{above[-1].bottom - 42:.1f}" fill="#ffe28a"/>',
        *_axis(whole, 50, above[-1].bottom + 8),
        *(line for lane in above for line in _lane(lane, whole, enlarged=False)),
        f'<text class="dim" x="{_LEFT}" y="{below[0].top - 14:.1f}">{_CAPTION}</text>',
        *_axis(part, below[0].top - 8, below[-1].bottom + 8),
        *(line for lane in below for line in _lane(lane, part, enlarged=True)),
        *_messages(traces, below, part),
        *_legend(_requests_in(traces, part), foot),
        f'<text x="{_LEFT}" y="{foot + 26:.0f}">{escape(_summary(busy))}</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


# -- when and where --------------------------------------------------------------------------------------------------


def _whole(traces: Iterable[Trace]) -> _Stretch:
    spans = [(span, trace.wall_minus_monotonic_ns) for trace in traces for span in trace.spans]
    start_ns = min((span.start_ns + shift_ns for span, shift_ns in spans), default=0)
    return _Stretch(start_ns, max((span.end_ns + shift_ns for span, shift_ns in spans), default=1), start_ns)


def _enlarged(traces: Sequence[Trace], whole: _Stretch) -> _Stretch:
    """`_PASSES` median passes of the busiest stage, from the start of one: where most stages are at work at once."""
    figures = occupancy(traces).busy_s
    busiest = max(traces, key=lambda trace: figures[trace.stage])
    if not busiest.spans:
        return whole
    length_ns = _PASSES * statistics.median(span.end_ns - span.start_ns for span in busiest.spans)
    candidates = [
        _Stretch(start_ns, min(start_ns + length_ns, whole.end_ns), whole.origin_ns)
        for start_ns in (span.start_ns + busiest.wall_minus_monotonic_ns for span in busiest.spans)
        if start_ns + length_ns <= whole.end_ns
    ]
    return max(candidates, key=lambda stretch: _liveliness(traces, stretch), default=whole)


def _liveliness(traces: Sequence[Trace], stretch: _Stretch) -> tuple[int, int]:
    """How many stages work in a stretch, and for how many requests."""
    return sum(bool(_spans(trace, stretch)) for trace in traces), len(_requests_in(traces, stretch))


def _spans(trace: Trace, stretch: _Stretch) -> list[Span]:
    shift_ns = trace.wall_minus_monotonic_ns
    return [span for span in trace.spans if stretch.holds(span.start_ns + shift_ns, span.end_ns + shift_ns)]


def _requests_in(traces: Sequence[Trace], stretch: _Stretch) -> list[int]:
    return sorted({request for trace in traces for span in _spans(trace, stretch) for request in span.requests})


def _lanes(traces: Sequence[Trace], top: float, high: tuple[int, int], apart: tuple[int, int]) -> list[_Lane]:
    """high: px of a stage without messages, and of one with. apart: px between two stages without, and with."""
    lanes: list[_Lane] = []
    for trace in traces:
        if lanes:
            top = lanes[-1].bottom + apart[bool(trace.messages and lanes[-1].trace.messages)]
        lanes.append(_Lane(trace, top, high[bool(trace.messages)]))
    return lanes


# -- what is drawn ---------------------------------------------------------------------------------------------------


def _axis(stretch: _Stretch, top: float, bottom: float) -> Iterator[str]:
    """Lines at round milliseconds, with their labels below."""
    length_ms = (stretch.end_ns - stretch.start_ns) / 1e6
    unit = 10 ** math.floor(math.log10(max(length_ms, 1e-3) / 8))
    step = next(unit * k for k in (1, 2, 5, 10) if length_ms / (unit * k) <= 12)
    first = math.ceil((stretch.start_ns - stretch.origin_ns) / 1e6 / step)
    for number in range(first, first + 14):
        at_ns = stretch.origin_ns + number * step * 1e6
        if at_ns <= stretch.end_ns:
            x, last = stretch.x(at_ns), at_ns + step * 1e6 > stretch.end_ns
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
            label = f"{number * step:g}" + (" ms" if last else "")
            yield f'<text class="dim middle" x="{x:.1f}" y="{bottom + 15:.1f}">{label}</text>'


def _lane(lane: _Lane, stretch: _Stretch, *, enlarged: bool) -> Iterator[str]:
    """A stage's bars over its background; what it does at the same time lies in thinner bars, one below the other."""
    stage = escape(lane.trace.stage, {'"': "&quot;"})
    kind = "enlarged" if enlarged else "whole"
    yield f'<g class="lane {kind}" data-stage="{stage}">'
    at = f'x="{_LEFT}" width="{_WIDTH - _LEFT - _RIGHT}" y="{lane.top:.1f}" height="{lane.height:.1f}"'
    yield f'<rect class="back" {at}/>'
    yield f'<text class="stage end" x="{_LEFT - 10}" y="{lane.top + lane.height / 2 + 4:.1f}">{stage}</text>'
    rows = side_by_side(_spans(lane.trace, stretch))
    for number, row in enumerate(rows):
        height = lane.height / len(rows)
        for span in row:
            yield from _bar(span, _Lane(lane.trace, lane.top + number * height, height), stretch, enlarged=enlarged)
    yield "</g>"


def _bar(span: Span, place: _Lane, stretch: _Stretch, *, enlarged: bool) -> Iterator[str]:
    """A stripe per request, in the order of their numbers."""
    shift_ns = place.trace.wall_minus_monotonic_ns
    left, right = stretch.x(span.start_ns + shift_ns), stretch.x(span.end_ns + shift_ns)
    width, shares = max(right - left, 0.6), sorted(span.shares)
    height = place.height / len(shares)
    for number, share in enumerate(shares):
        box = f'x="{left:.1f}" y="{place.top + number * height:.1f}" width="{width:.1f}" height="{height:.1f}"'
        about = f"<title>{escape(_about(share, span))}</title>" if enlarged else ""
        yield f'<rect {box} fill="{_colour(share.request)}">{about}</rect>'
        if enlarged and share.name == "prefill":
            yield f'<rect {box} fill="url(#prefill)"/>'
        label = _label(share)
        if enlarged and height >= 10 and width > _LETTER * len(label) + 6:
            yield (
                f'<text class="bar middle" x="{left + width / 2:.1f}" '
                f'y="{place.top + (number + 0.5) * height + 3.5:.1f}">{escape(label)}</text>'
            )
    if enlarged and width > 3:
        yield (
            f'<rect x="{left:.1f}" y="{place.top:.1f}" width="{width:.1f}" height="{place.height:.1f}" fill="none" '
            'stroke="#fff" stroke-width=".8"/>'
        )


def _label(share: Share) -> str:
    return f"{share.name} {share.accepted}/{share.drafts}" if share.drafts else share.name


def _about(share: Share, span: Span) -> str:
    drafts = f", {share.accepted} of {share.drafts} drafts accepted" if share.drafts else ""
    others = f", in a pass of {len(span.shares)}" if len(span.shares) > 1 else ""
    return f"request {share.request}: {share.name}{drafts}{others}, {(span.end_ns - span.start_ns) / 1e6:.2f} ms"


def _messages(traces: Sequence[Trace], lanes: Sequence[_Lane], stretch: _Stretch) -> Iterator[str]:
    """An arrow per message that is sent and taken within the stretch."""
    place = {lane.trace.stage: lane for lane in lanes}
    for arrow in arrows(traces):
        if arrow.start_ns >= stretch.start_ns and arrow.end_ns <= stretch.end_ns:
            yield _message(arrow, place[arrow.sent.sender], place[arrow.sent.receiver], stretch)


def _message(arrow: Arrow, sender: _Lane, receiver: _Lane, stretch: _Stretch) -> str:
    down = sender.top < receiver.top
    start, end = (sender.bottom, receiver.top - 4) if down else (sender.top, receiver.bottom + 4)
    colour = _colour(arrow.sent.request)
    what = f"{arrow.name}: {arrow.sent.tokens} tokens of request {arrow.sent.request}"
    took_ms = (arrow.end_ns - arrow.start_ns) / 1e6
    return (
        f'<path class="message {"drafts" if down else "verdict"}" stroke="{colour}" marker-end="url(#{_head(colour)})" '
        f'd="M{stretch.x(arrow.start_ns):.1f} {start:.1f}L{stretch.x(arrow.end_ns):.1f} {end:.1f}">'
        f"<title>{escape(what)}, taken after {took_ms:.2f} ms</title></path>"
    )


def _arrow_heads() -> str:
    return "".join(
        f'<marker id="{_head(colour)}" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="6" markerHeight="6" '
        f'orient="auto"><path d="M0 0.8L8 4L0 7.2z" fill="{colour}"/></marker>'
        for colour in _COLOURS
    )


def _legend(requests: Sequence[int], y: float) -> Iterator[str]:
    """The requests of the enlarged stretch, and how prefills and messages are drawn."""
    x = float(_LEFT)
    for request in requests[: len(_COLOURS)]:
        yield f'<rect x="{x:.0f}" y="{y - 10:.0f}" width="12" height="12" fill="{_colour(request)}"/>'
        yield f'<text x="{x + 17:.0f}" y="{y:.0f}">request {request}</text>'
        x += 30 + _LETTER * 1.15 * len(f"request {request}")
    box = f'x="{x + 8:.0f}" y="{y - 10:.0f}" width="18" height="12"'
    yield f'<rect {box} fill="#66706f"/><rect {box} fill="url(#prefill)"/>'
    yield f'<text x="{x + 31:.0f}" y="{y:.0f}">prefill</text>'
    for name, offset in (("drafts", 84.0), ("verdict", 160.0)):
        yield f'<path class="message {name}" stroke="#66706f" d="M{x + offset:.0f} {y - 4:.0f}h24"/>'
        yield f'<text x="{x + offset + 29:.0f}" y="{y:.0f}">{name}</text>'


def _summary(busy: Occupancy) -> str:
    shares = ", ".join(f"{stage} {share:.0%}" for stage, share in busy.busy_share.items())
    if busy.latency_hidden is None:
        return f"busy: {shares}"
    longest, total, wall = (1000 * s for s in (max(busy.busy_s.values()), sum(busy.busy_s.values()), busy.wall_s))
    return (
        f"busy: {shares}.  latency hidden = 1 - (wall {wall:.0f} - longest busy {longest:.0f}) / "
        f"(sum of busy {total:.0f} - {longest:.0f}) ms = {busy.latency_hidden:.2f}"
    )


def _colour(request: int) -> str:
    return _COLOURS[request % len(_COLOURS)]


def _head(colour: str) -> str:
    return f"head-{colour[1:]}"
