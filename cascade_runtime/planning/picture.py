"""`draw`: a plan as an SVG of its own: a box per device, memory as a bar, stages with their load, drafts as arrows."""

from __future__ import annotations

from xml.sax.saxutils import escape

from cascade_runtime.planning.plan import DevicePlan, Plan, Replica, StageOnDevice, byte_words, edge_words

_WIDTH, _MARGIN, _GAP = 1000, 24, 56
_COLUMNS = 3
_STAGE_HEIGHT, _HEAD_HEIGHT = 58, 62
_COLORS = ("#4e79a7", "#59a14f", "#b07aa1", "#f28e2b", "#76b7b2", "#9c755f")
_HOT, _INK, _DIM = "#c0392b", "#1f2d3d", "#64707d"


class _Canvas:
    def __init__(self) -> None:
        self.items: list[str] = []

    def text(self, x: float, y: float, words: str, size: int = 13, color: str = _INK, extra: str = "") -> None:
        self.items.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}"{extra}>{escape(words)}</text>'
        )

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, edge: str = "none", round_: int = 4
    ) -> None:
        size = f'width="{max(width, 0):.1f}" height="{height:.1f}" rx="{round_}"'
        self.items.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{fill}" stroke="{edge}"/>')

    def arrow(self, x1: float, y1: float, x2: float, y2: float) -> None:
        bend = 36 if abs(x1 - x2) < 1 else 0  # beside the boxes where both ends lie in one column
        middle = f"C {x1 + bend:.1f} {y1:.1f} {x2 + bend:.1f} {y2:.1f}" if bend else "L"
        path = f"M {x1:.1f} {y1:.1f} {middle} {x2:.1f} {y2:.1f}"
        self.items.append(f'<path d="{path}" fill="none" stroke="{_INK}" stroke-width="1.5" marker-end="url(#head)"/>')


def draw(plan: Plan) -> str:
    """The plan as one SVG document."""
    canvas = _Canvas()
    canvas.text(_MARGIN, 36, f"{plan.recipe} on {plan.cluster}", 20, extra=' font-weight="bold"')
    ratio = f", {plan.tokens_per_s / plan.tokens_per_s_alone:.2f}x the target alone" if plan.tokens_per_s_alone else ""
    rate = f"{plan.tokens_per_s:.4g} tokens/s{ratio}"
    canvas.text(_MARGIN, 60, f"{rate}; first token after {plan.ttft_s:.3g} s; {plan.streams} requests at a time", 14)
    y = 82.0
    for text in plan.assumptions:
        canvas.text(_MARGIN, y, f"assumes, and the runtime does not do today: {text}", 13, _HOT)
        y += 20
    for replica in plan.replicas:
        y = _replica(canvas, replica, y + 10)
    for spare in plan.spare:
        y += 20
        canvas.text(_MARGIN, y, f"not used: {spare.devices} {spare.kind} of {spare.pool} ({spare.site})", 13, _DIM)
    for more in plan.one_more:
        y += 20
        canvas.text(_MARGIN, y, f"one more {more.kind} in {more.pool}: {more.gain:+.4g} tokens/s", 13, _DIM)
    head = (
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{_INK}"/></marker></defs>'
    )
    size = f'width="{_WIDTH}" height="{y + 24:.0f}" viewBox="0 0 {_WIDTH} {y + 24:.0f}"'
    open_ = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, sans-serif">'
    ground = f'<rect width="{_WIDTH}" height="{y + 24:.0f}" fill="white"/>'
    return "\n".join([open_, head, ground, *canvas.items, "</svg>", ""])


def _replica(canvas: _Canvas, replica: Replica, top: float) -> float:
    """One sort of replica; returns where it ends."""
    said = replica.simulated_tokens_per_s or replica.tokens_per_s
    title = f"{replica.count} x {' -> '.join(replica.levels)}, {replica.mode}, {replica.slots} slots"
    title += f": {said:.4g} tokens/s each"
    canvas.text(_MARGIN, top + 22, title, 15, extra=' font-weight="bold"')
    width = (_WIDTH - 2 * _MARGIN - (_COLUMNS - 1) * _GAP) / _COLUMNS
    for sentence in replica.splits:
        top += 20
        canvas.text(_MARGIN, top + 22, sentence)
    y, tallest = top + 36, 0.0
    places: dict[str, tuple[float, float]] = {}
    for i, device in enumerate(_from_light_to_heavy(replica)):
        if i and i % _COLUMNS == 0:
            y, tallest = y + tallest + 24, 0.0
        x = _MARGIN + (i % _COLUMNS) * (width + _GAP)
        tallest = max(tallest, _device(canvas, device, replica, x, y, width, places))
    for edge in replica.edges:
        (x1, y1), (x2, y2) = places[edge.upstream], places[edge.downstream]
        same = abs(x1 - x2) < 1
        rightward = x2 > x1
        canvas.arrow(
            x1 + (width - 10 if same or rightward else 10), y1, x2 + (width - 10 if same or not rightward else 10), y2
        )
    bottom = y + tallest
    for edge in replica.edges:
        bottom += 20
        away = f"{1000 * edge.latency_s:.3g} ms away"
        canvas.text(_MARGIN, bottom, f"{edge.upstream} -> {edge.downstream}: {edge_words(edge)}, {away}")
    return bottom + 12


