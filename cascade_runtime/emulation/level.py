"""`EmulatedLevel`: a language level whose passes are timed waits and whose tokens come from `Tokens`.

It is a `Level` with a `Decoder`: rows, slots, roll-back and what a pass feeds are those of a real one. Only the pass
itself is replaced. Features are not looked at beyond their space and the recording they came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from cascade_runtime.config import CascadeConfig, StageConfig, StepProfile
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.level import Level
from cascade_runtime.decoding.row import PromptEmbeds, Row
from cascade_runtime.decoding.weightless import WeightlessLanguage
from cascade_runtime.emulation.device import EmulatedDevice
from cascade_runtime.emulation.tokens import request_number, sampled
from cascade_runtime.emulation.vision import SPACE
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.simulation import Tokens
from cascade_runtime.vision.features import VisualFeatures


class EmulatedTokenizer:
    """Shows token ids as numbers: " 17 4 250"."""

    def __init__(self, vocab_size: int, ends: Sequence[int]) -> None:
        self._vocab_size, self._ends = vocab_size, frozenset(ends)

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Each id after a blank; those that end an answer are special."""
        return "".join(f" {token}" for token in token_ids if not (skip_special_tokens and token in self._ends))

    def __len__(self) -> int:
        return self._vocab_size


@dataclass(frozen=True)
class EmulatedModel:
    """What is asked of a loaded checkpoint."""

    language: WeightlessLanguage
    tokenizer: EmulatedTokenizer
    space: str = SPACE


@dataclass(frozen=True)
class EmulatedPrompt(PromptEmbeds):
    """A prompt of so many positions and no numbers. request: see `request_number`."""

    request: int = 0


class EmulatedDecoder(Decoder):
    """The rows of a real decoder over passes that take as long as `profile` says, on `device`."""

    def __init__(
        self,
        language: WeightlessLanguage,
        cascade: CascadeConfig,
        *,
        stage: int,
        tokens: Tokens,
        profile: StepProfile,
        device: EmulatedDevice,
    ) -> None:
        super().__init__(cast(Any, language), slots=cascade.slots, max_len=cascade.max_len)
        self.stage, self.tokens, self.profile, self.device = stage, tokens, profile, device
        self.cost = step_cost(profile)

    def _run(self, plans: Sequence[Any], groups: Sequence[int]) -> list[list[int]]:
        """One pass: the plans' choices, no sooner than the profile says."""
        fed = sum(plan.count - plan.prompt_count for plan in plans)
        prompts = sum(plan.prompt_count / len(plan.row.prompt) for plan in plans)
        context = sum(plan.start for plan in plans)
        seconds = self.cost.seconds(len(plans), fed, context) + self.profile.prefill_ms / 1000 * prompts
        with self.device.busy(seconds):
            choices = [self._settled(plan, self._choices(plan.row, plan.wanted, plan.choices)) for plan in plans]
        self.passes += 1
        self.tokens_fed += sum(plan.count for plan in plans)
        return choices

    def _choices(self, row: Row, wanted: list[int], count: int) -> list[int]:
        """What is said after the prefix and after each draft, the last count - 1 of `wanted`.

        What would follow a refused draft is never looked at, and not made up. No choices (count 0) where the prompt is
        not fed to the end.
        """
        if not count:
            return []
        assert isinstance(row.prompt, EmulatedPrompt)
        request, out = sampled(row.prompt.request, row.sampling), list[int]()
        for end in range(len(wanted) - count + 1, len(wanted) + 1):
            out.append(self.tokens.choice(self.stage, request, tuple(wanted[:end])))
            if end < len(wanted) and wanted[end] != out[-1]:
                break
        return out + [out[-1]] * (count - len(out))


class EmulatedLevel(Level):
    """One emulated level. `tag` stands for its tokenizer: levels with another one do not mean the same tokens."""

    def __init__(
        self,
        config: StageConfig,
        cascade: CascadeConfig,
        *,
        stage: int,
        tokens: Tokens,
        ends: tuple[int, ...],
        tag: str,
        device: EmulatedDevice,
    ) -> None:
        assert isinstance(config.profile, StepProfile)  # the recipe checked that
        language = WeightlessLanguage(tokens.vocab_size, ends, config.device)
        decoder = EmulatedDecoder(language, cascade, stage=stage, tokens=tokens, profile=config.profile, device=device)
        super().__init__(config.name, EmulatedModel(language, EmulatedTokenizer(tokens.vocab_size, ends)), decoder)
        self.profile, self._tag = config.profile, f"emulated:{tag}"

    def tokenizer_tag(self) -> str:
        """What must be equal for token ids of two levels to mean the same."""
        return self._tag

    def prompt(self, question: str, features: VisualFeatures) -> PromptEmbeds:
        """A prompt of as many positions as the profile says. Raises `FeatureSpaceError` for features of a model."""
        features.expect(SPACE, 1)
        positions, request = self.profile.prompt_positions, request_number(question, features.source)
        return EmulatedPrompt(torch.empty(positions, 0), torch.arange(positions), positions, request=request)

    def step_cost(self) -> StepCost:
        """The profile."""
        return step_cost(self.profile)


def step_cost(profile: StepProfile) -> StepCost:
    """A profile without its prefill, in seconds."""
    ms = profile.base_ms, profile.per_row_ms, profile.per_token_ms, profile.per_position_ms, profile.several_ms
    return StepCost(*(each / 1000 for each in ms))
