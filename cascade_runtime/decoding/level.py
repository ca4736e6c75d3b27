"""`Level`: one language model of a cascade, loaded as its recipe says, with its KV slots.

The engine holds all levels of a cascade, an actor holds one. A level turns a question and visual features into a
prompt of its own (each level has its own projector) and extends rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cascade_runtime.config import CascadeConfig, SamplingParams, Sees, StageConfig
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.profile import profile
from cascade_runtime.decoding.row import PromptEmbeds, Row, check_fits
from cascade_runtime.decoding.sight import Sight
from cascade_runtime.decoding.stopping import Stopper
from cascade_runtime.errors import ConfigError
from cascade_runtime.models import load_checkpoint
from cascade_runtime.models.compressor import load_compressor
from cascade_runtime.models.stage_source import checkpoint_path, layer_devices, pick_device
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.vision.features import VisualFeatures


@dataclass(eq=False)
class Level:
    """One level. `model` is the VisionLanguageModel with the language and projector parts loaded. sight: what it sees
    of a video where that is not all. positions: how far position ids may go, where slots are shorter (0: as far).
    """

    name: str
    model: Any
    decoder: Decoder
    sight: Sight | None = None
    positions: int = 0

    @classmethod
    def load(cls, stage: StageConfig, cascade: CascadeConfig) -> Level:
        """Load the language side of a checkpoint. Raises `ConfigError` naming what is wrong with it."""
        model = load_checkpoint(
            checkpoint_path(stage),
            parts=("language", "projector"),
            device=pick_device(stage.device),
            dtype=stage.dtype,
            layer_devices=layer_devices(stage.device),
        )
        assert model.language is not None  # it was asked for
        max_len = stage.max_len or cascade.max_len
        decoder = Decoder(model.language, slots=cascade.slots, max_len=max_len, compiled=stage.compile)
        model.language.reach(cascade.max_len)  # what is left of a prompt stands where it stood
        return cls(stage.name, model, decoder, _sight(stage, model), cascade.max_len)

    @property
    def vocab_size(self) -> int:
        return self.model.language.vocab_size

    @property
    def ends(self) -> tuple[int, ...]:
        return self.model.language.eos_token_ids

    @property
    def space(self) -> str:
        """The feature space this level's projector was trained on: that of its checkpoint's own tower."""
        return self.model.space

    def tokenizer_tag(self) -> str:
        """What must be equal for token ids of two levels to mean the same."""
        return tokenizer_tag(self.model.tokenizer)

    @torch.inference_mode()
    def prompt(self, question: str, features: VisualFeatures) -> PromptEmbeds:
        """The prompt as this model's embeddings, the features put through its own projector. All questions about the
        same features share what comes before the question.

        Raises `FeatureSpaceError` for features of another tower than this checkpoint's.
        """
        features.expect(self.space, self.model.projector.feature_size)
        if self.sight is not None and self.sight.sees.method == "text":
            return self._unseen(question, features)
        visual = self.model.projector.project(features.tensor())
        prompt = self.model.prompts.build(
            question, num_visual=visual.shape[0], frames=features.frames, grid=features.grid
        )
        embeds = self.model.embed_prompt(prompt, visual)
        before = int(prompt.visual_mask.nonzero()[-1]) + 1 if prompt.num_visual else 0
        positions, length, seen = prompt.position_ids, before, "all"
        if self.sight is not None and prompt.num_visual:
            less = self.sight.narrow(prompt, embeds, features)
            embeds, positions, length, seen = less.embeds, less.positions, less.visual_end, less.name
        prefix = hashlib.blake2b(np.ascontiguousarray(features.data).data, digest_size=16) if length else None
        if prefix is not None:
            prefix.update(repr((features.data.dtype.str, features.data.shape, features.grid, seen)).encode())
            prefix.update(prompt.input_ids[:before].numpy().tobytes())
        positions = positions.to(embeds.device)
        return PromptEmbeds(embeds, positions, prompt.next_position, prefix.hexdigest() if prefix else "", length)

    def _unseen(self, question: str, features: VisualFeatures) -> PromptEmbeds:
        """The text of a prompt, where it stands in the whole one. Nothing visual is computed."""
        whole = self.model.prompts.build(question, num_visual=None, frames=features.frames, grid=features.grid)
        text = ~whole.visual_mask
        embeds = self.model.language.embed(whole.input_ids[text].tolist())
        return PromptEmbeds(embeds, whole.position_ids[..., text].to(embeds.device), whole.next_position)

    def admit(self, question: str, features: VisualFeatures, sampling: SamplingParams) -> Row:
        """A row for one request: its prompt made and a slot taken. Raises `PromptTooLong` or `CapacityError`."""
        prompt = self.prompt(question, features)
        check_fits(prompt.next_position, sampling, self.positions or self.decoder.cache.max_len)
        return self.decoder.admit(prompt, sampling)

    def learn(self, row: Row, answer: Sequence[int]) -> None:
        """A request of this row has ended with this answer, the target's; models learn nothing from it."""

    def step_cost(self) -> StepCost:
        """What a pass costs on this device, as far as a few of them can tell."""
        return profile(self.decoder)

    def stopper(self, sampling: SamplingParams) -> Stopper:
        return Stopper(self.model.tokenizer, self.ends, sampling)


def _sight(stage: StageConfig, model: Any) -> Sight | None:
    sees = Sees.parse(stage.sees)
    if sees.method == "all":
        return None
    language, compressor = model.language, None
    if sees.learnt:
        compressor = load_compressor(checkpoint_path(stage), language.hidden_size, language.device, language.dtype)
    return Sight(sees, model, compressor=compressor)


def tokenizer_tag(tokenizer: Any) -> str:
    """The hash of a tokenizer's entries."""
    entries = sorted(tokenizer.get_vocab().items())
    return hashlib.blake2b(repr(entries).encode(), digest_size=8).hexdigest()


def check_one_vocabulary(tags: dict[str, str]) -> None:
    """Raise `ConfigError` unless all levels (name -> tokenizer tag) use one tokenizer."""
    if len(set(tags.values())) > 1:
        raise ConfigError("stages", tags, "checkpoints with one and the same tokenizer: draft tokens travel as ids")
