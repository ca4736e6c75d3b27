"""A window of events as the frames that a target is shown: cut, rendered by the target's rule, and named by their hash.

The rule and its numbers belong to the target's checkpoint (`event_representation` in its preprocessor_config.json): a
model is fed what it was trained on. Nothing here needs a model, so a box beside the sensor can do it.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np

from cascade_runtime.events.array import Events
from cascade_runtime.events.representations.activity import time_slices
from cascade_runtime.events.representations.registry import represent

WINDOW_US = 100_000


def seen_window(events: Events) -> Events:
    """What is looked at of a recording: all of it, or its densest window where it is longer than one."""
    return events.densest_window(WINDOW_US) if events.duration_us >= WINDOW_US else events


def render(events: Events, rule: str, options: dict[str, Any]) -> np.ndarray:
    """A window as frames: by a rule that makes several itself, or one picture for each of `frames` equal counts of
    events (how EventGPT cuts a window).
    """
    if rule == "activity":
        return represent(events, rule, **options)
    each = {name: value for name, value in options.items() if name != "frames"}
    pairs = itertools.pairwise(_edges(events, options))
    return np.stack([represent(events.slice(a, b), rule, **each) for a, b in pairs])


def frame_numbers(events: Events, rule: str, options: dict[str, Any]) -> np.ndarray:
    """(N,) int64: in which of the frames that `render` makes each event is."""
    if rule == "activity":
        return (
            time_slices(events.t, events.t[0], events.t[-1], options.get("frames", 2))[0] if len(events) else events.t
        )
    return np.searchsorted(_edges(events, options), np.arange(len(events)), side="right") - 1


def _edges(events: Events, options: dict[str, Any]) -> list[int]:
    """Where frames of equal counts begin, and the end."""
    count = options.get("frames", 1)
    step = len(events) // count
    return [*range(0, step * count, step), len(events)] if step else [0, len(events)]


def source_hash(frames: np.ndarray) -> str:
    """A tag for the recording a packet came from: the hash of the frames that were rendered from it."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(str((frames.shape, frames.dtype.str)).encode())
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()
