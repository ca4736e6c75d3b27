"""`answer_html`: an answer as HTML for a notebook. Everything that came from a model is escaped.

Each token lies on the colour of the stage that produced it, and a line under it in that stage's style (solid, dashed,
dotted ...) says the same to who cannot tell the colours apart.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from cascade_runtime.messages import producer

if TYPE_CHECKING:
    from cascade_runtime.api.answer import Answer

# Okabe and Ito's colours, lightened to lie behind dark text; with them a style of line
_MARKS = (
    ("#b7e4d5", "solid"),
    ("#fbe3b0", "dashed"),
    ("#bcdcf5", "dotted"),
    ("#f3cfe2", "double"),
    ("#f7d3bd", "wavy"),
    ("#dedede", "solid"),
)
_WHOLE = "font-family:system-ui,sans-serif;line-height:1.9;color:#1c1c1c;background:#fff;padding:.6em"


def answer_html(answer: Answer) -> str:
    """One element: the marked text, a legend, and a line of figures."""
    tokens = "".join(
        f'<span style="{_style(producer(mask))}" title="{escape(_told(by, accepted))}">{escape(piece)}</span>'
        for piece, mask, by, accepted in zip(
            answer.pieces, answer.masks, answer.produced_by, answer.accepted_by, strict=True
        )
    )
    legend = " ".join(
        f'<span style="{_style(level)};padding:0 .4em">{escape(name)}</span> {answer.produced_by.count(name)}'
        for level, name in enumerate(answer.levels)
    )
    figures = f"{len(answer.token_ids)} tokens in {answer.timings.total_ms:.0f} ms, {answer.target_passes} passes"
    return (
        f'<div style="{_WHOLE}"><div style="white-space:pre-wrap">{tokens}</div>'
        f'<div style="font-size:85%;color:#555">{legend} &middot; {figures} of {escape(answer.levels[-1])}</div></div>'
    )


def _style(level: int) -> str:
    colour, line = _MARKS[level % len(_MARKS)]
    return f"background:{colour};text-decoration:underline {line} #555;text-underline-offset:.25em"


def _told(by: str, accepted: tuple[str, ...]) -> str:
    return f"{by}, accepted by {', '.join(accepted)}" if accepted else by
