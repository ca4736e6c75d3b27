"""Real recordings: what a model says beside what the events themselves say.

Three facts are computed from the events of the window that the model sees, with the training's own definitions: busiest
region, event rate per pixel and window, ON share; where one falls into a gap between two classes it is not graded.
The direction of motion is the dominant translation found by contrast maximisation (`events/facts.py`), graded exactly
and within 45 degrees, where one stands out. What moves, how many and how fast is not graded: no reference can be
computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cascade_runtime.errors import CascadeError
from cascade_runtime.events import Events, read_events
from cascade_runtime.events.facts import dominant_velocity
from cascade_runtime.events.representations import represent
from cascade_runtime.models.family import FRAME_SIZE, FRAMES
from cascade_runtime.training.facts import AMBIGUOUS, balance_class, rate_class, region_class
from cascade_runtime.training.language import Packer, answer_greedily

WINDOW_US = 100_000
QUESTIONS = {
    "direction": "Which way is it moving?",
    "region": "Where is the activity?",
    "rate": "How high is the event rate?",
    "balance": "Are there more ON or OFF events?",
    "describe": "What are the key elements in this scene?",
}


@dataclass(frozen=True)
class Recording:
    """A real recording as the models see it. facts: class per fact, missing where there is no reference."""

    name: str
    maps: torch.Tensor
    facts: dict[str, int]


def read_recordings(directory: Path) -> Iterator[Recording]:
    """Every readable recording of a directory; those that need an extra that is not installed are left out."""
    for path in sorted(directory.iterdir()):
        try:
            events = read_events(path)
        except CascadeError:
            continue
        window = events.densest_window(WINDOW_US) if events.duration_us >= WINDOW_US else events
        maps = torch.from_numpy(represent(window, "activity", frames=FRAMES, size=FRAME_SIZE).copy())
        yield Recording(path.name, maps, computed_facts(window))


def computed_facts(window: Events) -> dict[str, int]:
    """Busiest region, rate, balance and, where one stands out, direction of a window of events."""
    third = window.y.astype(np.int64) * 3 // window.height * 3 + window.x.astype(np.int64) * 3 // window.width
    facts = {
        "region": region_class(np.bincount(third, minlength=9)),
        "rate": rate_class(len(window) / (window.width * window.height)),
        "balance": balance_class(float(window.p.mean())),
    }
    vx, vy = dominant_velocity(window)
    if vx or vy:
        facts["direction"] = round(float(np.arctan2(vy, vx)) / (np.pi / 4)) % 8
    return {name: value for name, value in facts.items() if value != AMBIGUOUS}


def question_texts(model: torch.nn.Module, packer: Packer, raw: torch.Tensor) -> dict[str, str]:
    """The model's greedy answers to QUESTIONS about one recording; raw: (1, F, P, Dv)."""
    asked = list(QUESTIONS.values())
    said = answer_greedily(model, packer, raw.expand(len(asked), *raw.shape[1:]), asked)
    return {kind: packer.tokenizer.decode(ids) for kind, ids in zip(QUESTIONS, said, strict=True)}
