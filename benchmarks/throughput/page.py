"""`page`: a benchmark's result as one HTML file, pictures included, nothing to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.throughput.charts import ALONE, CASCADE, STAGES, bars, columns, distributions, shares
from benchmarks.throughput.measure import Side
from cascade_runtime.tracing import Trace
from cascade_runtime.tracing.gantt import gantt

_DRAWN_NS = 1_500_000_000  # of the run's time, in the picture of all stages
_STYLE = """
*{box-sizing:border-box}body{margin:0;background:#f5f7fa;color:#1f2933;
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:36px 24px 56px}h1{font-size:26px;margin:0 0 4px}
h2{font-size:15px;margin:0 0 2px}
p{margin:0 0 14px;color:#5b6875}.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:14px;
margin:22px 0}.card,.panel{background:#fff;border:1px solid #e3e8ee;border-radius:10px;padding:18px 20px}
.card b{display:block;font-size:30px;line-height:1.15;font-variant-numeric:tabular-nums}.card.lead{background:#087f5b;
border-color:#087f5b;color:#fff}.card span{font-size:13px;color:#5b6875}.card.lead span{color:#d3f9e8}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(460px,1fr));gap:14px}.wide{grid-column:1/-1;
overflow-x:auto}.panel p{font-size:13px}svg{width:100%;height:auto;display:block}.wide svg{min-width:900px}
svg text{font-size:12.5px;fill:#1f2933}svg .tick{font-size:11px;fill:#7b8794}svg .value{font-weight:600}
svg .in{fill:#fff;font-weight:600;text-anchor:middle}svg .track{fill:#eef1f5}svg .grid{stroke:#e3e8ee}
table{border-collapse:collapse;width:100%;font-size:13px}td,th{padding:5px 10px 5px 0;text-align:left;
border-bottom:1px solid #eef1f5;font-weight:400}th{color:#5b6875}td{font-variant-numeric:tabular-nums}
.warn{background:#fff3cd;border:1px solid #ffe08a;border-radius:8px;padding:10px 14px;color:#664d03;margin:16px 0 0}
@media(max-width:560px){.panels{grid-template-columns:1fr}}
"""


def page(told: Mapping[str, Any], alone: Side, cascade: Side) -> str:
    """The page. told: what the benchmark prints as its last line."""
    title = f"{told['recipe']}: {told['tps']:.0f} tokens/s, {told['speedup']:.2f}x its target alone"
    warnings = [*told["marks"], *([] if told["identical"] else ["The token ids of the rounds differ."])]
    panels = [
        _panel("Tokens per second", f"Median of {told['rounds']} rounds, turn about.", _speeds(told, alone, cascade)),
        _panel(
            "Who said the tokens", "The stage that proposed each token first; the target stands by all.", _said(told)
        ),
        _panel(
            "Time to the first token",
            "Share of answers that had begun by then; dots are medians.",
            _spread(alone, cascade, "ttft_ms"),
        ),
        _panel(
            "Time per token after the first",
            "Share of answers that took no longer; dots are medians.",
            _spread(alone, cascade, "tpot_ms"),
        ),
        *(_edge(name, edge, told) for name, edge in told["edges"].items()),
        _panel("How busy each stage was", _hidden(told), _busy(told)),
        _panel("Memory", "Weights and KV slots of each language stage, and the most its process held.", _memory(told)),
        _panel("All stages at work", "The end of the last round.", _lanes(told, cascade), wide=True),
        _panel("Setup", "", _setup(told), wide=True),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"/><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"/>'
        f"<style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1><p>{escape(_subtitle(told))}</p>"
        + "".join(f'<div class="warn">{escape(warning)}</div>' for warning in warnings)
        + f'<div class="cards">{_cards(told)}</div><div class="panels">{"".join(panels)}</div></main></body></html>\n'
    )


def _subtitle(told: Mapping[str, Any]) -> str:
    chain = " → ".join(told["levels"])
    return (
        f"{chain}, {told['mode']} mode, {_clients(told)}, "
        f"{told['questions']} questions about simulated event-camera scenes a round"
    )


def _clients(told: Mapping[str, Any]) -> str:
    return "one client" if told["streams"] == 1 else f"{told['streams']} clients at a time"


def _cards(told: Mapping[str, Any]) -> str:
    alone, cascade = told["alone"], told["cascade"]
    last = list(told["edges"].values())[-1:]
    cards = [
        (f"{told['speedup']:.2f}×", "the target alone, tokens per second", " lead"),
        ("identical" if told["identical"] else "different", "token ids, cascade and target alone", ""),
        (f"{cascade['ttft_ms_p50']:.0f} ms", f"to the first token (alone {alone['ttft_ms_p50']:.0f} ms)", ""),
        *((f"{edge['tau']:.1f}", "tokens per block that the target verifies", "") for edge in last),
        (f"{cascade['tokens'] / max(1, cascade['target_passes']):.1f}", "tokens per pass of the target", ""),
    ]
    return "".join(
        f'<div class="card{kind}"><b>{escape(big)}</b><span>{escape(text)}</span></div>' for big, text, kind in cards
    )


def _panel(title: str, text: str, picture: str, *, wide: bool = False) -> str:
    said = f"<p>{escape(text)}</p>" if text else ""
    return f'<section class="panel{" wide" if wide else ""}"><h2>{escape(title)}</h2>{said}{picture}</section>'


def _speeds(told: Mapping[str, Any], alone: Side, cascade: Side) -> str:
    rows = [
        (side.name, figure, f"{figure:,.0f}", colour)
        for side, figure, colour in ((alone, told["tps_alone"], ALONE), (cascade, told["tps"], CASCADE))
    ]
    rounds = ", ".join(f"{ratio:.2f}" for ratio in told["speedup_by_round"])
    return f"{bars(rows)}<p style='margin-top:12px'>Speedup by round: {rounds}.</p>"


def _said(told: Mapping[str, Any]) -> str:
    return shares([(name, count, _colour(told, name)) for name, count in told["said_by"].items()])


def _spread(alone: Side, cascade: Side, figure: str) -> str:
    series = {side.name: (getattr(side, figure), colour) for side, colour in ((alone, ALONE), (cascade, CASCADE))}
    return distributions(series, "ms")


def _edge(name: str, edge: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    text = (
        f"alpha {edge['alpha']:.3f}, tau {edge['tau']:.2f}. Columns: the hazard, how often a draft at this position of "
        "its block is refused when all before it were accepted; paler where it was tested less often."
    )
    picture = columns(edge["hazard"], edge["tested"], _colour(told, name.partition("-")[0]))
    return _panel(f"Drafts of {name.replace('-', ' for ')}", text, picture)


def _hidden(told: Mapping[str, Any]) -> str:
    hidden = told["cascade"]["latency_hidden"]
    share = "" if hidden is None else f" Of what could run beside the busiest stage, {hidden:.0%} did."
    return f"Share of the cascade's time in which a stage was doing something.{share}"


def _busy(told: Mapping[str, Any]) -> str:
    busy = told["cascade"]["busy_share"]
    return bars([(name, share, f"{share:.0%}", _colour(told, name)) for name, share in busy.items()], top=1.0)


def _memory(told: Mapping[str, Any]) -> str:
    rows = []
    for name, held in told["memory"].items():
        sizes = [f"{held[key] / 1e6:,.0f} MB" if held[key] else "-" for key in ("weights", "kv", "peak", "device_peak")]
        rows.append([name, held["device"], *sizes])
    return _rows(["", "device", "weights", "KV slots", "process peak", "GPU peak"], rows)


def _lanes(told: Mapping[str, Any], cascade: Side) -> str:
    return gantt(_last(cascade.runs[-1].traces), f"{told['recipe']}, {_clients(told)}")


def _last(traces: Sequence[Trace]) -> list[Trace]:
    """The last stretch of a run; spans that reach into it are there whole."""
    ends = [span.end_ns + trace.wall_minus_monotonic_ns for trace in traces for span in trace.spans]
    return [trace.since(max(ends, default=0) - _DRAWN_NS) for trace in traces]


def _setup(told: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    changed = " ".join(told["set"]) or "nothing"
    rows = [
        ["recipe", f"{told['recipe']}; changed: {changed}"],
        ["answers", f"at most {told['max_tokens']} tokens, greedy"],
        ["machine", told["machine"]],
        ["versions", versions],
    ]
    return _rows([], rows)


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{first}</tr>' if head else ''}{body}</table>"


def _colour(told: Mapping[str, Any], stage: str) -> str:
    levels = told["levels"]
    return STAGES[levels.index(stage) % len(STAGES)] if stage in levels else "#868e96"
