"""What each stage did when: recorded by a `Tracer` in every stage, told by the traces of all of them together.

tracer.py       spans, messages and notes of one stage, in rings
arrows.py       both ends of a message, brought together
occupancy.py    busy time per stage, and how much of what could overlap did
chrome.py       all stages as one Chrome trace, for ui.perfetto.dev
gantt.py        all stages as one picture, an SVG
"""

from cascade_runtime.tracing.tracer import NO_REQUEST, Message, Moments, Note, Share, Span, Trace, Tracer

__all__ = ["NO_REQUEST", "Message", "Moments", "Note", "Share", "Span", "Trace", "Tracer"]
