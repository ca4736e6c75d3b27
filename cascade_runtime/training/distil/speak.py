"""Who says what: a cascade answers questions about clips that are already rendered, through the in-process engine.

The target's answers are its own, token for token, whoever drafts; so a good drafter only makes them cheaper, and what
the edges count meanwhile is acceptance as it is in use. A stage's own greedy answers come from a cascade of it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.emulation.loading import load_level
from cascade_runtime.engine import Engine
from cascade_runtime.errors import CascadeError
from cascade_runtime.events import Events
from cascade_runtime.events.representations.window import source_hash
from cascade_runtime.vision.adapter_verifier import AdapterVerifier
from cascade_runtime.vision.event_branch import EventBranch, EventView
from cascade_runtime.vision.features import VisualFeatures
from cascade_runtime.vision.front_end import FrontEnd, Seen


@dataclass(frozen=True, eq=False)
class RenderedClip:
    """A recording of which only its frames are left: (F, 3, S, S) float32."""

    frames: np.ndarray

    @property
    def duration_us(self) -> int:
        return 0

    def __len__(self) -> int:
        return len(self.frames)

    def densest_window(self, window_us: int) -> RenderedClip:
        return self


class RenderedBranch(EventBranch):
    """An event branch that is given frames instead of events."""

    @torch.inference_mode()
    def view(self, events: Events, encode: bool = True) -> EventView:
        frames = cast(Any, events).frames
        source = source_hash(frames)
        if self.encoder is None or not encode:
            return EventView(frames, source, None)
        encoded = self.encoder(torch.from_numpy(frames.copy()))
        transforms = (self.rule, "event_encoder")
        features = VisualFeatures.from_tensor(encoded, space=self.encoder.space, transforms=transforms, source=source)
        return EventView(frames, source, features)


class _SeenOnce(FrontEnd):
    """Questions about one clip follow each other: what was seen last is kept."""

    _last: tuple[object, bool, Seen] | None = None

    def see(self, events: Events, *, speculate: bool = True) -> Seen:
        if self._last is None or self._last[0] is not events or self._last[1] != speculate:
            self._last = (events, speculate, super().see(events, speculate=speculate))
        return self._last[2]


def load_speaker(recipe: Recipe) -> Engine:
    """An engine of this recipe that is asked about `RenderedClip`s."""
    levels = [load_level(recipe, index, wait=False) for index in range(len(recipe.stages))]
    branch = EventBranch.load(recipe)
    rendered = RenderedBranch((branch.rule, branch.options), branch.encoder)
    return Engine(recipe, levels, _SeenOnce(recipe, rendered, AdapterVerifier.load(recipe)))


def answer(
    speaker: Engine, maps: torch.Tensor, questions: Sequence[tuple[int, str]], *, max_tokens: int = 64
) -> list[Answer]:
    """Greedy answers to (clip, question) about maps (n, F, 3, S, S), in order. Raises the first error of a request."""
    clips = [RenderedClip(clip.float().numpy()) for clip in maps]
    sampling = SamplingParams(max_tokens=max_tokens)
    requests = [
        GenerateRequest(events=cast(Any, clips[clip]), question=question, sampling=sampling)
        for clip, question in questions
    ]
    answers = []
    for given in speaker.generate(requests):
        if isinstance(given, CascadeError):
            raise given
        answers.append(given)
    return answers


def answer_ids(answers: Sequence[Answer]) -> list[list[int]]:
    """Token ids without the end token where there is one."""
    return [list(a.token_ids[:-1] if a.finish_reason == "stop" else a.token_ids) for a in answers]