def _from_light_to_heavy(replica: Replica) -> list[DevicePlan]:
    rank = {name: i for i, name in enumerate(("encoder", "adapter", *replica.levels))}
    return sorted(replica.devices, key=lambda device: min(rank.get(stage.stage, 0) for stage in device.stages))


def _device(
    canvas: _Canvas,
    device: DevicePlan,
    replica: Replica,
    x: float,
    y: float,
    width: float,
    places: dict[str, tuple[float, float]],
) -> float:
    height = _HEAD_HEIGHT + _STAGE_HEIGHT * len(device.stages) + 6
    canvas.box(x, y, width, height, "#f4f6f8", "#b8c2cc", 8)
    number = replica.count * device.copies
    shared = ", shared" if device.shared else f" x {number}" if number > 1 else ""
    canvas.text(x + 10, y + 20, f"{device.kind}{shared}", 14, extra=' font-weight="bold"')
    canvas.text(x + width - 10, y + 20, f"{device.pool} ({device.site})", 12, _DIM, ' text-anchor="end"')
    _memory_bar(canvas, device, x + 10, y + 30, width - 20)
    memory = f"{byte_words(device.used_bytes)} of {byte_words(device.usable_bytes)}: weights, lighter: KV"
    canvas.text(x + 10, y + 56, memory, 11, _DIM)
    for i, stage in enumerate(device.stages):
        top = y + _HEAD_HEIGHT + i * _STAGE_HEIGHT
        places.setdefault(stage.stage, (x, top + 24))  # drafts go to the first device of a split
        _stage(canvas, stage, i, hot=stage.stage == replica.bottleneck, x=x + 10, y=top, width=width - 20)
    return height


def _memory_bar(canvas: _Canvas, device: DevicePlan, x: float, y: float, width: float) -> None:
    canvas.box(x, y, width, 12, "#dde3e8")
    in_turns = any(stage.turn is not None for stage in device.stages)
    at = x
    for i, stage in enumerate(device.stages):
        color = _COLORS[i % len(_COLORS)]
        for count, strength in ((stage.weight_bytes, 1.0), (stage.kv_bytes, 0.5)):
            part = width * count / device.usable_bytes
            size = f'x="{at:.1f}" y="{y:.1f}" width="{part:.1f}" height="12"'
            canvas.items.append(f'<rect {size} fill="{color}" fill-opacity="{strength}"/>')
            at += part
        if in_turns:
            at = x


def _stage(canvas: _Canvas, stage: StageOnDevice, i: int, *, hot: bool, x: float, y: float, width: float) -> None:
    canvas.box(x, y, width, _STAGE_HEIGHT - 8, "white", _HOT if hot else "#ccd4db")
    canvas.box(x, y, 5, _STAGE_HEIGHT - 8, _COLORS[i % len(_COLORS)], round_=2)
    turn = f"{stage.turn + 1}. " if stage.turn is not None else ""
    canvas.text(x + 14, y + 19, f"{turn}{stage.label}" + (" (bottleneck)" if hot else ""), 14, _HOT if hot else _INK)
    loads = f", loads in {stage.load_s:.2g} s" if stage.turn is not None else ""
    passes = f", {stage.pass_ms:.3g} ms a pass" if stage.pass_ms else ""
    layers = f"{stage.layers} layers, " if stage.layers else ""
    canvas.text(x + 14, y + 37, f"{layers}{stage.dtype}, busy {stage.busy:.0%}{passes}{loads}", 11, _DIM)
    canvas.box(
        x + 14, y + 42, (width - 28) * min(1.0, stage.busy), 4, _HOT if hot else _COLORS[i % len(_COLORS)], round_=2
    )
