"""The picture of a trace: well-formed, a lane per stage, a stripe per request, messages between the lanes they join."""

from __future__ import annotations

from xml.etree import ElementTree

from cascade_runtime.tracing import Message, Share, Span, Trace
from cascade_runtime.tracing.gantt import gantt

SVG = "{http://www.w3.org/2000/svg}"
MS = 1_000_000
HEAVY = "heavy <&>"


def stage(name: str, spans: tuple[Span, ...], messages: tuple[Message, ...] = ()) -> Trace:
    return Trace(name, spans, messages, (), dropped=0, wall_minus_monotonic_ns=5 * MS)


def run() -> list[Trace]:
    """Light drafts while heavy verifies one request and prefills another; a draft block down, a verdict up."""
    block = Message("light", HEAVY, 0, 1, 4, 10 * MS, 10 * MS)
    verdict = Message(HEAVY, "light", 0, 2, 1, 30 * MS, 30 * MS)
    drafting = (Span(0, 10 * MS, (Share(1, "draft"),)), Span(32 * MS, 40 * MS, (Share(2, "draft"),)))
    verifying = (
        Span(12 * MS, 30 * MS, (Share(2, "prefill"), Share(1, "verify", 4, 3))),
        Span(30 * MS, 50 * MS, (Share(1, "verify"),)),
    )
    return [
        stage("encoder", (Span(0, 2 * MS, (Share(1, "encode"),)),)),
        stage("light", drafting, (block, verdict._replace(start_ns=32 * MS))),
        stage(HEAVY, verifying, (block._replace(start_ns=12 * MS), verdict)),
    ]


def lanes(picture: ElementTree.Element, kind: str) -> dict[str, ElementTree.Element]:
    return {g.attrib["data-stage"]: g for g in picture.iter(SVG + "g") if kind in g.attrib.get("class", "").split()}


def stripes(lane: ElementTree.Element) -> list[tuple[float, float, str]]:
    """Left edge, width and colour of every stripe, hatches, frames and background left out."""
    found = [
        (float(r.attrib["x"]), float(r.attrib["width"]), r.attrib.get("fill", "none")) for r in lane.iter(SVG + "rect")
    ]
    return [stripe for stripe in found if stripe[2].startswith("#")]


def test_every_stage_has_a_lane_in_both_parts_and_a_name_that_cannot_break_the_file() -> None:
    picture = ElementTree.fromstring(gantt(run(), 'a "title" <with> & all'))
    for kind in ("whole", "enlarged"):
        assert list(lanes(picture, kind)) == ["encoder", "light", HEAVY]
    assert 'a "title" <with> & all' in [text.text for text in picture.iter(SVG + "text")]


def test_bars_lie_where_their_time_is_with_a_stripe_per_request() -> None:
    whole = lanes(ElementTree.fromstring(gantt(run(), "")), "whole")
    light, heavy = stripes(whole["light"]), stripes(whole[HEAVY])
    left, ms = 96.0, (1200 - 96 - 20) / 50  # px at 0 ms, and of a millisecond
    assert [(round((x - left) / ms), round(width / ms)) for x, width, _ in light] == [(0, 10), (32, 8)]
    assert [(round((x - left) / ms), round(width / ms)) for x, width, _ in heavy] == [(12, 18), (12, 18), (30, 20)]
    assert light[0][2] == heavy[0][2] == heavy[2][2] != heavy[1][2] == light[1][2]  # a colour per request


def test_messages_lead_from_lane_to_lane_and_forward() -> None:
    picture = ElementTree.fromstring(gantt(run(), ""))
    ends: dict[str, list[float]] = {}
    for path in picture.iter(SVG + "path"):
        kind = path.attrib.get("class", "")
        if kind.startswith("message") and "marker-end" in path.attrib:
            ends[kind] = [float(part) for part in path.attrib["d"][1:].replace("L", " ").split()]
    (x1, y1, x2, y2), (back_x1, back_y1, back_x2, back_y2) = ends["message drafts"], ends["message verdict"]
    assert x1 < x2 and y1 < y2  # down to heavy
    assert back_x1 < back_x2 and back_y1 > back_y2  # up to light
    assert x2 < back_x1


def test_the_foot_says_what_was_measured() -> None:
    text = gantt(run(), "")
    assert "busy: encoder 4%, light 36%, heavy &lt;&amp;&gt; 76%." in text
    assert "latency hidden = 1 - (wall 50 - longest busy 38) / (sum of busy 58 - 38) ms = 0.40" in text


def test_a_prefill_is_hatched_and_a_verified_block_says_what_was_accepted() -> None:
    lane = lanes(ElementTree.fromstring(gantt(run(), "")), "enlarged")[HEAVY]
    assert sum(rect.attrib.get("fill") == "url(#prefill)" for rect in lane.iter(SVG + "rect")) == 1
    assert [text.text for text in lane.iter(SVG + "text")][1:] == ["verify 3/4", "prefill", "verify"]


def test_a_trace_of_stages_that_did_nothing_is_a_picture_too() -> None:
    picture = ElementTree.fromstring(gantt([stage("light", ()), stage("heavy", ())], "idle"))
    assert list(lanes(picture, "enlarged")) == ["light", "heavy"]
