"""Event-camera recordings: one array type, readers, a simulator, named representations and pictures.

    array.py            Events: t int64 us, x, y uint16, p uint8, sensor size, time offset; windows; Arrow batches
    readers/            read_events(path), write_events(path, events): one file per format family
    video_to_events.py  frames or a video -> events (ESIM-style log-intensity thresholds)
    representations/    represent(events, "family/rule") -> numpy array; each rule is named, because two
                        "red/blue images" differ in 5-93 % of their active pixels
    cell_counts.py      where the events of each frame lie, on a grid of its own
    picture.py          PNG (png.py) and terminal pictures; describe(events)
    video_bytes.py      a video that somebody sent, as simulated events
    arrow_ipc.py        Arrow bytes of a stranger, read safely; flatbuffer.py: what that and AEDAT4 need
    facts.py            what the events themselves say: direction, speed, busiest region, rate, ON share

Needs numpy and pyarrow only. It knows nothing of models, channels or Ray.
"""

from __future__ import annotations

from cascade_runtime.events.array import Events
from cascade_runtime.events.facts import EventFacts, measure_facts
from cascade_runtime.events.picture import describe, preview, render_png
from cascade_runtime.events.readers import FORMATS, ReadLimits, read_events, write_events
from cascade_runtime.events.representations import REPRESENTATIONS, represent
from cascade_runtime.events.video_to_events import EventSimulator, frames_to_events, video_to_events

__all__ = [
    "FORMATS",
    "REPRESENTATIONS",
    "EventFacts",
    "EventSimulator",
    "Events",
    "ReadLimits",
    "describe",
    "frames_to_events",
    "measure_facts",
    "preview",
    "read_events",
    "render_png",
    "represent",
    "video_to_events",
    "write_events",
]
